"""AFNI's receiver protocol: a receiver written from its description reads what we send.

The description is the help of AFNI's realtime_receiver.py: hello 0xabcdefab plus the version, for
version 1 an int32 N, then 6 + N float32 for each TR, and 0xdeaddead at the end.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import threading

import pytest

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.afni_outlet import EXTRAS, AfniOutlet
from scanside.runtime.realtime.sinks import Sink, Sinks

WAIT_S = 30.0


class Receiver:
    """Takes runs as AFNI's program does: a connection each, 4 bytes looked at first."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.settimeout(WAIT_S)
        self.address = Address(*self.listening.getsockname())
        self.runs: list[list[tuple[float, ...]]] = []
        self.trouble: list[str] = []
        self._thread = threading.Thread(target=self._serve)

    def take(self, runs: int) -> None:
        self._expected = runs
        self._thread.start()

    def close(self) -> None:
        self._thread.join(WAIT_S)
        self.listening.close()

    def _serve(self) -> None:
        for _ in range(self._expected):
            connection, _ = self.listening.accept()
            with connection:
                connection.settimeout(WAIT_S)
                self._run(connection)

    def _run(self, connection: socket.socket) -> None:
        hello = connection.recv(4, socket.MSG_WAITALL)
        version = hello[3] - 0xAB
        if hello[:3] != b"\xab\xcd\xef" or version != 1:
            self.trouble.append(f"hello {hello!r}")
            return
        (more,) = struct.unpack("i", connection.recv(4, socket.MSG_WAITALL))
        blocks: list[tuple[float, ...]] = []
        while True:
            ahead = connection.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL)
            if ahead[:3] == b"\xde\xad\xde":
                break
            data = connection.recv(4 * (6 + more), socket.MSG_WAITALL)
            if len(data) != 4 * (6 + more):
                self.trouble.append(f"{len(data)} bytes")
                break
            blocks.append(struct.unpack(f"{6 + more}f", data))
        self.runs.append(blocks)


def volume(number: int, attempt: int = 0) -> dict[str, object]:
    motion = [0.1, 0.2, 0.3, math.radians(1), math.radians(2), math.radians(number)]
    return {"event": "volume", "attempt": attempt, "volume": number, "motion": motion}


def answer(trial: int, **more: object) -> dict[str, object]:
    confidence = {"value": 0.5, "signal": 0.25, "clip": 0.75}
    return {"event": "answer", "trial": trial, "revision": 1, "confidence": confidence, **more}


def test_every_volume_is_a_block_with_the_latest_answer_in_it():
    receiver = Receiver()
    receiver.take(1)
    sinks = Sinks([Sink("afni", AfniOutlet(receiver.address))])
    sinks.put(volume(0))
    sinks.put({"event": "token", "text": "left out"})
    sinks.put(answer(7, withheld=True))
    for number in range(1, 50):
        sinks.put(volume(number))
    sinks.put(answer(8))
    sinks.put({"event": "end"})
    (report,) = sinks.close(WAIT_S)
    receiver.close()
    ((first, second, *_, last),) = receiver.runs
    assert len(receiver.runs[0]) == 51
    none, known, late = (
        (-1.0,) * 6 + (0.0,),
        (7.0, 1.0, 0.5, 0.25, 0.75, -1.0, 1.0),
        (8.0, 1.0, 0.5, 0.25, 0.75, -1.0, 0.0),
    )
    assert first == pytest.approx((0.3, -0.1, -0.2, 0.0, -1.0, -2.0, *none[:6], -1.0), abs=1e-6)
    assert second == pytest.approx((0.3, -0.1, -0.2, 1.0, -1.0, -2.0, *known), abs=1e-6)
    assert last == pytest.approx((0.3, -0.1, -0.2, 49.0, -1.0, -2.0, *late), abs=1e-6)
    assert [round(block[3]) for block in receiver.runs[0]] == [*range(50), 49]
    assert len(EXTRAS) == 7
    assert (report.trouble, receiver.trouble) == (None, [])
    assert report.counts == {"blocks": 51}


def test_the_bytes_are_those_of_the_description():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        outlet = AfniOutlet(Address(*listening.getsockname()))
        connection, _ = listening.accept()
        outlet.send(json.dumps(volume(3)))
        outlet.close()
        with connection, connection.makefile("rb") as stream:
            sent = stream.read()
    assert sent[:4].hex() == "abcdefac"
    assert sent[4:8] == struct.pack("i", 7)
    assert sent[-4:].hex() == "deaddead"
    assert len(sent) == 4 + 4 + 4 * 13 + 4


def test_a_second_attempt_is_a_run_of_its_own():
    receiver = Receiver()
    receiver.take(2)
    sinks = Sinks([Sink("afni", AfniOutlet(receiver.address))])
    for number in range(5):
        sinks.put(volume(number))
    sinks.put(answer(1))
    for number in range(3):
        sinks.put(volume(number, attempt=1))
    sinks.close(WAIT_S)
    receiver.close()
    assert [len(blocks) for blocks in receiver.runs] == [5, 3]
    assert receiver.runs[1][0][6] == -1.0


def test_a_receiver_that_dies_ends_the_sink_and_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sink = Sink("afni", AfniOutlet(Address(*listening.getsockname())), capacity=10_000)
        listening.accept()[0].close()
    for number in range(5000):
        sink.put(json.dumps(volume(number)))
    report = sink.close(WAIT_S)
    assert report.trouble in ("Broken pipe", "Connection reset by peer")
    assert report.sent + report.dropped == 5000


def test_nobody_listening_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = Address(*free.getsockname())
    with pytest.raises(InputError, match=r"no receiver there .*start realtime_receiver.py first"):
        AfniOutlet(address)
