"""Volumes over ZeroMQ, sent as pyneal's scanner side sends them, and what is no such volume."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from scanside.benchmarks.malformed import free_port
from scanside.runtime.errors import InputError
from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.source import Arrival, Fault, FaultKind, UnreadableVolume
from scanside.runtime.realtime.zmq_header import read_header
from scanside.runtime.realtime.zmq_keys import CurveKeys
from scanside.runtime.realtime.zmq_source import ZmqSource

WAIT_MS = 20_000
TOKEN = "a token that nobody guesses"
AFFINE = np.array([[2.0, 0, 0, -10], [0, 2.5, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
MOST = 1 << 20


def header(number: int = 0, **fields: Any) -> dict[str, Any]:
    """As `Siemens_utils.py` of pyneal makes it."""
    made = {
        "volIdx": number,
        "dtype": "float64",
        "shape": (3, 4, 5),
        "affine": json.dumps(AFFINE.tolist()),
        "TR": str(1.5),
    }
    return made | fields


def data(number: int = 0) -> np.ndarray:
    return np.arange(60, dtype=np.float64).reshape(3, 4, 5) + 100 * number


class Scanner:
    """pyneal's scanner side: the calls that it makes, in their order."""

    def __init__(self, port: int, keys: CurveKeys | None = None):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PAIR)
        self.socket.linger, self.socket.rcvtimeo = 0, WAIT_MS
        if keys:
            keys.protect_client(self.socket)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def hello(self) -> None:
        self.socket.send_string("hello from pyneal_scanner ")
        assert self.socket.recv_string() == "hello from pyneal_scanner "

    def send(self, fields: Any, volume: Any) -> str:
        self.socket.send_json(fields, zmq.SNDMORE)
        self.socket.send(volume, flags=0, copy=False, track=False)
        return self.socket.recv_string()

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@pytest.fixture
def source() -> Iterator[ZmqSource]:
    threads = threading.active_count()
    opened = ZmqSource(Address("127.0.0.1", free_port()))
    yield opened
    opened.close()
    opened.close()
    assert threading.active_count() == threads


@pytest.fixture
def scanner(source: ZmqSource) -> Iterator[Scanner]:
    port = int(source._socket.last_endpoint.decode().rpartition(":")[2])
    made = Scanner(port)
    yield made
    made.close()


def take(source: ZmqSource, count: int) -> list[Arrival]:
    came: list[Arrival] = []
    while len(came) < count:
        more = source.poll(WAIT_MS / 1e3)
        assert more, f"nothing more came after {came}"
        came += more
    return came


def test_what_pyneal_sends_is_a_frame(source: ZmqSource, scanner: Scanner):
    scanner.hello()
    for n in (0, 2, 1):
        assert scanner.send(header(n), data(n)) == f"received volIdx {n}"
    frames = take(source, 3)
    for n, frame in zip((0, 2, 1), frames, strict=True):
        assert isinstance(frame, Frame)
        assert (frame.number, frame.tr_s, frame.series) == (n, 1.5, frames[0].series)
        np.testing.assert_array_equal(frame.data, data(n))
        np.testing.assert_array_equal(frame.affine, AFFINE)


def test_another_hello_is_another_series(source: ZmqSource, scanner: Scanner):
    for _ in range(2):
        scanner.hello()
        scanner.hello()  # nothing came between, so this is none
        scanner.send(header(0), data())
    assert len({frame.series for frame in take(source, 2)}) == 2


def test_header_and_volume_may_be_two_messages(source: ZmqSource, scanner: Scanner):
    scanner.socket.send_json(header(4))
    scanner.socket.send(data(4).tobytes())
    assert scanner.socket.recv_string() == "received volIdx 4"
    (frame,) = take(source, 1)
    assert isinstance(frame, Frame)
    np.testing.assert_array_equal(frame.data, data(4))


def test_a_header_where_a_volume_should_be_begins_another(source: ZmqSource, scanner: Scanner):
    scanner.socket.send_json(header(4))
    assert scanner.send(header(5), data(5)) == "received volIdx 5"
    fault, frame = take(source, 2)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.number) == (FaultKind.TRUNCATED, 4)
    assert isinstance(frame, Frame)


@pytest.mark.parametrize(
    ("fields", "volume", "kind", "said"),
    [
        (header(), data()[:2].tobytes(), FaultKind.TRUNCATED, "320 of 480 bytes"),
        (header(), bytes(481), FaultKind.UNREADABLE, "481 bytes where its header promises 480"),
        (header(shape=(3, 4)), b"", FaultKind.UNREADABLE, "a shape that is not"),
        ([1, 2], b"", FaultKind.UNREADABLE, "no JSON object"),
    ],
)
def test_what_does_not_fit_is_refused_and_counted(
    source: ZmqSource, scanner: Scanner, fields: Any, volume: bytes, kind: FaultKind, said: str
):
    assert scanner.send(fields, volume).startswith("refused")
    (fault,) = take(source, 1)
    assert isinstance(fault, Fault)
    assert fault.kind is kind
    assert said in fault.detail
    assert source.refused == {str(kind): 1}
    assert scanner.send(header(7), data(7)) == "received volIdx 7"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"volIdx": -10_000_000}, "a volIdx that is no number from"),
        ({"volIdx": True}, "a volIdx that is no number from"),
        ({"volIdx": "Mustermann"}, "a volIdx that is no number from"),
        ({"shape": [64, 64, 5000]}, "a shape that is no number from 1 to 4096"),
        ({"shape": [64, 64, 2048]}, "promises 67108864 bytes; a volume of this run has at most"),
        ({"dtype": "O"}, "a dtype that is neither"),
        ({"dtype": "i4,i4"}, "a dtype that is neither"),
        ({"affine": "[[1, 2], [3]]"}, "damaged values"),
        ({"affine": json.dumps(np.zeros((4, 4)).tolist())}, "an affine that maps no volume"),
        ({"affine": "[" * 8000}, "damaged values"),
        ({"TR": "soon"}, "damaged values"),
        ({"TR": "1e999"}, "a time that is not finite"),
        ({"series": [1]}, "a series that is neither"),
        ({"note": "x" * 20_000}, "a header of "),
    ],
)
def test_headers_that_make_no_sense(fields: dict[str, Any], said: str):
    with pytest.raises(UnreadableVolume) as caught:
        read_header(json.dumps(header(**fields)).encode(), MOST)
    assert said in str(caught.value)
    assert "Mustermann" not in str(caught.value)


def test_a_missing_field_is_named():
    lacking = header()
    del lacking["affine"]
    with pytest.raises(UnreadableVolume, match="a header without 'affine'"):
        read_header(json.dumps(lacking).encode(), MOST)


@pytest.mark.parametrize("tr", ["1500.0", "1.5", 1500, 1.5])
def test_a_tr_is_in_seconds_or_in_milliseconds(tr: Any):
    assert read_header(json.dumps(header(TR=tr)).encode(), MOST).tr_s == 1.5


def test_garbage_on_the_port_is_counted_and_the_next_sender_is_served(source: ZmqSource):
    port = int(source._socket.last_endpoint.decode().rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as rude:
        # ZeroMQ's greeting, version 3, with a mechanism that there is not
        rude.sendall(b"\xff" + bytes(8) + b"\x7f\3\0" + b"GARBAGE".ljust(20, b"\0") + bytes(32))
        assert take(source, 1)
    scanner = Scanner(port)
    scanner.hello()
    assert scanner.send(header(1), data(1)) == "received volIdx 1"
    scanner.close()
    assert source.refused["unreadable"] >= 1


def test_a_loop_that_falls_behind_loses_nothing(source: ZmqSource, scanner: Scanner):
    for n in range(20):  # more than the inbox holds
        scanner.socket.send_json(header(n), zmq.SNDMORE)
        scanner.socket.send(data(n).tobytes())
    assert [frame.number for frame in take(source, 20)] == list(range(20))


def test_closing_waits_for_nobody():
    source = ZmqSource(Address("127.0.0.1", free_port()))
    port = int(source._socket.last_endpoint.decode().rpartition(":")[2])
    scanner = Scanner(port)
    for n in range(20):  # so that the thread waits for room
        scanner.socket.send_json(header(n), zmq.SNDMORE)
        scanner.socket.send(data(n).tobytes())
    scanner.socket.recv_string()
    source.close()
    scanner.close()
    assert "zmq-source" not in [thread.name for thread in threading.enumerate()]


def test_an_address_in_use_is_one_sentence(source: ZmqSource):
    port = int(source._socket.last_endpoint.decode().rpartition(":")[2])
    with pytest.raises(InputError, match="cannot listen at .* in use"):
        ZmqSource(Address("127.0.0.1", port))


def test_beyond_this_machine_only_who_has_the_token_is_heard():
    port = free_port()
    with pytest.raises(InputError, match="is beyond this machine: give --token-file"):
        ZmqSource(Address("0.0.0.0", port))
    source = ZmqSource(Address("0.0.0.0", port), token=TOKEN)
    try:
        stranger = CurveKeys.of(TOKEN)  # knows where, but has a key of its own
        public, secret = zmq.curve_keypair()
        stranger = CurveKeys(stranger.server_public, b"", public, secret)
        for keys in (None, CurveKeys.of("another token"), stranger):
            refused = Scanner(port, keys)
            refused.socket.send_string("hello")
            before = source.refused["unreadable"]
            while source.refused["unreadable"] == before:
                assert all(isinstance(arrival, Fault) for arrival in source.poll(1.0))
            assert not refused.socket.poll(0)
            refused.close()
        scanner = Scanner(port, CurveKeys.of(TOKEN))
        scanner.hello()
        assert scanner.send(header(3), data(3)) == "received volIdx 3"
        scanner.close()
    finally:
        source.close()
