"""Where a source, a sink or a player listens or sends: `[HOST:]PORT`, this machine alone without a
host."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from ..errors import InputError

THIS_MACHINE = "127.0.0.1"

_PLACE = re.compile(r"((?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]/\s]+):)?(?P<port>\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port."""

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


def own_address(text: str, what: str) -> Address:
    """Read where to listen: `PORT`, `IP:PORT` or `[IPV6]:PORT`.

    Parameters
    ----------
    text : str
    what : str
        What is asked for, to name it in an error.

    Raises
    ------
    InputError
        Not of this form, no IP address, or no port from 1 to 65535.
    """
    host, port = _split(text, what)
    if host == "localhost":
        host = THIS_MACHINE
    try:
        ipaddress.ip_address(host)
    except ValueError as exc:
        raise InputError(
            f"{what}: its host must be an IP address of this machine (0.0.0.0 is all of them); "
            f"got {host!r}"
        ) from exc
    return Address(host, port)


def resolved_address(text: str, what: str, default_port: int | None = None) -> Address:
    """Read `HOST:PORT`, `[IPV6]:PORT` or `PORT`, and find the host.

    Parameters
    ----------
    text, what : str
        As `own_address` takes them.
    default_port : int, optional
        If the text names a host alone.

    Raises
    ------
    InputError
        Not of this form, no port from 1 to 65535, or a host that nobody knows.
    """
    if default_port is not None and ":" not in text and not text.isdecimal():
        text = f"{text}:{default_port}"
    host, port = _split(text, what)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise InputError(f"{what}: no host {host!r} is known; check its name") from exc
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # what old programs listen on
    return Address(str(found[0][4][0]), port)


def keep_within(address: Address, what: str, *, network: bool) -> None:
    """Refuse an address beyond this machine, unless the network was asked for.

    Raises
    ------
    InputError
        The address is no loopback address and `network` is false.
    """
    if not (address.local or network):
        raise InputError(
            f"{what}: {address.host} is beyond this machine; say --network if that is meant"
        )


def _split(text: str, what: str) -> tuple[str, int]:
    found = _PLACE.fullmatch(text)
    if not found or not 1 <= int(found["port"]) <= 65535:
        raise InputError(f"{what} must be PORT or HOST:PORT, ports 1 to 65535; got {text!r}")
    return (found["host"] or THIS_MACHINE).strip("[]"), int(found["port"])
