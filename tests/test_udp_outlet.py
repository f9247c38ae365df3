"""Datagrams, with a real socket on the other end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.sinks import MessageRefused, Sink, Sinks
from scanside.runtime.realtime.udp_outlet import MOST_BYTES, UdpOutlet

WAIT_S = 30.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(WAIT_S)
        yield listening


def outlet_to(listener: socket.socket) -> UdpOutlet:
    return UdpOutlet(Address(*listener.getsockname()))


def test_every_message_is_one_datagram_in_order(listener: socket.socket):
    sinks = Sinks([Sink("udp", outlet_to(listener))])
    for number in range(100):
        sinks.put({"event": "answer", "trial": number, "caption": "a red círcle"})
    (report,) = sinks.close(WAIT_S)
    heard = [json.loads(listener.recv(MOST_BYTES)) for _ in range(100)]
    assert [(m["seq"], m["trial"]) for m in heard] == [(n, n) for n in range(100)]
    assert heard[0]["caption"] == "a red círcle"
    assert (report.sent, report.dropped, report.counts) == (100, 0, {})


def test_a_large_message_goes_without_its_large_parts_and_says_so(listener: socket.socket):
    outlet = outlet_to(listener)
    outlet.send(json.dumps({"seq": 1, "event": "end", "summary": {"notes": "x" * 4000}}))
    outlet.send(
        json.dumps(
            {"seq": 2, "event": "answer", "caption": "a circle", "description": "y" * MOST_BYTES}
        )
    )
    heard = [json.loads(listener.recv(MOST_BYTES)) for _ in range(2)]
    assert heard == [
        {"seq": 1, "event": "end", "shortened": ["summary"]},
        {"seq": 2, "event": "answer", "caption": "a circle", "shortened": ["description"]},
    ]
    assert outlet.counts() == {"shortened": 2}
    outlet.close()


def test_one_that_cannot_be_made_small_is_refused_and_the_next_one_goes(listener: socket.socket):
    sink = Sink("udp", outlet_to(listener))
    for message in ({"seq": 0, "unknown": "x" * 2000}, {"seq": 1}):
        sink.put(json.dumps(message))
    report = sink.close(WAIT_S)
    assert json.loads(listener.recv(MOST_BYTES)) == {"seq": 1}
    assert (report.sent, report.dropped, report.trouble) == (1, 1, None)
    assert report.counts == {"too large": 1}


def test_nobody_listening_is_no_error_and_an_unreachable_network_is_counted():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outlet = UdpOutlet(Address("127.0.0.1", port))
    for _ in range(3):
        outlet.send("{}")
    outlet.close()
    unreachable = UdpOutlet(Address("255.255.255.255", 9))  # broadcast is not allowed us
    with pytest.raises(MessageRefused):
        unreachable.send("{}")
    assert unreachable.counts() == {"network unreachable": 1}
    unreachable.close()
