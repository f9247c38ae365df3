"""The LSL outlet, with a real inlet on this machine."""

import json
import os

import pylsl
import pytest

from scanside.runtime.realtime.lsl_outlet import STREAM_TYPE, LslOutlet, keep_to_this_machine
from scanside.runtime.realtime.sinks import Sink, Sinks

WAIT_S = 30.0
"""Far longer than anything here takes, even on a busy machine."""


@pytest.fixture
def name() -> str:
    """Of a stream that no test beside this one offers."""
    keep_to_this_machine()
    return f"scanside-test-{os.getpid()}"


def test_a_real_inlet_gets_every_answer_once_and_in_order(name: str):
    sinks = Sinks([Sink("lsl", LslOutlet(name))])
    (info,) = pylsl.resolve_byprop("name", name, timeout=WAIT_S)
    assert (info.type(), info.channel_count()) == (STREAM_TYPE, 1)
    inlet = pylsl.StreamInlet(info)
    inlet.open_stream(timeout=WAIT_S)
    for number in range(60):
        sinks.put({"trial": number, "text": "a red círcle"})
    received = []
    while len(received) < 60:
        sample, stamp = inlet.pull_sample(timeout=WAIT_S)
        assert sample is not None, f"only {len(received)} of 60 came"
        assert abs(pylsl.local_clock() - stamp) < WAIT_S
        received.append(json.loads(sample[0]))
    assert inlet.pull_sample(timeout=0.05)[0] is None
    assert received == [{"seq": n, "trial": n, "text": "a red círcle"} for n in range(60)]
    inlet.close_stream()
    (report,) = sinks.close(WAIT_S)
    assert (report.sent, report.dropped, report.trouble) == (60, 0, None)


def test_an_inlet_that_stops_reading_holds_up_nothing(name: str):
    sinks = Sinks([Sink("lsl", LslOutlet(f"{name}-lazy"))])
    (info,) = pylsl.resolve_byprop("name", f"{name}-lazy", timeout=WAIT_S)
    inlet = pylsl.StreamInlet(info)
    inlet.open_stream(timeout=WAIT_S)
    for number in range(3000):
        sinks.put({"trial": number})
    (report,) = sinks.close(WAIT_S)
    assert report.trouble is None
    assert report.sent + report.dropped == 3000


def test_a_stream_needs_a_name():
    with pytest.raises(ValueError, match="'name' must name the LSL stream"):
        LslOutlet("")
