"""Who may send to a source, and the socket on which it listens.

AFNI's stream and C-STORE have no room for a token. Beyond this machine they are open only to
addresses that were named, and an address can be forged by whoever sits on the same network.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import InputError
from .address import Address

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"


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
    opened = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        # the port of a run that has just ended may be taken again at once
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address.host, address.port))
        opened.listen(backlog)
    except OSError as exc:
        opened.close()
        raise cannot_listen(address, what, exc.errno) from exc
    return opened


def cannot_listen(address: Address, what: str, errno: int | None) -> InputError:
    """The error for an address that cannot be listened at."""
    reason = os.strerror(errno or 0)
    return InputError(
        f"{what} cannot listen at {address}: {reason}; end what uses it, or give another port"
    )
