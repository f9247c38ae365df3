"""Malformed frames and requests, thrown at the sinks that listen; `network_fuzz.py` runs it."""

from __future__ import annotations

import json
import socket
import time

import numpy as np
import zmq

from scanside.benchmarks.malformed import WAIT_S, changed, free_port, say
from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.ws_outlet import WsOutlet
from scanside.runtime.realtime.zmq_outlet import ZmqOutlet

HERE = "127.0.0.1"
UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_FRAME = b"\x81\x85\x00\x00\x00\x00hello"
"""A text frame of WebSocket, masked with zeros."""
_ANSWER = json.dumps({"seq": 0, "event": "answer", "caption": "that was all"})
_FINE = ("subscribers",)
"""What the sink counts besides those whom it refused."""


def fuzz_ws(count: int, seed: int = 0) -> dict[str, int]:
    """Requests, and frames after a whole request; then somebody who subscribes and is served.

    The door lets five in a second, so this is slow on purpose.
    """
    rng = np.random.default_rng(seed)
    outlet = WsOutlet(Address(HERE, 0))
    try:
        for turn in range(count):
            raw = changed(UPGRADE, rng)
            if turn % 2:
                raw = UPGRADE + changed(_FRAME * 3, rng)
            say(outlet.port, raw, listen=True)
        with socket.create_connection((HERE, outlet.port), WAIT_S) as subscriber:
            subscriber.sendall(UPGRADE)
            heard = b""
            while b'"state"' not in heard:
                heard += _more(subscriber)
            outlet.send(_ANSWER)
            while _ANSWER.encode() not in heard:
                heard += _more(subscriber)
        refused = sum(n for what, n in outlet.counts().items() if what not in _FINE)
        return {"sent": count, "refused": refused}
    finally:
        outlet.close()


def fuzz_published(count: int, seed: int = 0) -> dict[str, int]:
    """Subscriptions over ZeroMQ, and bytes that are none of its protocol."""
    rng = np.random.default_rng(seed)
    address = Address(HERE, free_port())
    outlet = ZmqOutlet(address)
    context = zmq.Context()
    subscriber = context.socket(zmq.XSUB)
    subscriber.linger = 0
    try:
        subscriber.connect(f"tcp://{address}")
        for turn in range(count):
            if turn % 16 == 15:
                say(address.port, rng.bytes(int(rng.integers(1, 200))))
            subscriber.send(changed(b"\x01answer1", rng)[:60])
            if turn % 8 == 0:
                outlet.send(_ANSWER)
        subscriber.send(b"\x01answer")
        deadline_s = time.monotonic() + WAIT_S
        while not (subscriber.poll(20) and subscriber.recv_multipart()[1:] == [_ANSWER.encode()]):
            outlet.send(_ANSWER)
            if time.monotonic() > deadline_s:
                raise AssertionError("nothing is published after what was malformed")
        return {"sent": count, "refused": outlet.counts().get("refused", 0)}
    finally:
        subscriber.close()
        context.term()
        outlet.close()


def _more(connection: socket.socket) -> bytes:
    came = connection.recv(1 << 16)
    if not came:
        raise AssertionError("a good subscriber is sent away after what was malformed")
    return came
