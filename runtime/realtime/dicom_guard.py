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

from pynetdicom.fsm import StateMachine
from pynetdicom.transport import ThreadedAssociationServer

from .listening import Peers

MAX_PDU_BYTES = 1 << 18
_MOST_CONNECTIONS = 8
_HEADER_BYTES = 6
"""Of a PDU: type, nothing, and length in 4 bytes."""
_TYPES = range(1, 8)
_REFUSAL = b"\3"
"""First byte of the PDU that refuses an association."""
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
        self.refused = False
        """Whether we answered that it may not, for example because of too many others."""
        self.spoke = False
        """Whether anything came at all."""
        self.file_bytes = 0
        """Since the last file was whole."""

    def file_ends(self) -> None:
        """A file, or another message, was whole."""
        self.file_bytes = 0

    def shutdown(self, how: int, /) -> None:
        """As the socket's own; also of a connection that the peer has ended.

        pynetdicom closes a socket only if this raised nothing.
        """
        with contextlib.suppress(OSError):
            super().shutdown(how)

    def hang_up(self) -> None:
        """End the connection for whoever waits for it."""
        self.shutdown(socket.SHUT_RDWR)

    def give_up(self, trouble: str) -> None:
        """Pass nothing on any more, and tell why, once."""
        if not self.over:
            self.over = True
            self.told(trouble)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As the socket's own; nothing more once a bound is passed."""
        if self.over:
            return b""
        came = super().recv(bufsize, flags)
        self.spoke = self.spoke or bool(came)
        if trouble := self._account(came):
            self.give_up(trouble)
            return b""
        return came

    def send(self, data: Any, flags: int = 0, /) -> int:
        """As the socket's own; an answer that refuses an association is noted before it is out."""
        self.refused = self.refused or bytes(data[:1]) == _REFUSAL
        return super().send(data, flags)

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


class GuardedStates(StateMachine):
    """pynetdicom's state machine; what it cannot do ends the connection, and its thread in peace.

    A peer that talks on before it is answered crosses our answer: at the first PDU that is wrong
    the machine begins to hang up, and is then told to accept, for which it has no state.
    """

    def do_action(self, event: str) -> None:
        """As the machine's own, without its errors, whose text may quote what was sent."""
        try:
            super().do_action(event)
        except Exception:  # of a library that met what it does not know
            if guard := guard_of(self.dul.assoc):
                guard.give_up("a connection that broke")
                guard.hang_up()
            self.dul.kill_dul()
            wake(self.dul.assoc)


def guard_of(association: Any) -> Any:
    """Its connection, None once that has ended."""
    return getattr(association.dul.socket, "socket", None)


def wake(association: Any) -> None:
    """Let a thread go on that waits for a peer to ask for something."""
    association.dul.to_user_queue.put(None)


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
