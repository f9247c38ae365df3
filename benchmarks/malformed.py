"""What is malformed: good headers and frames, changed somewhere; `network_fuzz.py` throws it."""

from __future__ import annotations

import contextlib
import socket

import numpy as np

from scanside.runtime.realtime.volume_writer import WrittenVolume

WAIT_S = 30.0
"""Far longer than anything here takes, even on a busy machine."""
_NUMBERS = [
    *(b"-1", b"0", b"99999999999999999999", b"1e999", b"NaN", b"Infinity", b"null", b"[]", b"{}"),
    *(b"1" * 5000, b"[" * 3000, b"\xff\xfe", b'"', b" ", b"true", b"0x10", b"-0.0", b"\0"),
]


def volume(number: int = 0) -> WrittenVolume:
    """A small volume that is as it should be."""
    data = np.arange(7 * 6 * 5, dtype="i2").reshape(7, 6, 5, order="F") + number
    return WrittenVolume(
        data=data,
        affine=np.diag([2.0, 2.0, 3.0, 1.0]),
        slope=1.0,
        inter=0.0,
        tr_s=1.6,
        number=number,
        series=5,
        acquired_s=1.6 * number,
    )


def changed(good: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with something wrong in them."""
    raw = bytearray(good)
    match rng.integers(6):
        case 0:  # other bytes here and there
            for at in rng.integers(len(raw), size=rng.integers(1, 9)):
                raw[at] = int(rng.integers(256))
        case 1:  # cut off
            del raw[int(rng.integers(len(raw))) :]
        case 2:  # a piece is missing
            at = int(rng.integers(len(raw)))
            del raw[at : at + int(rng.integers(1, 40))]
        case 3:  # a piece is there twice, many times
            at = int(rng.integers(len(raw)))
            raw[at:at] = raw[at : at + int(rng.integers(1, 40))] * int(rng.integers(1, 40))
        case 4:  # a number is another
            every = np.frombuffer(good, "u1")
            digits = np.flatnonzero((every >= ord("0")) & (every <= ord("9")))
            at = int(digits[rng.integers(len(digits))]) if len(digits) else 0
            raw[at : at + 1] = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
        case _:  # nothing of it
            return rng.bytes(int(rng.integers(1, 400)))
    return bytes(raw)


def say(port: int, raw: bytes, *, listen: bool = False) -> None:
    """Connect, say something, and hang up.

    Parameters
    ----------
    port : int
        Of this machine.
    raw : bytes
    listen : bool
        Whether to wait until the other side hangs up.
    """
    # refused or reset is an answer
    with contextlib.suppress(OSError):
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
            connection.sendall(raw)
            if listen:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass


def free_port() -> int:
    """A port that nobody listens at, nor at the one below."""
    while True:
        with socket.socket() as upper, socket.socket() as lower:
            upper.bind(("127.0.0.1", 0))
            port = upper.getsockname()[1]
            with contextlib.suppress(OSError):
                lower.bind(("127.0.0.1", port - 1))
                return port
