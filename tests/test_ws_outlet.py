"""WebSocket, server-sent events, state and pictures, with real clients, good and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import numpy as np
import pytest

from scanside.runtime.errors import InputError
from scanside.runtime.png import write_png
from scanside.runtime.realtime.access import Access
from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.sinks import Sink, SinkReport, Sinks
from scanside.runtime.realtime.ws_outlet import WsOutlet

WAIT_S = 30.0
"""Far longer than anything here takes, even on a busy machine."""
HERE = "127.0.0.1"
TOKEN = "a-token-of-the-test-0123456789"
UPGRADE = (
    "GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Served:
    """A sink that serves, and what a client needs to know of it."""

    def __init__(self, access: Access, folder: Path | None) -> None:
        self.outlet = WsOutlet(Address(HERE, 0), access, folder)
        self.port = self.outlet.port
        self.sinks = Sinks([Sink("ws", self.outlet)])
        scheme = "https" if access.certificate else "http"
        self.url = f"{scheme}://{HERE}:{self.port}"

    def put(self, first: int, count: int, **more: Any) -> None:
        for number in range(first, first + count):
            self.sinks.put({"event": "answer", "trial": number, **more})

    def counted(self, what: str, times: int = 1) -> bool:
        """Wait until something was counted."""
        until = time.monotonic() + WAIT_S
        while self.outlet.counts().get(what, 0) < times and time.monotonic() < until:
            time.sleep(0.01)
        return self.outlet.counts().get(what, 0) == times

    def rude(self, said: str | bytes = UPGRADE) -> socket.socket:
        """A connection on which anything is said."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(WAIT_S)
        connection.connect((HERE, self.port))
        connection.sendall(said.encode() if isinstance(said, str) else said)
        return connection

    def close(self) -> SinkReport:
        (report,) = self.sinks.close(WAIT_S)
        return report


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def make(folder: Path | None = None, **access: Any) -> Served:
        made.append(Served(Access(**access), folder))
        return made[-1]

    yield make
    for served in made:
        served.close()


def run(client: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
    """Run a client to its end."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.wait_for(client(session), 4 * WAIT_S)

    asyncio.run(main())


async def hear(socket_: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, Any]]:
    return [json.loads(await socket_.receive_str(timeout=WAIT_S)) for _ in range(count)]


def test_every_message_comes_once_and_in_order_and_a_late_subscriber_gets_the_state_first(serve):
    served = serve()

    async def client(session: aiohttp.ClientSession) -> None:
        early = await session.ws_connect(f"{served.url}/stream")
        assert await hear(early, 1) == [{"event": "state", "seq": None}]
        served.put(0, 200)
        heard = await hear(early, 200)
        late = await session.ws_connect(f"{served.url}/stream")
        (state,) = await hear(late, 1)
        assert state == {"event": "state", "seq": 199, "answer": heard[-1]}
        served.put(200, 50)
        assert await hear(late, 50) == (again := await hear(early, 50))
        assert [m["trial"] for m in heard + again] == list(range(250))
        assert [m["seq"] for m in heard + again] == list(range(250))
        served.sinks.put({"event": "end", "summary": {}})
        closing = asyncio.to_thread(served.close)
        ending = asyncio.create_task(closing)
        for socket_ in (early, late):
            assert [m["event"] for m in await hear(socket_, 1)] == ["end"]
            assert (await socket_.receive()).data == aiohttp.WSCloseCode.GOING_AWAY
        report = await ending
        assert (report.sent, report.dropped, report.trouble) == (251, 0, None)
        assert report.counts == {"subscribers": 2}

    run(client)


def test_server_sent_events_are_the_same_messages(serve):
    served = serve()

    async def client(session: aiohttp.ClientSession) -> None:
        served.put(0, 3)
        assert await asyncio.to_thread(lambda: served.sinks.reports()[0].trouble) is None
        async with session.get(f"{served.url}/events") as response:
            assert response.content_type == "text/event-stream"
            heard: list[dict[str, Any]] = []
            served.put(3, 40)
            while not heard or heard[-1].get("trial") != 42:
                line = (await response.content.readline()).decode()
                if line.startswith("data: "):
                    heard.append(json.loads(line[6:]))
        state, *after = heard
        assert state["event"] == "state"
        known = -1 if state["seq"] is None else state["seq"]
        assert [message["seq"] for message in after] == list(range(known + 1, 43))

    run(client)


def test_the_latest_state_holds_text_that_is_being_written(serve):
    served = serve()

    async def client(session: aiohttp.ClientSession) -> None:
        about = {"attempt": 0, "trial": 4, "revision": 1}
        subscriber = await session.ws_connect(f"{served.url}/stream")
        for text in ("a red", " circle"):
            served.sinks.put({"event": "token", **about, "task": "caption", "text": text})
        await hear(subscriber, 3)
        async with session.get(f"{served.url}/latest") as response:
            state = await response.json()
        assert state["text"] == {**about, "caption": "a red circle"}
        served.put(4, 1)
        await hear(subscriber, 1)
        async with session.get(f"{served.url}/latest") as response:
            state = await response.json()
        assert "text" not in state
        assert state["answer"]["trial"] == 4

    run(client)


def test_pictures_come_as_png_bytes_once_named_and_no_other_file_does(serve, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    for name in ("shown", "withheld"):
        write_png(tmp_path / "pictures" / f"{name}.png", pixels, {"kind": "image"})
    (tmp_path / "journal.jsonl").write_text("{}")
    png = (tmp_path / "pictures" / "shown.png").read_bytes()
    served = serve(tmp_path)

    async def client(session: aiohttp.ClientSession) -> None:
        stream = await session.ws_connect(f"{served.url}/stream?pictures=1")
        plain = await session.ws_connect(f"{served.url}/stream")
        served.put(0, 1, preview="pictures/shown.png")
        served.put(1, 1, preview="pictures/shown.png", image="../journal.jsonl")
        assert [m["event"] for m in await hear(stream, 2)] == ["state", "answer"]
        assert await stream.receive_bytes(timeout=WAIT_S) == png
        assert (await hear(stream, 1))[0]["trial"] == 1
        assert [m["event"] for m in await hear(plain, 3)] == ["state", "answer", "answer"]
        async with session.get(f"{served.url}/pictures/shown.png") as response:
            assert (response.content_type, await response.read()) == ("image/png", png)
        for path in ("/pictures/withheld.png", "/journal.jsonl", "/pictures/..%2fjournal.jsonl"):
            async with session.get(served.url + path) as response:
                assert response.status == 404

    run(client)
    assert served.counted("unknown request", 3)


def test_one_that_stops_reading_is_dropped_and_counted_and_the_others_miss_nothing(serve):
    served = serve()
    stalled = served.rude()
    assert stalled.recv(12) == b"HTTP/1.1 101"

    async def client(session: aiohttp.ClientSession) -> None:
        reader = await session.ws_connect(f"{served.url}/stream")
        await hear(reader, 1)
        trial = 0
        while not served.outlet.counts().get("stalled"):
            assert trial < 5000, "the kernel cannot hold that much"
            served.put(trial, 50, text="x" * 8000)
            assert [m["seq"] for m in await hear(reader, 50)] == list(range(trial, trial + 50))
            trial += 50

    run(client)
    stalled.close()
    report = served.close()
    assert report.counts["stalled"] == 1
    assert (report.dropped, report.trouble) == (0, None)


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """A WebSocket frame of a client, masked by zeros."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        (b"\x16\x03\x01\xff\x00 what is this\r\n\r\n", "garbage"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 9000 + b"\r\n\r\n", "garbage"),
        (b"DELETE /latest HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "unknown request"),
        (b"GET /latest HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n", "foreign host"),
        (UPGRADE.encode() + b"\xff\xff" * 50, "garbage"),
        (UPGRADE.encode() + frame(b"hello") * 5000, "flooding"),
        (UPGRADE.encode() + frame(b"", 9) * 5000, "flooding"),
        (UPGRADE.encode() + b"\x81\xfe\xff\xff" + bytes(4) + b"x" * 0xFFFF, "oversized"),
        (UPGRADE.replace("Host", "Origin: https://evil.example\r\nHost").encode(), "foreign page"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_garbage_floods_and_foreigners_are_sent_away_and_counted(serve, said: bytes, counted: str):
    served = serve()

    async def client(session: aiohttp.ClientSession) -> None:
        reader = await session.ws_connect(f"{served.url}/stream")
        await hear(reader, 1)
        rude = await asyncio.to_thread(served.rude, said)
        served.put(0, 20)
        assert [m["seq"] for m in await hear(reader, 20)] == list(range(20))
        assert await asyncio.to_thread(served.counted, counted)
        rude.settimeout(WAIT_S)
        await asyncio.to_thread(_read_to_end, rude)
        rude.close()

    run(client)
    assert served.close().trouble is None


@pytest.mark.parametrize("cut", [0, len(UPGRADE) - 3, len(UPGRADE) - 1])
def test_of_a_flood_little_is_parsed_before_it_is_noticed(serve, monkeypatch, cut: int):
    parsed: list[int] = []
    take = aiohttp.web.RequestHandler.data_received

    def overhear(handler: aiohttp.web.RequestHandler, data: bytes) -> None:
        parsed.append(len(data))
        take(handler, data)

    monkeypatch.setattr(aiohttp.web.RequestHandler, "data_received", overhear)
    served = serve()
    said = UPGRADE.encode() + frame(b"", 9) * 5000
    rude = served.rude(said[:cut])
    time.sleep(0.1)  # so that the rest is another packet
    with contextlib.suppress(OSError):  # it is sent away before it has said everything
        rude.sendall(said[cut:])
    assert served.counted("flooding")
    rude.close()
    head = list(itertools.accumulate(parsed)).index(len(UPGRADE))
    assert sum(parsed[head + 1 :]) < 1000
    served.close()


def _send_until_refused(connection: socket.socket) -> None:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        connection.sendall(b"x")
        time.sleep(0.01)


def _read_to_end(connection: socket.socket) -> None:
    """Until the other side has ended it, which it must."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass


def test_one_that_dies_is_gone_and_the_next_one_is_served(serve):
    served = serve()
    dying = served.rude()
    assert dying.recv(12) == b"HTTP/1.1 101"
    dying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    dying.close()

    async def client(session: aiohttp.ClientSession) -> None:
        reader = await session.ws_connect(f"{served.url}/stream")
        served.put(0, 10)
        assert (await hear(reader, 11))[-1]["trial"] == 9

    run(client)
    assert served.close().trouble is None


@pytest.mark.parametrize("count", [2, 100])  # little enough for the kernel, and more than it holds
def test_the_end_of_a_run_ends_every_connection_also_of_those_who_do_not_read(serve, count: int):
    served = serve()
    stalled, silent = served.rude(), served.rude(b"")
    assert stalled.recv(12) == b"HTTP/1.1 101"
    assert served.counted("subscribers")
    served.put(0, count, text="x" * 8000)  # less than its mailbox
    began = time.monotonic()
    served.close()
    assert time.monotonic() - began < WAIT_S
    for connection in (stalled, silent):
        with pytest.raises(OSError, match="reset|Broken pipe"):
            _send_until_refused(connection)
        connection.close()


def test_a_flood_of_connections_is_let_in_slowly_and_does_not_hold_up_a_subscriber(serve):
    served = serve()

    async def client(session: aiohttp.ClientSession) -> None:
        reader = await session.ws_connect(f"{served.url}/stream")
        await hear(reader, 1)
        flood = [await asyncio.to_thread(served.rude, b"") for _ in range(40)]
        served.put(0, 20)
        assert [m["seq"] for m in await hear(reader, 20)] == list(range(20))
        for connection in flood:
            connection.close()

    run(client)
    assert served.close().trouble is None


def test_a_token_opens_and_none_or_a_wrong_one_does_not(serve):
    served = serve(token=TOKEN)
    wrong = TOKEN[:-1] + "x"

    async def client(session: aiohttp.ClientSession) -> None:
        for headers, query in (({}, ""), ({"Authorization": "Basic x"}, "")):
            async with session.get(f"{served.url}/latest{query}", headers=headers) as response:
                assert response.status == 401
        for headers, query in (({}, f"?token={wrong}"), ({"Authorization": f"Bearer {wrong}"}, "")):
            async with session.get(f"{served.url}/latest{query}", headers=headers) as response:
                assert response.status == 401
                assert TOKEN not in await response.text()
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(f"{served.url}/stream?token={wrong}")
        for headers, query in (({}, f"?token={TOKEN}"), ({"Authorization": f"Bearer {TOKEN}"}, "")):
            async with session.get(f"{served.url}/latest{query}", headers=headers) as response:
                assert response.status == 200
            reader = await session.ws_connect(f"{served.url}/stream{query}", headers=headers)
            assert (await hear(reader, 1))[0]["event"] == "state"

    run(client)
    assert served.close().counts == {"no token": 2, "wrong token": 3, "subscribers": 2}
    assert TOKEN not in repr(Access(token=TOKEN))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=scanside test", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(files[0]), "-keyout", str(files[1])),
        ],
        check=True,
        capture_output=True,
    )
    return files


def test_tls_carries_messages_and_plain_text_on_its_port_is_counted(serve, certificate):
    served = serve(token=TOKEN, certificate=certificate[0], key=certificate[1])
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    async def client(session: aiohttp.ClientSession) -> None:
        reader = await session.ws_connect(f"{served.url}/stream", ssl=trusting, headers=bearer)
        await hear(reader, 1)
        served.put(0, 30)
        assert [m["seq"] for m in await hear(reader, 30)] == list(range(30))
        plain = await asyncio.to_thread(served.rude, UPGRADE)
        await asyncio.to_thread(_read_to_end, plain)
        plain.close()
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{served.url}/latest", headers=bearer)
        await reader.close()

    run(client)
    assert served.counted("plain text")
    assert served.counted("TLS failed")


def test_beyond_this_machine_token_and_tls_are_needed(certificate):
    anywhere = Address("0.0.0.0", 0)
    with pytest.raises(InputError, match="give --tls-certificate and --tls-key"):
        WsOutlet(anywhere, Access(token=TOKEN))
    with pytest.raises(InputError, match="give --token-file, or set SCANSIDE_TOKEN"):
        WsOutlet(anywhere, Access(certificate=certificate[0], key=certificate[1]))
    with pytest.raises(InputError, match="give --tls-key as well"):
        WsOutlet(anywhere, Access(token=TOKEN, certificate=certificate[0]))
    with pytest.raises(InputError, match="are no certificate and its key"):
        WsOutlet(anywhere, Access(token=TOKEN, certificate=certificate[1], key=certificate[1]))


def test_an_address_in_use_is_a_sentence(serve):
    served = serve()
    with pytest.raises(InputError, match=r"cannot listen at .* in use"):
        WsOutlet(Address(HERE, served.port))
