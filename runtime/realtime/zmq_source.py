"""Volumes over ZeroMQ, as pyneal's scanner side sends them: a PAIR socket that we bind.

Sender: "hello ...", which is sent back. Then for each volume its header and its bytes, as one
message of two parts or as two, answered with "received volIdx N". A further hello begins another
series. On this machine whoever can connect may send; beyond it a token is required, from which the
keys of ZeroMQ's own encryption are made (`zmq_keys.py`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError
from .allowance import MAX_VOLUME_BYTES, Allowance
from .frame import Frame, series_identity
from .inbox import Inbox
from .listening import Address, Bell, Stopped, cannot_listen
from .source import Arrival, FaultKind, UnreadableVolume
from .zmq_header import MAX_HEADER_BYTES, VolumeHeader, read_header
from .zmq_keys import CurveKeys

_QUEUED = 2
"""Messages that ZeroMQ may hold for us; the sender waits for our answer, so there is one."""
_HELLO_BYTES = 256
_HEARTBEAT_MS = (2_000, 10_000)
"""A peer is asked whether it lives, and given up, so that another may take its place."""
_ZAP = "inproc://zeromq.zap.01"
"""Where ZeroMQ asks whether a client may connect. https://rfc.zeromq.org/spec/27/"""


class ZmqSource:
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

    exhausted = False

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
        self._clock = clock
        self._inbox = Inbox(clock)
        self._frames = _Frames(self._inbox, clock)
        self._bell = Bell()
        self._keys = None if address.local or token is None else CurveKeys.of(token)
        self._open(address)
        self._thread = threading.Thread(target=self._serve, name="zmq-source", daemon=True)
        self._thread.start()

    @property
    def refused(self) -> Counter[str]:
        """How often something was refused, by kind of fault."""
        return self._inbox.refused

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for at most `timeout_s` seconds; what has come, oldest first, possibly nothing."""
        return self._inbox.take(timeout_s)

    def close(self) -> None:
        """End the thread and give the port back."""
        if self._thread.is_alive():
            self._inbox.close()
            self._bell.ring()
            self._thread.join()
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
            raise cannot_listen(address, "'source' zmq", OSError(exc.errno, exc.strerror)) from exc

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


class _Frames:
    """Messages to frames."""

    def __init__(self, inbox: Inbox, clock: Callable[[], float]) -> None:
        self._inbox = inbox
        self._clock = clock
        self._allowance = Allowance()
        self._session = 0
        self._any = False
        self._header: VolumeHeader | None = None
        """Of a volume whose bytes come in a message of their own."""

    def hello(self) -> None:
        """A sender begins: another series, if volumes have come already."""
        self._header = None
        self._session += self._any
        self._any = False

    def take(self, parts: list[memoryview]) -> str | None:
        """Take a message in; the answer that its sender waits for, None if more must come."""
        arrived_s = self._clock()
        header, body = self._header, parts[-1]
        self._header = None
        if len(parts) == 2 or header is None or _another_header(header, body):
            if header is not None:
                self._cut_off(header, 0)
            try:
                header = read_header(bytes(parts[0][: MAX_HEADER_BYTES + 1]), self._allowance.bytes)
            except UnreadableVolume as exc:
                self._inbox.fault(FaultKind.UNREADABLE, str(exc))
                return "refused"
            if len(parts) == 1:
                self._header = header
                return None
        return self._volume(header, body, arrived_s)

    def _volume(self, header: VolumeHeader, body: memoryview, arrived_s: float) -> str:
        if len(body) < header.size_bytes:
            self._cut_off(header, len(body))
            return f"refused volIdx {header.number}"
        if len(body) > header.size_bytes:
            detail = f"{len(body)} bytes where its header promises {header.size_bytes}"
            self._inbox.fault(FaultKind.UNREADABLE, detail, header.number, self._series(header))
            return f"refused volIdx {header.number}"
        data = np.frombuffer(body, header.dtype).reshape(header.shape)
        frame = Frame(
            number=header.number,
            data=data.astype(header.dtype.newbyteorder("="), copy=False),
            affine=header.affine,
            tr_s=header.tr_s,
            series=self._series(header),
            arrived_s=arrived_s,
            acquired_s=header.acquired_s,
        )
        self._any = True
        self._allowance.came(header.size_bytes)
        self._inbox.put(frame)
        return f"received volIdx {header.number}"

    def _cut_off(self, header: VolumeHeader, found: int) -> None:
        detail = f"{found} of {header.size_bytes} bytes"
        self._inbox.fault(FaultKind.TRUNCATED, detail, header.number, self._series(header))

    def _series(self, header: VolumeHeader) -> str:
        if header.series is None:
            return series_identity(f"zmq {self._session}")
        return series_identity(f"zmq series {header.series}")


def _another_header(header: VolumeHeader, body: memoryview) -> bool:
    """Whether a header comes where a volume's bytes should."""
    return len(body) != header.size_bytes and bytes(body[:1]) == b"{"
