"""Messages over ZeroMQ to frames: a header and its volume's bytes, in one message or in two."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .allowance import Allowance
from .frame import Frame, series_identity
from .inbox import Inbox
from .source import FaultKind, UnreadableVolume
from .zmq_header import MAX_HEADER_BYTES, VolumeHeader, read_header


class ZmqFrames:
    """What a sender has said so far.

    Parameters
    ----------
    inbox : Inbox
        Where frames and faults go.
    allowance : Allowance
        How large a volume may be.
    clock : callable
        Seconds.
    """

    def __init__(self, inbox: Inbox, allowance: Allowance, clock: Callable[[], float]) -> None:
        self._inbox = inbox
        self._clock = clock
        self._allowance = allowance
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
