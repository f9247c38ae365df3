"""Sinks: what is put is delivered once and in order; no reader can hold up who writes."""

import json
import os
import threading
from pathlib import Path

import pytest

from scanside.runtime.realtime.sinks import JsonLines, Sink, Sinks

WAIT_S = 20.0
"""Far longer than anything here takes, even on a busy machine."""


class Gate:
    """A consumer that takes one message and holds it until it is let go."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.entered, self.open, self.closed = (threading.Event() for _ in range(3))

    def send(self, message: str) -> None:
        self.entered.set()
        assert self.open.wait(WAIT_S)
        self.taken.append(message)

    def close(self) -> None:
        self.closed.set()


class Broken:
    """A consumer that has gone."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def send(self, message: str) -> None:
        raise self.error

    def close(self) -> None:
        raise self.error


def test_messages_are_lines_in_order_and_numbered(tmp_path: Path):
    sinks = Sinks([Sink("file", JsonLines(tmp_path / "out.jsonl"))])
    assert [sinks.put({"trial": n, "text": "círcle\n"}) for n in range(100)] == list(range(100))
    (report,) = sinks.close(WAIT_S)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [{"seq": n, "trial": n, "text": "círcle\n"} for n in range(100)]
    assert (report.sent, report.dropped, report.trouble) == (100, 0, None)


def test_a_slow_consumer_gets_the_newest_and_the_rest_is_counted():
    gate = Gate()
    sink = Sink("slow", gate, capacity=4)
    sink.put("0")
    assert gate.entered.wait(WAIT_S)
    for number in range(1, 1001):  # would never return if putting waited for the consumer
        sink.put(str(number))
    assert (sink.report().dropped, sink.report().waiting) == (996, 5)
    gate.open.set()
    report = sink.close(WAIT_S)
    assert gate.taken == ["0", "997", "998", "999", "1000"]
    assert (report.sent, report.dropped, report.waiting) == (5, 996, 0)
    assert gate.closed.is_set()


def test_a_consumer_that_never_reads_is_given_up_and_told():
    gate = Gate()
    sink = Sink("stuck", gate, capacity=4)
    for number in range(3):
        sink.put(str(number))
    assert gate.entered.wait(WAIT_S)
    report = sink.close(timeout_s=0.01)
    assert report.trouble == "the consumer took nothing for 0.01 s"
    assert (report.sent, report.dropped) == (0, 2)
    sink.put("after the end")
    gate.open.set()
    assert gate.closed.wait(WAIT_S)
    assert sink.report().dropped == 4, "the one that it held, and the one after the end"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),
        (RuntimeError("gone"), "RuntimeError: gone"),
    ],
)
def test_a_dead_consumer_is_told_once_and_everything_goes_on(error: Exception, said: str):
    gate = Gate()
    gate.open.set()
    sinks = Sinks([Sink("dead", Broken(error)), Sink("alive", gate)])
    for number in range(50):
        sinks.put({"trial": number})
    dead, alive = sinks.close(WAIT_S)
    assert (dead.sent, dead.dropped, dead.trouble) == (0, 50, said)
    assert (alive.sent, alive.dropped, alive.trouble) == (50, 0, None)
    assert len(gate.taken) == 50


def test_a_pipe_whose_reader_left_is_a_dead_consumer():
    reading, writing = os.pipe()
    os.close(reading)
    sink = Sink("pipe", JsonLines(writing))
    sink.put("{}")
    report = sink.close(WAIT_S)
    os.close(writing)
    assert (report.dropped, report.trouble) == (1, "Broken pipe")


def test_a_pipe_that_is_full_does_not_hold_up_the_writer():
    reading, writing = os.pipe()
    sink = Sink("pipe", JsonLines(writing), capacity=8)
    for _ in range(400):  # a pipe holds 64 KiB
        sink.put("x" * 1024)
    assert sink.report().dropped >= 400 - 64 - 8 - 1
    os.close(reading)
    sink.close(WAIT_S)
    os.close(writing)


def test_a_message_that_json_cannot_say_is_a_mistake_of_the_caller(tmp_path: Path):
    sinks = Sinks([Sink("file", JsonLines(tmp_path / "out.jsonl"))])
    with pytest.raises(ValueError, match="not JSON compliant"):
        sinks.put({"confidence": float("nan")})
    sinks.close(WAIT_S)


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be written: No such file or directory"):
        JsonLines(tmp_path / "none" / "out.jsonl")
