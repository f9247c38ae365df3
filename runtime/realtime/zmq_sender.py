"""Sends volumes over ZeroMQ as pyneal's scanner side does; the other end of `zmq_source.py`."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from ..errors import InputError
from .address import Address
from .faults import Delivery, Mishap
from .volume_writer import WrittenVolume
from .zmq_header import header_bytes
from .zmq_keys import CurveKeys

_HELLO = "hello from scanside"
_HELLO_MS = 500
"""Until hello is said again."""
_ANSWER_S = 10.0
"""The longest that a receiver may take to answer."""


class ZmqSender:
    """A PAIR socket that is connected to a receiver.

    Parameters
    ----------
    address : Address
        Of the receiver.
    token : str, optional
        Required beyond this machine.
    answer_s : float
        Seconds to wait for each answer.

    Raises
    ------
    InputError
        Nobody answers, or no token for another machine.
    """

    name = "zmq"
    mishaps = frozenset(Mishap)

    def __init__(
        self, address: Address, *, token: str | None = None, answer_s: float = _ANSWER_S
    ) -> None:
        import zmq

        if not address.local and token is None:
            raise InputError(f"zmq:{address} is beyond this machine; give --token-file")
        self._address = address
        self._context = zmq.Context()
        self._socket: Any = self._context.socket(zmq.PAIR)
        self._socket.ipv6 = ":" in address.host
        self._socket.linger = 0
        if token is not None and not address.local:
            CurveKeys.of(token).protect_client(self._socket)
        self._answer_ms = int(answer_s * 1e3)
        self._socket.sndtimeo = self._answer_ms
        self._greet()

    def send(self, volume: WrittenVolume, delivery: Delivery) -> None:
        """Send a volume, whole or not as its delivery says; an InputError if nobody answers."""
        body = np.ascontiguousarray(_scaled(volume)).tobytes()
        if delivery.content == "truncated":
            body = body[: max(1, int(len(body) * delivery.amount))]
        self._ask([header_bytes(volume), body])

    def close(self) -> None:
        """Hang up; every volume has been answered by now."""
        self._socket.close(linger=0)
        self._context.term()

    def _greet(self) -> None:
        """Say hello until it is answered.

        A receiver that still has another sender takes our connection and hears nothing of it, so
        each time there is a new one.
        """
        import zmq

        place = f"tcp://{self._address}"
        for _ in range(max(self._answer_ms // _HELLO_MS, 1)):
            self._socket.connect(place)
            with contextlib.suppress(zmq.Again):
                self._socket.send_string(_HELLO, zmq.NOBLOCK)
            if self._socket.poll(_HELLO_MS):
                self._socket.recv()
                return
            self._socket.disconnect(place)
        self.close()
        raise self._nobody()

    def _ask(self, parts: list[bytes]) -> None:
        import zmq

        try:
            self._socket.send_multipart(parts)
        except zmq.Again as exc:
            raise self._nobody() from exc
        if not self._socket.poll(self._answer_ms):
            raise self._nobody()
        self._socket.recv()

    def _nobody(self) -> InputError:
        return InputError(
            f"nobody answers at zmq:{self._address}; start the receiver, with the same token"
        )


def _scaled(volume: WrittenVolume) -> np.ndarray[Any, Any]:
    """Intensities, for the header has no place for a scale; as stored if there is none."""
    if (volume.slope, volume.inter) == (1.0, 0.0):
        return volume.data
    return volume.data * np.float64(volume.slope) + volume.inter
