"""One run from Siemens files full of names, every sink at once: all carry it, none carries a name.

Each file of the scanner holds thirty things that tell who the patient is, in public elements, in
private ones, in UIDs and in its own name. They must be in nothing that is written, printed or sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zmq

from scanside.runtime.cli import main
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation
from scanside.tests.patient import FILE_NAME, IDENTIFIERS, seed

WAIT_S = 120.0
VOLUMES = 30


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated run, run_bold.nii, with its events beside it."""
    path = tmp_path_factory.mktemp("simulated") / "run_bold.nii"
    SimulatedRun(
        Simulation(shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=VOLUMES, gap_s=11.0)
    ).write(path)
    return path


def words(source: str, recorded: Path, out: Path, *more: str) -> list[str]:
    return [
        *("watch", "reference", "--source", source, "--out", str(out), "--threads", "1"),
        *("--events", str(recorded.with_name("run_events.tsv")), "--deadline", "1000"),
        *("--task", "preview,caption", "--prompt", "none", *more),
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Listeners:
    """Whoever a run can be told to."""

    def __init__(self, folder: Path) -> None:
        self.heard: dict[str, list[bytes]] = {"pictures": []}
        self.ready: dict[str, threading.Event] = {}
        self.threads: list[threading.Thread] = []
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.afni = socket.create_server(("127.0.0.1", 0))
        for listening in (self.udp, self.afni):
            listening.settimeout(WAIT_S)
        self.ws_port, self.zmq_port = free_port(), free_port()
        self.sinks = [
            f"jsonl:{folder / 'told.jsonl'}",
            f"files:{folder / 'told'}",
            f"udp:{self.udp.getsockname()[1]}",
            f"afni:127.0.0.1:{self.afni.getsockname()[1]}",
            f"zmq:{self.zmq_port}",
            f"ws:{self.ws_port}",
        ]
        for name in ("udp", "afni", "zmq", "ws", "sse"):
            self.heard[name], self.ready[name] = [], threading.Event()
            listen = getattr(self, f"_{name}")
            self.threads.append(threading.Thread(target=listen, name=name, daemon=True))
            self.threads[-1].start()

    def wait(self) -> None:
        """Until all of them are there."""
        for name, event in self.ready.items():
            assert event.wait(WAIT_S), name

    def join(self) -> None:
        """Until all of them know that the run is over."""
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), thread.name
        self.udp.close()
        self.afni.close()

    def messages(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.heard[name]]

    def _udp(self) -> None:
        self.ready["udp"].set()
        while not (self.heard["udp"] and b'"event": "end"' in self.heard["udp"][-1]):
            self.heard["udp"].append(self.udp.recv(1 << 16))

    def _afni(self) -> None:
        connection, _ = self.afni.accept()
        self.ready["afni"].set()
        with connection, connection.makefile("rb") as stream:
            self.heard["afni"].append(stream.read())

    def _zmq(self) -> None:
        context = zmq.Context()
        subscriber = context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.RCVTIMEO, int(1e3 * WAIT_S))
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.connect(f"tcp://127.0.0.1:{self.zmq_port}")
        self.ready["zmq"].set()
        topic = b""
        while topic != b"end":
            topic, message = subscriber.recv_multipart()
            self.heard["zmq"].append(message)
        subscriber.close()
        context.term()

    def _ws(self) -> None:
        async def listen(session: aiohttp.ClientSession) -> None:
            async with session.ws_connect(f"{self._url()}/stream?pictures=1") as stream:
                async for said in stream:
                    self.ready["ws"].set()
                    if said.type == aiohttp.WSMsgType.TEXT:
                        self.heard["ws"].append(said.data.encode())
                    else:
                        self.heard["pictures"].append(said.data)

        asyncio.run(_once_served(listen))

    def _sse(self) -> None:
        async def listen(session: aiohttp.ClientSession) -> None:
            async with session.get(f"{self._url()}/events") as response:
                async for line in response.content:
                    self.ready["sse"].set()
                    if line.startswith(b"data: "):
                        self.heard["sse"].append(line[6:].strip())

        asyncio.run(_once_served(listen))

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.ws_port}"


async def _once_served(listen: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
    """Try until the run has begun to serve."""
    until = time.monotonic() + WAIT_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < until:
            try:
                return await listen(session)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)


def test_every_sink_carries_the_run_and_nothing_names_the_patient(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    played, incoming, out = tmp_path / "played", tmp_path / "incoming", tmp_path / "watched" / "out"
    faults = ("--fault", "duplicate", "--fault", "second-series", "--format", "mosaic")
    assert main(["replay", str(recorded), "--to", str(played), "--speed", "1000", *faults]) == 0
    files = sorted(played.iterdir(), key=lambda file: (file.stat().st_mtime_ns, file.name))
    for file in files:
        seed(file)
    capsys.readouterr()

    incoming.mkdir()
    out.parent.mkdir()
    listeners = Listeners(out.parent)
    arguments = words(f"folder:{incoming}", recorded, out, "--tr", "1.6", "--volumes", str(VOLUMES))
    for sink in listeners.sinks:
        arguments += ["--sink", sink]
    codes: list[int] = []
    watching = threading.Thread(target=lambda: codes.append(main(arguments)), daemon=True)
    watching.start()
    listeners.wait()
    (incoming / f"{FILE_NAME}.txt").write_text(f"{FILE_NAME} is no volume\n" * 10)
    told_at = out.parent / "told.jsonl"
    until = time.monotonic() + WAIT_S
    while "unreadable" not in told_at.read_text():  # a run that is complete waits for nothing
        assert time.monotonic() < until
        time.sleep(0.1)
    for number, file in enumerate(files):
        os.replace(file, incoming / f"{FILE_NAME}.{number:05d}.IMA")
    watching.join(WAIT_S)
    assert codes == [0]
    listeners.join()
    printed = capsys.readouterr()

    told = [json.loads(line) for line in told_at.read_text().splitlines()]
    answered = [message for message in told if message["event"] == "answer"]
    assert [message["seq"] for message in told] == list(range(len(told)))
    assert told[-1]["event"] == "end"
    assert sum(message["event"] == "volume" for message in told) == VOLUMES
    written = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in m.items() if k != "seq"} for m in answered] == written
    numbered = sorted((out.parent / "told").glob("0*.json"))
    assert [json.loads(path.read_text()) for path in numbered] == told
    for name in ("ws", "sse"):
        state, *messages = listeners.messages(name)
        assert state == {"event": "state", "seq": None}
        assert messages == told
    udp = listeners.messages("udp")
    assert [message["seq"] for message in udp] == [message["seq"] for message in told]
    assert all(message in told for message in udp if "shortened" not in message)
    published = [m for m in listeners.messages("zmq") if m["event"] != "state"]
    assert published == told[-len(published) :]
    assert len(published) >= VOLUMES
    (sent,) = listeners.heard["afni"]
    assert (sent[:4].hex(), sent[-4:].hex()) == ("abcdefac", "deaddead")
    assert len(sent[8:-4]) in (52 * VOLUMES, 52 * (VOLUMES + 1))
    assert struct.unpack("7f", sent[-32:-4])[0] == answered[-1]["trial"]
    pictures = {path.read_bytes() for path in (out / "pictures").glob("*.png")}
    assert pictures == set(listeners.heard["pictures"])
    assert len(pictures) == len(answered)

    # faults were told, and nobody by name
    kinds = {message["kind"] for message in told if message["event"] == "fault"}
    assert {"duplicate", "foreign-series", "unreadable"} <= kinds
    traces = [str(path.relative_to(tmp_path)).encode() for path in out.parent.rglob("*")]
    traces += [path.read_bytes() for path in out.parent.rglob("*") if path.is_file()]
    traces += [content for contents in listeners.heard.values() for content in contents]
    traces += [printed.out.encode(), printed.err.encode()]
    assert len(set(IDENTIFIERS)) >= 30
    for trace in traces:
        assert not [value for value in IDENTIFIERS if value.encode() in trace]
