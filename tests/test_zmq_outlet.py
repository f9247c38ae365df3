"""ZeroMQ, with real subscribers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.sinks import Sink, Sinks
from scanside.runtime.realtime.zmq_outlet import ZmqOutlet

WAIT_MS = 30_000


@pytest.fixture
def address() -> Address:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Address(*free.getsockname())


@pytest.fixture
def subscribe(address: Address) -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    context = zmq.Context()
    made: list[zmq.Socket[bytes]] = []

    def make(*topics: str, kind: int = zmq.SUB) -> zmq.Socket[bytes]:
        subscriber = context.socket(kind)
        subscriber.setsockopt(zmq.RCVTIMEO, WAIT_MS)
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.connect(f"tcp://{address}")
        for topic in topics:
            subscriber.setsockopt(zmq.SUBSCRIBE, topic.encode())
        made.append(subscriber)
        return subscriber

    yield make
    for subscriber in made:
        subscriber.close()
    context.term()


def until_subscribed(sinks: Sinks, times: int) -> None:
    """A subscription is heeded with the next message; send some until it is."""
    until = time.monotonic() + WAIT_MS / 1e3
    while sinks.reports()[0].counts.get("subscriptions", 0) < times:
        assert time.monotonic() < until
        sinks.put({"event": "volume", "volume": 0})
        time.sleep(0.01)


def hear(subscriber: zmq.Socket[bytes]) -> tuple[str, dict[str, Any]]:
    topic, message = subscriber.recv_multipart()
    return topic.decode(), json.loads(message)


def test_every_message_comes_once_and_in_order_after_the_state(address, subscribe):
    sinks = Sinks([Sink("zmq", ZmqOutlet(address))])
    everything, answers = subscribe(""), subscribe("answer")
    until_subscribed(sinks, 2)
    first = 1 + sinks.put({"event": "volume", "volume": 1})
    for number in range(100):
        sinks.put({"event": "answer", "trial": number})
    heard: list[tuple[str, dict[str, Any]]] = []
    while not heard or heard[-1][1].get("trial") != 99:
        heard.append(hear(everything))
    assert heard[0][0] == "state"
    assert all(topic == message["event"] for topic, message in heard)
    numbers = [message["seq"] for topic, message in heard if topic != "state"]
    assert numbers == list(range(numbers[0], first + 100))
    assert [hear(answers)[1]["trial"] for _ in range(100)] == list(range(100))
    (report,) = sinks.close()
    assert (report.dropped, report.trouble) == (0, None)


def test_a_subscriber_that_does_not_read_holds_up_nothing(address, subscribe):
    sinks = Sinks([Sink("zmq", ZmqOutlet(address))])
    subscribe("")
    until_subscribed(sinks, 1)
    sent = sinks.reports()[0].sent
    for number in range(5000):
        sinks.put({"event": "token", "text": "x" * 1000, "trial": number})
        while sinks.reports()[0].waiting > 200:
            time.sleep(0.001)
    (report,) = sinks.close(WAIT_MS / 1e3)
    assert report.sent >= sent + 5000
    assert (report.dropped, report.trouble) == (0, None)


def test_what_else_is_said_is_not_kept_and_counted(address, subscribe):
    outlet = ZmqOutlet(address)
    subscribe(*[f"unknown-{n}" for n in range(50)])
    talking = subscribe(kind=zmq.XSUB)
    talking.send(b"nothing that is a subscription")
    with socket.create_connection((address.host, address.port)) as garbage:
        garbage.sendall(b"\x00garbage" * 1000)
    until = time.monotonic() + WAIT_MS / 1e3
    number = 0
    while outlet.counts().get("refused", 0) < 51 and time.monotonic() < until:
        outlet.send(json.dumps({"seq": number, "event": "volume"}))
        number += 1
        time.sleep(0.01)
    assert outlet.counts() == {"refused": 51}
    outlet.close()


def test_an_address_in_use_is_a_sentence(address):
    outlet = ZmqOutlet(address)
    with pytest.raises(InputError, match="cannot listen at .* in use"):
        ZmqOutlet(address)
    outlet.close()
