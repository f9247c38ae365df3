"""What is malformed, thrown at everything that listens: does a run outlive it?

    python benchmarks/network_fuzz.py --count 100000 --json benchmarks/results/network_fuzz.json

Most are whole headers that were changed somewhere, for those get furthest. What must hold: nothing
but the two errors for bad input leaves a reader, no thread of a source or sink ends, a whole volume
that comes afterwards is taken and an answer is heard, and memory does not grow with what was sent.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from scanside.benchmarks.header_fuzz import fuzz_headers
from scanside.benchmarks.malformed import WAIT_S, changed, free_port, say, volume
from scanside.benchmarks.sink_fuzz import fuzz_published, fuzz_ws
from scanside.benchmarks.timing import machine, write
from scanside.runtime.errors import InputError
from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.afni_sender import AfniSender, prolog_bytes
from scanside.runtime.realtime.afni_source import AfniSource
from scanside.runtime.realtime.dicom_sender import DicomSender
from scanside.runtime.realtime.dicom_source import DicomSource
from scanside.runtime.realtime.faults import Delivery
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.mosaic_writer import MosaicWriter
from scanside.runtime.realtime.zmq_header import header_bytes
from scanside.runtime.realtime.zmq_sender import ZmqSender
from scanside.runtime.realtime.zmq_source import ZmqSource

_PACE_S = 1.0
_GREETING = b"hello, are you there?"


def fuzz_zmq(count: int, seed: int = 0) -> dict[str, int]:
    """Messages of one, two and more parts, over one connection."""
    rng = np.random.default_rng(seed)
    address, good = Address("127.0.0.1", free_port()), volume()
    header, body = header_bytes(good), good.data.tobytes()
    source = ZmqSource(address)
    context = zmq.Context()
    pair = context.socket(zmq.PAIR)
    pair.linger, pair.sndtimeo = 0, int(WAIT_S * 1e3)
    try:
        pair.connect(f"tcp://{address}")
        _wait_for_echo(pair, source)  # the one place of a PAIR is ours, not a garbler's
        for turn in range(count):
            parts = [changed(header, rng), body]
            match turn % 4:
                case 1:
                    parts = [header, changed(body, rng) if turn % 8 == 1 else body[:-1]]
                case 2:
                    parts = [changed(header, rng)]
                case 3:
                    parts = [rng.bytes(int(n)) for n in rng.integers(0, 90, rng.integers(1, 6))]
                case _:
                    pass
            pair.send_multipart(parts)
            if turn % 64 == 63:
                say(address.port, rng.bytes(int(rng.integers(1, 200))))
            while pair.poll(0):
                pair.recv()
            if turn % 64 == 0:
                source.poll(0.0)
        _wait_for_echo(pair, source)
        pair.close()
        return _goes_on(source, lambda: ZmqSender(address), count)
    finally:
        pair.close()
        context.term()
        source.close()


def fuzz_afni(count: int, seed: int = 0) -> dict[str, int]:
    """Control and data connections, one after the other."""
    rng = np.random.default_rng(seed)
    address, good = Address("127.0.0.1", free_port()), volume()
    prolog = prolog_bytes(good, good.data, by_slice=False)
    control = f"tcp:localhost:{address.port - 1}\0".encode()
    source = AfniSource(address, pace_s=_PACE_S)
    try:
        for turn in range(count):
            if turn % 4 == 3:
                say(address.port, changed(control, rng))
                continue
            say(address.port, control)
            raw = changed(prolog, rng) + good.data.tobytes()
            if turn % 4 == 1:
                raw = prolog + changed(good.data.tobytes(), rng)
            say(address.port - 1, raw)
            source.poll(0.0)
        return _goes_on(source, lambda: AfniSender(address), count)
    finally:
        source.close()


def fuzz_dicom(count: int, seed: int = 0) -> dict[str, int]:
    """Connections that send PDUs, damaged and too long ones."""
    rng = np.random.default_rng(seed)
    address = Address("127.0.0.1", free_port())
    source = DicomSource(address, pace_s=_PACE_S)
    request = _association_request(address, source)
    try:
        for turn in range(count):
            raw = changed(request, rng)
            if turn % 4 == 1:  # an association that comes about, and then something else
                length = int(rng.integers(0, 1 << int(rng.integers(4, 32))))
                raw = request + b"\4\0" + length.to_bytes(4, "big") + rng.bytes(2000)
            elif turn % 4 == 2:
                raw = bytes([int(rng.integers(1, 8)), 0]) + rng.bytes(int(rng.integers(1, 200)))
            say(address.port, raw)
            source.poll(0.0)
        return _goes_on(source, lambda: DicomSender(address, MosaicWriter("fuzz")), count)
    finally:
        source.close()


def fuzz(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """All of it; a row for each part, with the memory that this process took meanwhile."""
    rows: list[dict[str, Any]] = []
    for name, (share, part) in PARTS.items():
        part(8, seed)  # so that what is loaded once is loaded
        before, began_s = _resident_bytes(), time.perf_counter()
        found = part(max(int(count * share), 8), seed)
        took_s, grown = time.perf_counter() - began_s, _resident_bytes() - before
        rows.append({"to": name, **found, "seconds": round(took_s, 1), "grown MB": grown / 1e6})
    return rows


PARTS: dict[str, tuple[float, Callable[[int, int], dict[str, int]]]] = {
    "readers of headers and files": (0.80, fuzz_headers),
    "ZeroMQ source": (0.12, fuzz_zmq),
    "AFNI source": (0.04, fuzz_afni),
    "C-STORE source": (0.01, fuzz_dicom),
    "ZeroMQ sink": (0.025, fuzz_published),
    "WebSocket sink": (0.005, fuzz_ws),
}
"""Share of all that is sent; a connection costs most."""


def _association_request(address: Address, source: DicomSource) -> bytes:
    """What a sender says first, as pynetdicom words it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = Address("127.0.0.1", listening.getsockname()[1])
        said: list[bytes] = []

        def overhear() -> None:
            while not any(said):  # it looks first whether anyone is there
                connection, _ = listening.accept()
                with connection:
                    said.append(connection.recv(1 << 16))
                    if said[-1]:  # refuse, so that it hangs up in good order
                        connection.sendall(b"\3\0\0\0\0\4\0\1\1\1")
                        connection.recv(1)

        thread = threading.Thread(target=overhear)
        thread.start()
        with contextlib.suppress(InputError):  # it is refused
            DicomSender(place, MosaicWriter("fuzz"))
        thread.join()
    return said[-1]


def _goes_on(source: Any, sender: Callable[[], Any], count: int) -> dict[str, int]:
    """Whether a whole volume is taken after all that; what was refused before it."""
    wanted = volume(41)

    def send() -> None:
        sending = sender()
        sending.send(wanted, Delivery(due_trs=1.0, number=41))
        sending.close()

    thread = threading.Thread(target=send)  # what was malformed may still be on its way
    thread.start()
    deadline_s, taken = time.monotonic() + WAIT_S, False
    while not taken and time.monotonic() < deadline_s:
        came = [arrival for arrival in source.poll(0.2) if isinstance(arrival, Frame)]
        taken = any(np.array_equal(frame.data, wanted.data) for frame in came)
    thread.join()
    if not taken:
        raise AssertionError("no volume was taken after what was malformed")
    return {"sent": count, "refused": sum(source.refused.values())}


def _wait_for_echo(pair: Any, source: ZmqSource) -> None:
    """Until a greeting is answered: we are connected, and all that went before is through.

    It is said again and again: while answers that nobody fetched fill the queue, the source drops
    one rather than wait for a sender.
    """
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        pair.send(_GREETING)
        while pair.poll(20):
            if pair.recv() == _GREETING:
                return
        source.poll(0.0)
    raise AssertionError("no greeting was answered")


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(argv: list[str] | None = None) -> int:
    """Throw, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="in all (default: 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args(argv)
    about = machine(("pynetdicom", "pyzmq", "aiohttp"))
    rows = fuzz(args.count, args.seed)
    question = "what is malformed, thrown at everything that listens"
    write({"question": question, **about, "seed": args.seed, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
