"""Lets connections in: not faster, and not more of them, than the run beside it can bear.

Whoever is let in speaks HTTP, and TLS before if there is a certificate; what speaks anything else,
or says nothing, is sent away and counted. What waits outside waits in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections import Counter
from typing import Any

from aiohttp import web

from .address import Address
from .listening import listen

_RATE_HZ = 5.0
"""Connections a second; each takes milliseconds of this process, which computes meanwhile."""
_BURST = 20
_APART_S = 0.03
"""Between two of them, also in a burst: a volume that is being taken in meets one at most."""
_MOST_OPEN = 64
_BACKLOG = 32
_SILENT_S = 5.0
"""How long one may take for its request, or for TLS."""
_MOST_LINE = 4096
"""Bytes of a line of a request."""
_MOST_HEADERS = 64
_SEND_BUFFER = 1 << 17
"""Bytes that the kernel keeps for one subscriber, so that one who stops reading is noticed soon."""
_MOUTHFUL = 1 << 12
"""Bytes of one that are parsed at a time; who parses holds the interpreter, and a volume waits."""
_SIP = 64
"""The same of a subscriber, who may say little: a flood is noticed after some frames of six bytes,
and what was parsed before that is no work for Python's collector."""
_END_OF_HEAD = b"\r\n\r\n"
_LATER_S = 0.005
_NO_LINGER = struct.pack("ii", 1, 0)
_NO_LOG = logging.getLogger("scanside.silent")
_NO_LOG.addHandler(logging.NullHandler())
_NO_LOG.propagate = False
_NO_LOG.setLevel(logging.CRITICAL + 1)
_NOT_TLS = ("HTTP_REQUEST", "WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "UNKNOWN_PROTOCOL")


def open_door(address: Address) -> socket.socket:
    """A socket that listens; an InputError if the address is in use or not of this machine."""
    listening = listen(address, "'sink' ws", _BACKLOG)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MOUTHFUL)
    listening.setblocking(False)
    return listening


def break_off(transport: asyncio.Transport) -> None:
    """End a connection at once, and what waits in the kernel for the other side with it."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):  # it has ended already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def hurry(transport: asyncio.Transport, patience_s: float) -> None:
    """Have the kernel break a connection off, if what was sent is not taken for so long.

    It does so also after the connection was closed; where it cannot (Linux can), it offers the rest
    for minutes to one who does not read.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):  # it has ended already
            patience_ms = int(patience_s * 1e3)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)


class Connection(web.RequestHandler):
    """One connection; counts what is no HTTP, and takes what one says a mouthful at a time.

    Attributes
    ----------
    asked : bool
        There was a request, or what should have been one.
    subscribed : bool
        It is answered by a WebSocket, which counts what is said; until then no more is taken.
    """

    __slots__ = ("_rest", "_taken", "asked", "counts", "subscribed")

    def __init__(self, server: web.Server, counts: Counter[str]) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=0.0,
            lingering_time=0.0,
            max_line_size=_MOST_LINE,
            max_field_size=_MOST_LINE,
            max_headers=_MOST_HEADERS,
            read_bufsize=_MOUTHFUL,
            logger=_NO_LOG,
            access_log=_NO_LOG,  # a request may hold the token
        )
        self.counts = counts
        self.asked = self.subscribed = False
        self._rest = self._taken = b""

    def data_received(self, data: bytes) -> None:
        """Called by the transport."""
        self._rest += data
        self._take()

    def _take(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            self._rest = b""
        elif self.asked and not self.subscribed:
            transport.pause_reading()
            asyncio.get_running_loop().call_later(_LATER_S, self._take)
        else:
            size = _SIP if self.subscribed else _MOUTHFUL
            seen = self._taken + self._rest[:size]  # the end may have come in pieces
            head = -1 if self.subscribed else seen.find(_END_OF_HEAD)
            if head >= 0:  # what comes after a request is for whoever answers it
                size = head + len(_END_OF_HEAD) - len(self._taken)
            mouthful, self._rest = self._rest[:size], self._rest[size:]
            self._taken = b"" if head >= 0 else (self._taken + mouthful)[1 - len(_END_OF_HEAD) :]
            super().data_received(mouthful)
            if self._rest:
                transport.pause_reading()
                later_s = _LATER_S if head >= 0 else 0.0
                asyncio.get_running_loop().call_later(later_s, self._take)
            else:
                transport.resume_reading()

    def handle_error(self, *args: Any, **kwargs: Any) -> web.StreamResponse:
        """What cannot be understood."""
        self.asked = True
        self.counts["garbage"] += 1
        return super().handle_error(*args, **kwargs)


class Door:
    """Accepts connections for a server.

    Parameters
    ----------
    listening : socket
    server : web.Server
    tls : ssl.SSLContext or None
    counts : Counter
        Where those that are sent away are counted.
    """

    def __init__(
        self,
        listening: socket.socket,
        server: web.Server,
        tls: ssl.SSLContext | None,
        counts: Counter[str],
    ) -> None:
        self._listening, self._server, self._tls, self._counts = listening, server, tls, counts
        self._arriving: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        """Of all connections; of those that have ended some are left until the next one comes."""

    async def open(self) -> None:
        """Let in whoever comes, until cancelled."""
        loop = asyncio.get_running_loop()
        credit, at_s = float(_BURST), loop.time()
        while True:
            connection, _ = await loop.sock_accept(self._listening)
            self._sockets = [held for held in self._sockets if held.fileno() >= 0]
            now_s = loop.time()
            credit = min(float(_BURST), credit + _RATE_HZ * (now_s - at_s)) - 1
            at_s = now_s
            if len(self._sockets) >= _MOST_OPEN:
                self._counts["too many"] += 1
                connection.close()
            else:
                self._sockets.append(connection)
                task = asyncio.create_task(self._let_in(connection))
                self._arriving.add(task)
                task.add_done_callback(self._arriving.discard)
            await asyncio.sleep(max(_APART_S, -credit / _RATE_HZ))

    async def close(self) -> None:
        """Let nobody in any more."""
        self._listening.close()
        for task in self._arriving:
            task.cancel()
        await asyncio.gather(*self._arriving, return_exceptions=True)

    def hang_up(self) -> None:
        """End what is left of every connection, once the event loop has stopped."""
        for held in self._sockets:
            held.close()

    async def _let_in(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.connect_accepted_socket(
                lambda: Connection(self._server, self._counts),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=_SILENT_S if self._tls else None,
            )
        except ssl.SSLError as exc:
            self._counts["plain text" if exc.reason in _NOT_TLS else "TLS failed"] += 1
        except OSError:  # it left, or said nothing
            self._counts["TLS failed" if self._tls else "left at once"] += 1
        else:
            assert isinstance(protocol, Connection)
            await asyncio.sleep(_SILENT_S)
            if not protocol.asked and not transport.is_closing():
                self._counts["silent"] += 1
                break_off(transport)
