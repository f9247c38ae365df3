"""A client of the feedback server that behaves in one way, good or bad; `subscribers.py` starts it.

    python benchmarks/subscriber.py reads|stops|dies|floods|garbage PORT

It says one line once it has come, and ends when nobody is served any more: 0, or 1 for one that
reads and has not got every message once and in order.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import sys
import time
from collections.abc import Callable

UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
PING = b"\x89\x80\x00\x00\x00\x00"


def behave(kind: str, port: int) -> int:
    """Be a client until nobody is served any more."""
    ways: dict[str, Callable[[socket.socket], None]] = {
        "stops": stop, "dies": die, "floods": flood, "garbage": rubbish,
    }  # fmt: skip
    if kind == "reads":
        return read(port)
    said = False
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
                if not said:
                    print("here", flush=True)
                    said = True
                ways[kind](connection)
        except ConnectionRefusedError:
            return 0
        except OSError:
            continue  # it was sent away, and comes again


def stop(connection: socket.socket) -> None:
    """Subscribe and leave everything unread, until the other side gives it up."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(UPGRADE)
    while connection.send(PING) and not time.sleep(2.0):
        pass


def die(connection: socket.socket) -> None:
    """Subscribe and go without a word."""
    connection.sendall(UPGRADE)
    connection.recv(64)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.05)


def flood(connection: socket.socket) -> None:
    """Subscribe and send frames without end."""
    connection.sendall(UPGRADE)
    while True:
        connection.sendall(PING * 1000)


def rubbish(connection: socket.socket) -> None:
    """Send what nobody understands."""
    if random.random() < 0.5:
        connection.sendall(UPGRADE)
    connection.sendall(random.randbytes(1 << 16))
    while connection.recv(1 << 16):
        pass


def read(port: int) -> int:
    """Read everything; 1 unless it came once and in order."""
    import aiohttp

    async def main() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{port}/stream") as stream,
        ):
            state = await stream.receive_json()
            print("here", flush=True)
            expected = 0 if state["seq"] is None else state["seq"] + 1
            async for said in stream:
                message = said.json()
                if message["seq"] != expected:
                    return 1
                expected += 1
                if message["event"] == "end":
                    return 0
        return 1

    return asyncio.run(main())


def main() -> int:
    """Behave as the command line says."""
    return behave(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    raise SystemExit(main())
