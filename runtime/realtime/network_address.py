"""Where a sink sends or listens: `[HOST:]PORT`, this machine alone unless told otherwise."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from ..errors import InputError

THIS_MACHINE = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """A host, resolved, and a port."""

    host: str
    """An IPv4 or IPv6 address."""
    port: int

    @property
    def local(self) -> bool:
        """Whether nothing beyond this machine is reached, or can reach it."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def family(self) -> socket.AddressFamily:
        """As `socket.socket` takes it."""
        six = ipaddress.ip_address(self.host).version == 6
        return socket.AF_INET6 if six else socket.AF_INET

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.family == socket.AF_INET6 else self.host
        return f"{host}:{self.port}"


def read_address(text: str, what: str, default_port: int | None = None) -> NetworkAddress:
    """Read and resolve `HOST:PORT`, `[IPV6]:PORT` or `PORT`, which means this machine.

    Parameters
    ----------
    text : str
    what : str
        How the whole was typed, for messages.
    default_port : int, optional
        If the text names a host alone.

    Raises
    ------
    InputError
        No port from 1 to 65535, or a host that nobody knows.
    """
    host, colon, port = text.rpartition(":")
    if not colon and not text.isdecimal() and default_port is not None:
        host, port = text, str(default_port)
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InputError(f"'sink' {what}: the port must be a number from 1 to 65535; got {port!r}")
    host = host.removeprefix("[").removesuffix("]") or THIS_MACHINE
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise InputError(f"'sink' {what}: no host {host!r} is known; check its name") from exc
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # what old programs listen on
    return NetworkAddress(str(found[0][4][0]), int(port))


def keep_within(address: NetworkAddress, what: str, *, network: bool) -> None:
    """Refuse an address beyond this machine, unless the network was asked for.

    Raises
    ------
    InputError
        The address is no loopback address and `network` is false.
    """
    if not (address.local or network):
        raise InputError(
            f"'sink' {what}: {address.host} is beyond this machine; say --network if that is meant"
        )
