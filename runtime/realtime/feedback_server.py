"""Feedback over HTTP, for any number of subscribers; what one of them does concerns it alone.

| path | what comes |
|---|---|
| `/stream` | WebSocket: messages as text; with `?pictures=1` each new picture after it as PNG |
| `/events` | server-sent events: messages as data |
| `/latest` | the state of the run, as JSON |
| `/pictures/NAME.png` | a picture, under the path by which a message has named it |

A subscriber first gets the state, a message of the kind `state`. One that takes nothing until its
mailbox is full is dropped; so is one that says much, for nothing that it says is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from .access import Access
from .announced import Announced
from .door import Connection, Door, break_off, hurry
from .latest import Latest
from .mailbox import Mailbox

_MOST_SAID = 4096
"""Bytes of a message that a subscriber may send; it is not read."""
_SAYINGS = 16
"""Frames that a subscriber may send at once, pings included; then one a second."""
_HEARTBEAT_S = 15.0
_PARTING_S = 1.0
"""How long the last messages may take."""
_GONE = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED)


class FeedbackServer:
    """Serves one run. To be made and used in one event loop.

    Parameters
    ----------
    listening : socket
    access : Access
    tls : ssl.SSLContext or None
    announced : Announced
        Pictures; another thread may add to them.
    counts : Counter
        Subscribers, and who was sent away or dropped and why.
    """

    def __init__(
        self,
        listening: socket.socket,
        access: Access,
        tls: ssl.SSLContext | None,
        announced: Announced,
        counts: Counter[str],
    ) -> None:
        self._access, self._announced, self._counts = access, announced, counts
        self._latest = Latest()
        self._subscribers: dict[Mailbox, asyncio.Transport] = {}
        self._server = web.Server(self._answer)
        self._door = Door(listening, self._server, tls, counts)
        self._doorman = asyncio.create_task(self._door.open())

    async def publish(
        self, message: str, content: Mapping[str, Any], pictures: Sequence[bytes]
    ) -> None:
        """Put one message into every mailbox.

        Parameters
        ----------
        message : str
            JSON.
        content : mapping
            The same.
        pictures : sequence of bytes
            PNGs that it is the first to name.
        """
        self._latest.take(content)
        for box, transport in list(self._subscribers.items()):
            items = [message, *(pictures if box.pictures else ())]
            if not all(box.put(item) for item in items):
                self._counts["stalled"] += 1
                self._drop(box, transport)

    async def close(self) -> None:
        """Let subscribers take what waits for them, for a second, then end all connections."""
        self._doorman.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._doorman
        await self._door.close()
        for box, transport in self._subscribers.items():
            hurry(transport, _PARTING_S)
            box.close()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _PARTING_S
        while self._server.connections and loop.time() < until_s:
            await asyncio.sleep(0.01)
        # one that does not read could never be closed in peace
        left = [connection.transport for connection in self._server.connections]
        for transport in (*self._subscribers.values(), *left):
            if isinstance(transport, asyncio.Transport):
                break_off(transport)
        await self._server.shutdown(0.1)

    def hang_up(self) -> None:
        """End what is left of every connection, once the event loop has stopped."""
        self._door.hang_up()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        protocol = request.protocol
        assert isinstance(protocol, Connection)
        protocol.asked = True
        if reason := self._access.refusal(request.headers, request.query):
            self._counts[reason] += 1
            return _refuse(403 if reason.startswith("foreign") else 401, reason)
        if request.method == "GET":
            if request.path == "/stream" and "Upgrade" in request.headers:
                return await self._stream(request, protocol)
            if request.path == "/events":
                return await self._events(request)
            if request.path == "/latest":
                text = self._latest.as_json()
                return self._last(request, web.Response(text=text, content_type="application/json"))
            if picture := self._announced.get(request.path.removeprefix("/")):
                return self._last(request, web.Response(body=picture, content_type="image/png"))
        self._counts["unknown request"] += 1
        return _refuse(404, "there are GET /stream, /events, /latest and /pictures")

    async def _stream(self, request: web.BaseRequest, connection: Connection) -> web.StreamResponse:
        socket_ = web.WebSocketResponse(
            timeout=_PARTING_S,
            autoping=False,
            heartbeat=_HEARTBEAT_S,
            compress=False,
            max_msg_size=_MOST_SAID,
        )
        await socket_.prepare(request)
        connection.subscribed = True
        transport = _transport(request)
        box = self._subscribe(transport, pictures=request.query.get("pictures") == "1")
        writing = asyncio.create_task(_write(socket_, box))
        try:
            if reason := await _listen(socket_):
                self._counts[reason] += 1
                break_off(transport)
        finally:
            self._subscribers.pop(box, None)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        return socket_

    async def _events(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        self._last(request, response)
        await response.prepare(request)
        transport = _transport(request)
        box = self._subscribe(transport, pictures=False)
        try:
            while not transport.is_closing():
                try:
                    item = await asyncio.wait_for(box.get(), _HEARTBEAT_S)
                except TimeoutError:
                    await response.write(b":\n\n")  # fails if nobody is there any more
                    continue
                if item is None:
                    break
                assert isinstance(item, str)
                await response.write(f"data: {item}\n\n".encode())
        except ConnectionError:
            pass
        finally:
            self._subscribers.pop(box, None)
        return response

    def _subscribe(self, transport: asyncio.Transport, *, pictures: bool) -> Mailbox:
        box = Mailbox(pictures=pictures)
        box.put(self._latest.as_json())
        self._subscribers[box] = transport
        self._counts["subscribers"] += 1
        return box

    def _drop(self, box: Mailbox, transport: asyncio.Transport) -> None:
        self._subscribers.pop(box, None)
        box.close()
        break_off(transport)

    def _last(self, request: web.BaseRequest, response: web.StreamResponse) -> Any:
        """The connection ends with this response; a page that knows the token may read it."""
        response.force_close()
        response.headers["X-Content-Type-Options"] = "nosniff"
        if self._access.token is not None and (origin := request.headers.get("Origin")):
            response.headers["Access-Control-Allow-Origin"] = origin
        return response


def _refuse(status: int, reason: str) -> web.Response:
    response = web.Response(status=status, text=f"{reason}\n")
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    response.force_close()
    return response


async def _write(socket_: web.WebSocketResponse, box: Mailbox) -> None:
    with contextlib.suppress(ConnectionError):
        while (item := await box.get()) is not None:
            if isinstance(item, str):
                await socket_.send_str(item)
            else:
                await socket_.send_bytes(item)
        await socket_.close(code=WSCloseCode.GOING_AWAY)


async def _listen(socket_: web.WebSocketResponse) -> str | None:
    """Wait until the subscriber leaves (None), or should be made to (why)."""
    loop = asyncio.get_running_loop()
    credit, at_s = float(_SAYINGS), loop.time()
    while True:
        said = await socket_.receive()
        if said.type in _GONE:
            return None
        if said.type == WSMsgType.ERROR:
            large = getattr(said.data, "code", None) == WSCloseCode.MESSAGE_TOO_BIG
            return "oversized" if large else "garbage"
        now_s = loop.time()
        credit = min(float(_SAYINGS), credit + now_s - at_s) - 1
        at_s = now_s
        if credit < 0:
            return "flooding"
        if said.type == WSMsgType.PING:
            await socket_.pong(said.data)


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    transport = request.transport
    if not isinstance(transport, asyncio.Transport):
        raise ConnectionResetError("it has left")
    return transport
