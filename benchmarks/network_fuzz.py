"""Malformed frames and headers, thrown at every source that listens.

    python benchmarks/network_fuzz.py --count 100000 --json benchmarks/results/network_fuzz.json

Most are whole headers that were changed somewhere, for those get furthest. What must hold: nothing
but the two errors for bad input leaves a reader, no thread of a source ends, a whole volume that
comes afterwards is taken, and memory does not grow with what was sent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.afni_prolog import read_prolog
from scanside.runtime.realtime.afni_sender import AfniSender, prolog_bytes
from scanside.runtime.realtime.afni_source import AfniSource
from scanside.runtime.realtime.dicom_sender import DicomSender
from scanside.runtime.realtime.dicom_source import DicomSource
from scanside.runtime.realtime.dicom_volume import read_dicom
from scanside.runtime.realtime.faults import Delivery
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.listening import Address
from scanside.runtime.realtime.mosaic_writer import MosaicWriter
from scanside.runtime.realtime.source import IncompleteVolume, UnreadableVolume
from scanside.runtime.realtime.volume_writer import WrittenVolume
from scanside.runtime.realtime.zmq_header import header_bytes, read_header
from scanside.runtime.realtime.zmq_sender import ZmqSender
from scanside.runtime.realtime.zmq_source import ZmqSource

SHARES = {"headers": 0.80, "zmq": 0.15, "afni": 0.04, "dicom": 0.01}
"""Of all that is sent; a connection costs most."""
_MOST_BYTES = 1 << 20
"""That a header may promise."""
_PACE_S = 1.0
_WAIT_S = 30.0
_LAST = b"hello, that was all"


def volume(number: int = 0) -> WrittenVolume:
    """A small volume that is as it should be."""
    data = np.arange(7 * 6 * 5, dtype="i2").reshape(7, 6, 5, order="F") + number
    return WrittenVolume(
        data=data,
        affine=np.diag([2.0, 2.0, 3.0, 1.0]),
        slope=1.0,
        inter=0.0,
        tr_s=1.6,
        number=number,
        series=5,
        acquired_s=1.6 * number,
    )


def changed(good: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with something wrong in them."""
    raw = bytearray(good)
    match rng.integers(6):
        case 0:  # other bytes here and there
            for at in rng.integers(len(raw), size=rng.integers(1, 9)):
                raw[at] = int(rng.integers(256))
        case 1:  # cut off
            del raw[int(rng.integers(len(raw))) :]
        case 2:  # a piece is missing
            at = int(rng.integers(len(raw)))
            del raw[at : at + int(rng.integers(1, 40))]
        case 3:  # a piece is there twice, many times
            at = int(rng.integers(len(raw)))
            raw[at:at] = raw[at : at + int(rng.integers(1, 40))] * int(rng.integers(1, 40))
        case 4:  # a number is another
            digits = [i for i, byte in enumerate(raw) if chr(byte).isdigit()]
            at = digits[int(rng.integers(len(digits)))]
            raw[at : at + 1] = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
        case _:  # nothing of it
            return rng.bytes(int(rng.integers(1, 400)))
    return bytes(raw)


_NUMBERS = [
    *(b"-1", b"0", b"99999999999999999999", b"1e999", b"NaN", b"Infinity", b"null", b"[]", b"{}"),
    *(b"1" * 5000, b"[" * 3000, b"\xff\xfe", b'"', b" ", b"true", b"0x10", b"-0.0", b"\0"),
]


def fuzz_headers(count: int, seed: int = 0) -> dict[str, int]:
    """Change headers and read them; how many were refused, and how many could still be read.

    Any other error than the two for bad input ends it.
    """
    rng = np.random.default_rng(seed)
    good = volume()
    (_, file), *_ = MosaicWriter("fuzz").parts(good)
    prolog = prolog_bytes(good, good.data, by_slice=False).rstrip(b"\0")
    readers: list[tuple[bytes, Callable[[bytes], Any]]] = [
        (header_bytes(good), lambda raw: read_header(raw, _MOST_BYTES)),
        (_without_matrix(prolog), lambda raw: read_prolog(raw, _MOST_BYTES)),
        (prolog, lambda raw: read_prolog(raw, _MOST_BYTES)),
        (file, lambda raw: read_dicom(raw, arrived_s=0.0)),
    ]
    read = 0
    for turn in range(count):
        raw, reader = readers[turn % len(readers)]
        try:
            reader(changed(raw, rng))
            read += 1
        except (UnreadableVolume, IncompleteVolume):
            pass
    return {"sent": count, "refused": count - read, "read": read}


def fuzz_zmq(count: int, seed: int = 0) -> dict[str, int]:
    """Messages of one, two and more parts, over one connection."""
    rng = np.random.default_rng(seed)
    address, good = Address("127.0.0.1", free_port()), volume()
    header, body = header_bytes(good), good.data.tobytes()
    source = ZmqSource(address)
    context = zmq.Context()
    pair = context.socket(zmq.PAIR)
    pair.linger, pair.sndtimeo = 0, int(_WAIT_S * 1e3)
    try:
        pair.connect(f"tcp://{address}")
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
            while pair.poll(0):
                pair.recv()
            if turn % 64 == 0:
                source.poll(0.0)
        pair.send(_LAST)
        while not (pair.poll(20) and pair.recv() == _LAST):  # all that went before is through
            source.poll(0.0)
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
                _say(address.port, changed(control, rng))
                continue
            _say(address.port, control)
            raw = changed(prolog, rng) + good.data.tobytes()
            if turn % 4 == 1:
                raw = prolog + changed(good.data.tobytes(), rng)
            _say(address.port - 1, raw)
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
            _say(address.port, raw)
            source.poll(0.0)
        return _goes_on(source, lambda: DicomSender(address, MosaicWriter("fuzz")), count)
    finally:
        source.close()


def free_port() -> int:
    """A port that nobody listens at, nor at the one below."""
    while True:
        with socket.socket() as upper, socket.socket() as lower:
            upper.bind(("127.0.0.1", 0))
            port = upper.getsockname()[1]
            with contextlib.suppress(OSError):
                lower.bind(("127.0.0.1", port - 1))
                return port


def fuzz(count: int, seed: int = 0) -> dict[str, Any]:
    """All of it; a figure for each part, and how much memory this process took meanwhile."""
    results: dict[str, Any] = {}
    parts = {"headers": fuzz_headers, "zmq": fuzz_zmq, "afni": fuzz_afni, "dicom": fuzz_dicom}
    for name, part in parts.items():
        sent = max(int(count * SHARES[name]), 8)
        part(8, seed)  # so that what is loaded once is loaded
        before, began_s = _resident_bytes(), time.perf_counter()
        results[name] = dict(part(sent, seed)) | {
            "seconds": round(time.perf_counter() - began_s, 1),
            "grown_mb": round((_resident_bytes() - before) / 1e6, 1),
        }
    return results


def _without_matrix(prolog: bytes) -> bytes:
    """The geometry in words instead of a matrix."""
    lines = [line for line in prolog.split(b"\n") if not line.startswith(b"OBLIQUE")]
    return b"\n".join([*lines, b"XYZFIRST 7.5R 7A 6I", b""])


def _say(port: int, raw: bytes) -> None:
    """Connect, say something, and hang up when the other side does or has nothing to say."""
    # refused or reset is an answer
    with contextlib.suppress(OSError):
        with socket.create_connection(("127.0.0.1", port), _WAIT_S) as connection:
            connection.sendall(raw)


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
    deadline_s, taken = time.monotonic() + _WAIT_S, False
    while not taken and time.monotonic() < deadline_s:
        came = [arrival for arrival in source.poll(0.2) if isinstance(arrival, Frame)]
        taken = any(np.array_equal(frame.data, wanted.data) for frame in came)
    thread.join()
    if not taken:
        raise AssertionError("no volume was taken after what was malformed")
    return {"sent": count, "refused": sum(source.refused.values())}


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
    results = fuzz(args.count, args.seed)
    for name, found in results.items():
        print(f"{name:8} " + "  ".join(f"{key} {value}" for key, value in found.items()))
    if args.json:
        document = {"command": " ".join(["python", *sys.argv]), "count": args.count}
        args.json.write_text(json.dumps(document | {"results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
