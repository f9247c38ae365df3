"""Where a source listens and to whom: this machine alone, unless it is told otherwise.

AFNI's stream and C-STORE have no room for a token. Beyond this machine they are open only to
addresses that were named, and an address can be forged by whoever sits on the same network.
"""

from __future__ import annotations

import ipaddress
import re
import select
import socket
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import InputError

LOOPBACK = "127.0.0.1"
Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"

_PLACE = re.compile(r"((?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]/\s]+):)?(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    """An IP address of this machine."""
    port: int

    @classmethod
    def parse(cls, text: str, what: str) -> Address:
        """Read PORT or HOST:PORT; without a host it is this machine alone.

        Parameters
        ----------
        text : str
            An IPv6 address stands in brackets.
        what : str
            What is asked for, to name it in an error.

        Raises
        ------
        InputError
            Not of this form, no IP address, or no port from 1 to 65535.
        """
        found = _PLACE.fullmatch(text)
        if not found or not 1 <= int(found["port"]) <= 65535:
            raise InputError(f"{what} must be PORT or HOST:PORT, ports 1 to 65535; got {text!r}")
        host = (found["host"] or LOOPBACK).strip("[]")
        if host == "localhost":
            host = LOOPBACK
        try:
            ipaddress.ip_address(host)
        except ValueError as exc:
            raise InputError(
                f"{what}: its host must be an IP address of this machine (0.0.0.0 is all of "
                f"them); got {host!r}"
            ) from exc
        return cls(host, int(found["port"]))

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Peers:
    """Who may connect."""

    allowed: tuple[Network, ...] = ()
    """Besides this machine itself."""

    @classmethod
    def parse(cls, texts: tuple[str, ...]) -> Peers:
        """Read addresses, or networks such as 10.0.0.0/24.

        Raises
        ------
        InputError
            Something else.
        """
        try:
            return cls(tuple(ipaddress.ip_network(text) for text in texts))
        except ValueError as exc:
            raise InputError(f"a peer must be an IP address or a network; {exc}") from exc

    def admit(self, host: str) -> bool:
        """Whether the peer at this IP address may connect."""
        try:
            peer = ipaddress.ip_address(host.split("%")[0])
        except ValueError:
            return False
        mapped = getattr(peer, "ipv4_mapped", None)
        peer = mapped or peer
        return peer.is_loopback or any(
            peer.version == network.version and peer in network for network in self.allowed
        )


def refuse_open(address: Address, peers: Peers, what: str, protocol: str) -> None:
    """Refuse to be open to everybody where the protocol has no room for a token.

    Raises
    ------
    InputError
        The address can be reached from other machines and none of them was named.
    """
    if not address.local and not peers.allowed:
        raise InputError(
            f"{what} is beyond this machine, and {protocol} cannot carry a token: name the "
            "machines that may send with --peer ADDRESS"
        )


def listen(address: Address, what: str, backlog: int = 16) -> socket.socket:
    """Open a socket that listens.

    Raises
    ------
    InputError
        The address is in use, or is none of this machine's, or needs rights.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        # the port of a run that has just ended may be taken again at once
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address.host, address.port))
        opened.listen(backlog)
    except OSError as exc:
        opened.close()
        raise cannot_listen(address, what, exc) from exc
    return opened


def cannot_listen(address: Address, what: str, exc: OSError) -> InputError:
    """The error for an address that cannot be listened at."""
    return InputError(
        f"{what} cannot listen at {address}: {exc.strerror}; end what uses it, or give another port"
    )


class Stopped(Exception):
    """The source is being closed."""


class Silent(Exception):
    """Nothing came in time."""


class Bell:
    """Wakes a thread that waits for a socket, so that closing waits for nobody."""

    def __init__(self) -> None:
        self._ringer, self._heard = socket.socketpair()

    def fileno(self) -> int:
        """For a poller."""
        return self._heard.fileno()

    def ring(self) -> None:
        """End every wait, now and from now on."""
        self._ringer.send(b"!")

    def wait(self, *wanted: socket.socket, timeout_s: float | None) -> socket.socket:
        """Wait until one of some sockets can be read; the first of them that can.

        Raises
        ------
        Stopped
            The bell was rung.
        Silent
            None within `timeout_s`.
        """
        ready, _, _ = select.select([*wanted, self._heard], [], [], timeout_s)
        if self._heard in ready:
            raise Stopped
        if not ready:
            raise Silent
        return ready[0]

    def close(self) -> None:
        """Once nobody waits any more."""
        self._ringer.close()
        self._heard.close()
