"""Answers as UDP datagrams: one JSON object each, no line break, to whoever listens.

A datagram fits one Ethernet frame, so that it arrives whole or not at all and a reader needs no
larger buffer. What does not fit goes without its large parts, and then says so in `shortened`.
Nobody tells whether anybody listens: the numbers `seq` show what was missed.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from .address import Address
from .sinks import MessageRefused

MOST_BYTES = 1432
"""1500 of the frame, less the headers of IPv6 and UDP and some room for a tunnel."""
_LARGE = ("summary", "description", "degraded", "detail", "log_prob", "prompt", "caption", "text")
"""What can be left out, what is needed least first."""


class UdpOutlet:
    """Sends datagrams.

    Parameters
    ----------
    address : Address
        Whom to.
    """

    def __init__(self, address: Address) -> None:
        self._to = (address.host, address.port)
        # not connected: that nobody listens yet must not come back as an error
        self._socket = socket.socket(address.family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._shortened = self._too_large = self._unsendable = 0

    def send(self, message: str) -> None:
        """Send one datagram.

        Raises
        ------
        MessageRefused
            It is too large, or the network takes nothing now.
        """
        datagram = message.encode()
        if len(datagram) > MOST_BYTES:
            datagram = self._shorten(json.loads(message))
        try:
            self._socket.sendto(datagram, self._to)
        except OSError as exc:
            self._unsendable += 1
            raise MessageRefused(str(exc.strerror)) from exc

    def counts(self) -> dict[str, int]:
        """Messages that were shortened, and those that could not go."""
        found = {
            "shortened": self._shortened,
            "too large": self._too_large,
            "network unreachable": self._unsendable,
        }
        return {what: count for what, count in found.items() if count}

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _shorten(self, message: dict[str, Any]) -> bytes:
        left_out: list[str] = []
        for name in _LARGE:
            if message.pop(name, None) is None:
                continue
            left_out.append(name)
            shorter = json.dumps(message | {"shortened": left_out}, ensure_ascii=False).encode()
            if len(shorter) <= MOST_BYTES:
                self._shortened += 1
                return shorter
        self._too_large += 1
        raise MessageRefused(f"more than {MOST_BYTES} bytes even without {', '.join(left_out)}")
