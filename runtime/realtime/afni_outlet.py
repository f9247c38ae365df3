"""Motion and confidence as AFNI's real-time receiver takes them (`realtime_receiver.py`).

We connect to the receiver, as AFNI's own plugin does. Once for each attempt at a run:

    ab cd ef ac     hello of version 1: motion and N more values
    N               int32, 7
    13 float32      for every volume, below
    de ad de ad     goodbye

All numbers in the byte order of this machine, as AFNI sends them. Of a volume: shifts towards
superior, left and posterior in millimetres; roll, pitch and yaw in degrees, about axes that point
there. Then of the latest answer: trial, revision, confidence, its signs signal, clip (how similar
in length the decoded CLIP vector is to that of a good volume) and text, and 1 if it is withheld;
-1 for what there is not. Text and pictures cannot go this way. An answer goes with the next volume,
or with the motion of the last one when the run ends. AFNI's registration may state motion with
another sign: it describes how to move a volume back, this how the head has moved.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .address import Address

PORT = 53214
"""Where AFNI's receiver listens unless told otherwise."""
HELLO = bytes([0xAB, 0xCD, 0xEF, 0xAB + 1])
GOODBYE = bytes([0xDE, 0xAD, 0xDE, 0xAD])
SIGNS = ("signal", "clip", "text")
EXTRAS = ("trial", "revision", "confidence", *SIGNS, "withheld")
_NONE = -1.0
_PATIENCE_S = 5.0
"""How long the receiver may take nothing, or not answer."""


class AfniOutlet:
    """Speaks to a receiver.

    Parameters
    ----------
    address : Address
        Where it listens.

    Raises
    ------
    InputError
        Nobody listens there.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._motion = [0.0] * 6
        self._answer = [_NONE] * len(EXTRAS)
        self._told = True
        self._attempt = 0
        self._blocks = 0
        try:
            self._socket = self._connect()
        except OSError as exc:
            raise InputError(
                f"'sink' afni:{address}: no receiver there ({exc.strerror or exc}); start "
                "realtime_receiver.py first"
            ) from exc

    def send(self, message: str) -> None:
        """A volume becomes one block of floats, an answer part of the next one."""
        content = json.loads(message)
        event = content.get("event")
        if event == "volume":
            self._begin(int(content["attempt"]))
            self._motion = as_afni(content["motion"])
            self._block()
        elif event == "answer":
            self._answer, self._told = extras(content), False
        elif event == "end" and not self._told and self._blocks:
            self._block()

    def counts(self) -> dict[str, int]:
        """Blocks that were sent."""
        return {"blocks": self._blocks} if self._blocks else {}

    def close(self) -> None:
        """Say goodbye."""
        with self._socket:
            self._socket.sendall(GOODBYE)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(
            (self._address.host, self._address.port), timeout=_PATIENCE_S
        )
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(HELLO + struct.pack("=i", len(EXTRAS)))
        return connection

    def _begin(self, attempt: int) -> None:
        """A new attempt is a new run to the receiver."""
        if attempt != self._attempt:
            self.close()
            self._socket, self._attempt = self._connect(), attempt
            self._answer, self._told = [_NONE] * len(EXTRAS), True

    def _block(self) -> None:
        floats = [*self._motion, *self._answer]
        self._socket.sendall(struct.pack(f"={len(floats)}f", *floats))
        self._told = True
        self._blocks += 1


def as_afni(motion: list[float]) -> list[float]:
    """Motion in AFNI's order and units.

    Parameters
    ----------
    motion : (6,) float
        Shifts towards right, anterior and superior in millimetres; angles in radians, of turns
        about these axes.

    Examples
    --------
    >>> as_afni([1.0, 2.0, 3.0, 0.0, 0.0, math.pi])
    [3.0, -1.0, -2.0, 180.0, -0.0, -0.0]
    """
    right, anterior, superior, about_right, about_anterior, about_superior = motion
    turns = (about_superior, -about_right, -about_anterior)
    return [superior, -right, -anterior, *map(math.degrees, turns)]


def extras(answer: Mapping[str, Any]) -> list[float]:
    """What an answer can say in floats, in the order of `EXTRAS`."""
    confidence: Mapping[str, float] = answer.get("confidence") or {}
    return [
        float(answer["trial"]),
        float(answer["revision"]),
        confidence.get("value", _NONE),
        *(confidence.get(sign, _NONE) for sign in SIGNS),
        float(bool(answer.get("withheld"))),
    ]
