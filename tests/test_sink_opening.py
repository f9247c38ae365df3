"""Texts that name a sink: what is refused before it is opened, and what a preflight leaves."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.access import Access
from scanside.runtime.realtime.address import Address, resolved_address
from scanside.runtime.realtime.sink_opening import Outgoing, check_sink, open_outlet, try_sink

HERE = Outgoing()
EVERYWHERE = Outgoing(network=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be jsonl:PATH"),
        ("ws", "must be jsonl:PATH"),
        ("ws:", "must be jsonl:PATH"),
        ("tcp:9000", "must be jsonl:PATH"),
        ("ws:0", "must be PORT or HOST:PORT, ports 1 to 65535"),
        ("udp:localhost", "must be PORT or HOST:PORT, ports 1 to 65535"),
        ("udp:127.0.0.1:70000", "must be PORT or HOST:PORT, ports 1 to 65535"),
        ("zmq:127.0.0.1:٣٣", "must be PORT or HOST:PORT, ports 1 to 65535"),
        ("udp:nowhere.invalid:9000", "no host 'nowhere.invalid' is known"),
        ("udp:192.0.2.1:9000", "192.0.2.1 is beyond this machine; say --network"),
        ("zmq:0.0.0.0:9000", "0.0.0.0 is beyond this machine; say --network"),
        ("afni:192.0.2.1", "192.0.2.1 is beyond this machine; say --network"),
        ("ws:[::]:9000", ":: is beyond this machine; say --network"),
        ("jsonl:/nowhere/at/all", "is no folder that can be written"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(text: str, said: str):
    with pytest.raises(InputError, match="'sink'") as caught:
        check_sink(text, HERE)
    assert said in str(caught.value)


def test_beyond_this_machine_only_what_was_asked_for_is_let_through():
    for text in ("udp:192.0.2.1:9000", "zmq:0.0.0.0:9000", "afni:192.0.2.1", "lsl"):
        check_sink(text, EVERYWHERE)
    with pytest.raises(InputError, match="give --tls-certificate"):
        check_sink("ws:0.0.0.0:9000", EVERYWHERE)
    with pytest.raises(InputError, match="give --tls-certificate"):
        check_sink("ws:0.0.0.0:9000", Outgoing(network=True, access=Access(token="x" * 20)))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9000", Address("127.0.0.1", 9000)),
        ("localhost:9000", Address("127.0.0.1", 9000)),
        ("127.8.9.1:9000", Address("127.8.9.1", 9000)),
        ("[::1]:9000", Address("::1", 9000)),
    ],
)
def test_an_address_without_a_host_is_this_machine(text: str, address: Address):
    assert resolved_address(text, text) == address
    assert address.local
    assert str(Address("::1", 9000)) == "[::1]:9000"


def test_a_preflight_opens_and_leaves_nothing_behind(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for text in (f"ws:{port}", f"zmq:{port}", f"udp:{port}"):
        try_sink(text, HERE)
    try_sink(f"files:{tmp_path / 'told'}", HERE)
    try_sink(f"jsonl:{tmp_path / 'told.jsonl'}", HERE)
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", port)):
        for kind in ("ws", "zmq"):
            with pytest.raises(InputError, match="Address already in use; end what uses it"):
                try_sink(f"{kind}:{port}", HERE)


def test_every_kind_can_be_opened(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as receiver, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        afni = receiver.getsockname()[1]
        free.close()
        for text in (f"ws:{port}", f"zmq:{port}", f"udp:{port}", f"afni:127.0.0.1:{afni}"):
            open_outlet(text, HERE).close()
        for text in (f"files:{tmp_path / 'told'}", f"jsonl:{tmp_path / 'told.jsonl'}"):
            open_outlet(text, HERE).close()
