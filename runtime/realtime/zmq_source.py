"""Volumes over ZeroMQ, as pyneal's scanner side sends them: a PAIR socket that we bind.

Sender: "hello ...", which is sent back. Then for each volume its header and its bytes, as one
message of two parts or as two, answered with "received volIdx N". A further hello begins another
series. On this machine whoever can connect may send; beyond it a token is required, from which the
keys of ZeroMQ's own encryption are made (`zmq_keys.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import InputError
from .address import Address
from .allowance import MAX_VOLUME_BYTES
from .bell import Bell, Stopped
from .listening import cannot_listen
from .listening_source import ListeningSource
from .source import FaultKind
from .zmq_frames import ZmqFrames
from .zmq_keys import CurveKeys

_QUEUED = 2
"""Messages that ZeroMQ may hold for us; the sender waits for our answer, so there is one."""
_HELLO_BYTES = 256
_HEARTBEAT_MS = (2_000, 10_000)
"""A peer is asked whether it lives, and given up, so that another may take its place."""
_ZAP = "inproc://zeromq.zap.01"
"""Where ZeroMQ asks whether a client may connect. https://rfc.zeromq.org/spec/27/"""


class ZmqSource(ListeningSource):
    """Frames that are sent to a PAIR socket.

    Parameters
    ----------
    address : Address
        Where to bind.
    token : str, optional
        Shared with the sender; required beyond this machine, and not used on it.
    clock : callable
        Seconds.

    Raises
    ------
    InputError
        The address is in use, or is beyond this machine and there is no token.
    """

    def __init__(
        self,
        address: Address,
        *,
        token: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not address.local and token is None:
            raise InputError(
                f"'source' zmq:{address} is beyond this machine: give --token-file, or set "
                "SCANSIDE_TOKEN"
            )
        super().__init__(clock)
        self._frames = ZmqFrames(self._inbox, self._allowance, clock)
        self._bell = Bell()
        self._keys = None if address.local or token is None else CurveKeys.of(token)
        self._open(address)
        self._begin(self._serve, "zmq-source")

    def _stop(self) -> None:
        self._bell.ring()

    def _stopped(self) -> None:
        self._context.term()
        self._bell.close()

    def _open(self, address: Address) -> None:
        import zmq

        self._context = zmq.Context()
        self._socket: Any = self._context.socket(zmq.PAIR)
        self._socket.ipv6 = ":" in address.host
        self._socket.linger = 0
        self._socket.rcvhwm = self._socket.sndhwm = _QUEUED
        self._socket.maxmsgsize = MAX_VOLUME_BYTES
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = _HEARTBEAT_MS
        self._monitor: Any = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        self._zap: Any = self._context.socket(zmq.REP)
        self._zap.linger = 0
        try:
            if self._keys:
                self._zap.bind(_ZAP)
                self._keys.protect_server(self._socket)
            self._socket.bind(f"tcp://{address}")
        except zmq.ZMQError as exc:
            self._shut()
            self._context.term()
            self._bell.close()
            raise cannot_listen(address, "'source' zmq", exc.errno) from exc

    def _shut(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        for opened in (self._zap, self._socket):
            opened.close(linger=0)

    def _serve(self) -> None:
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        poller = zmq.Poller()
        for one in (self._socket, self._monitor, self._zap, self._bell.fileno()):
            poller.register(one, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._bell.fileno() in ready:
                    raise Stopped
                if self._zap in ready:
                    self._judge(self._zap.recv_multipart())
                if self._monitor in ready:
                    recv_monitor_message(self._monitor)
                    self._inbox.fault(
                        FaultKind.UNREADABLE,
                        "a peer that does not speak ZeroMQ's PAIR"
                        if not self._keys
                        else "a peer without the token",
                    )
                if self._socket in ready:
                    self._take(self._socket.recv_multipart(copy=False))
        except Stopped:
            pass
        finally:
            self._shut()

    def _judge(self, request: list[bytes]) -> None:
        """Answer ZeroMQ's question whether a client may connect."""
        version, asked = request[:2]
        known = self._keys is not None and request[5:6] == [b"CURVE"]
        if known and self._keys:
            from zmq.utils import z85

            known = z85.encode(request[6]) == self._keys.client_public
        status = [b"200", b"OK"] if known else [b"400", b"no"]
        self._zap.send_multipart([version, asked, *status, b"", b""])

    def _take(self, parts: list[Any]) -> None:
        import zmq

        if len(parts) > 2:
            self._inbox.fault(FaultKind.UNREADABLE, f"a message of {len(parts)} parts, not 2")
            answer = "refused"
        elif len(parts) == 1 and (answer := _hello(parts[0])):
            self._frames.hello()
        else:
            answer = self._frames.take([part.buffer for part in parts])
        if answer:
            try:
                self._socket.send_string(answer, zmq.NOBLOCK)
            except zmq.Again:  # a sender that does not read answers, or is gone
                pass


def _hello(part: Any) -> str | None:
    """A greeting's text."""
    if len(part.buffer) > _HELLO_BYTES:
        return None
    raw = bytes(part.buffer)
    return raw.decode() if raw.isascii() and raw.lower().startswith(b"hello") else None
