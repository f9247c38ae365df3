"""Bounds on what a DICOM peer may send, before pynetdicom takes memory for it.

pynetdicom reads as many bytes as a PDU says that it has, and as many PDUs as a message needs. The
socket below reads along: too long a PDU, or more bytes than a file of this run can have, and the
connection has ended. https://dicom.nema.org/medical/dicom/current/output/html/part08.html#sect_9.3
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import weakref
from collections.abc import Callable
from typing import Any

from pynetdicom.transport import ThreadedAssociationServer

from .listening import Peers

MAX_PDU_BYTES = 1 << 18
_MOST_CONNECTIONS = 8
_HEADER_BYTES = 6
"""Of a PDU: type, nothing, and length in 4 bytes."""
_TYPES = range(1, 8)
_DATA = 4
"""Type of the PDU that carries files."""


class GuardedSocket(socket.socket):
    """A connection of which no more is read than a file of this run can have."""

    most_bytes: Callable[[], int]
    """How many bytes a file may have."""
    told: Callable[[str], None]
    """Called with the reason when the connection is given up."""

    def guard(self, most_bytes: Callable[[], int], told: Callable[[str], None]) -> None:
        """Begin to read along."""
        self.most_bytes, self.told = most_bytes, told
        self._header = bytearray()
        self._left, self._type = 0, 0
        self.over = False
        """Whether a bound was passed."""
        self.accepted = False
        """Whether an association came about."""
        self.spoke = False
        """Whether anything came at all."""
        self.file_bytes = 0
        """Since the last file was whole."""

    def file_ends(self) -> None:
        """A file, or another message, was whole."""
        self.file_bytes = 0

    def hang_up(self) -> None:
        """End the connection for whoever waits for it."""
        with contextlib.suppress(OSError):  # it has ended already
            self.shutdown(socket.SHUT_RDWR)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As the socket's own; nothing more once a bound is passed."""
        if self.over:
            return b""
        came = super().recv(bufsize, flags)
        self.spoke = self.spoke or bool(came)
        if trouble := self._account(came):
            self.over = True
            self.told(trouble)
            return b""
        return came

    def _account(self, came: bytes) -> str | None:
        """Follow the PDUs; why it is too much, if it is."""
        at = 0
        while at < len(came):
            if self._left:
                taken = min(self._left, len(came) - at)
                self._left -= taken
                self.file_bytes += taken if self._type == _DATA else 0
            else:
                taken = min(_HEADER_BYTES - len(self._header), len(came) - at)
                self._header += came[at : at + taken]
                if len(self._header) == _HEADER_BYTES:
                    self._type = self._header[0]
                    self._left = int.from_bytes(self._header[2:], "big")
                    self._header.clear()
                    if self._type not in _TYPES:
                        return "a peer that does not speak DICOM"
                    if self._left > MAX_PDU_BYTES:
                        return f"a peer that promises {self._left} bytes at once"
            at += taken
        if self.file_bytes > self.most_bytes():
            return f"a file of more than {self.most_bytes()} bytes"
        return None


class GuardedServer(ThreadedAssociationServer):
    """pynetdicom's server, for peers that may connect, with guarded connections."""

    daemon_threads = True
    peers: Peers
    most_bytes: Callable[[], int]
    told: Callable[[str], None]
    opened: weakref.WeakSet[GuardedSocket]
    """Connections that may not have been closed yet."""

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """The next connection."""
        connection, place = super().get_request()
        guarded = GuardedSocket(fileno=connection.detach())
        guarded.guard(self.most_bytes, self.told)
        self.opened.add(guarded)
        return guarded, place

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a peer may connect."""
        if not self.peers.admit(client_address[0]):
            self.told("a connection from an address that was not named with --peer")
            return False
        if len(self.active_associations) >= _MOST_CONNECTIONS:
            self.told(f"more than {_MOST_CONNECTIONS} connections at once")
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count what went wrong; the text of the error may quote what was sent."""
        self.told("a connection that broke")

    def shutdown(self) -> None:
        """Stop serving, and give the port back."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()
