"""`scanside build BUNDLE --backend rtx|tensorrt`: engines of a bundle's graphs, made here.

They go to the user's cache; the bundle is never written to. TensorRT-RTX builds for any of its
GPUs on any machine; TensorRT builds on the GPU that will run the engine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..engines.engine_cache import user_shelf
from ..engines.engine_record import Record
from ..engines.plan_builder import Progress
from ..errors import DeviceError, InputError
from ..graphs import graphs_of

Make = Callable[[str, Path, Progress | None], tuple[Record, bytes]]
"""Builds the engine of a graph from its name and file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder, or 'reference'")
    parser.add_argument(
        "--backend",
        choices=("rtx", "tensorrt"),
        default="rtx",
        help="rtx: TensorRT-RTX, for workstation cards, on any machine; tensorrt: TensorRT, on the "
        "GPU itself (default: rtx)",
    )
    parser.add_argument(
        "--gpu",
        metavar="LIST",
        help="with rtx, kinds of GPU to build for (default: sm_80,sm_86,sm_89,sm_120)",
    )
    parser.add_argument(
        "--stage", metavar="LIST", help="only these stages, for example encoder,unet (default: all)"
    )
    parser.add_argument(
        "--builds",
        type=int,
        metavar="N",
        help="with tensorrt, builds of each graph, of which the fastest is kept (default: 3)",
    )
    parser.add_argument(
        "--portable",
        action="store_true",
        help="with tensorrt, engines that later versions and the lean runtime run too; slower",
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="with tensorrt, for development: keep timings of kernels between builds",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> int:
    """Build, and say what was made and where it lies; 1 if a graph was rejected."""
    _check_flags(args)
    bundle = Bundle.open(args.bundle)
    graphs = _chosen(graphs_of(bundle.manifest), args.stage)
    make, close = _maker(args)
    shelf = user_shelf(args.backend)
    made: list[tuple[Record, Path, float]] = []
    failed = False
    try:
        for number, (stage, file) in enumerate(graphs, 1):
            began = time.perf_counter()
            source = bundle.path(file)
            try:
                # a stage may have several graphs, a file has one
                record, plan = make(source.stem, source, _progress(stage, number, len(graphs)))
            except DeviceError as exc:  # the others may be built all the same
                _wipe()
                print(f"scanside build: {exc}", file=sys.stderr)
                failed = True
                continue
            path = shelf.store(record, plan)
            made.append((record, path, time.perf_counter() - began))
            if not args.json:
                _wipe()
                print(_line(record, path, made[-1][2]), flush=True)
    finally:
        close()
    if args.json:
        print(json.dumps({"engines": [_document(*one) for one in made]}, ensure_ascii=False))
    return 1 if failed else 0


def _check_flags(args: argparse.Namespace) -> None:
    given = {
        "'gpu'": ("rtx", args.gpu),
        "'builds'": ("tensorrt", args.builds),
        "'portable'": ("tensorrt", args.portable),
        "'timing_cache'": ("tensorrt", args.timing_cache),
    }
    for name, (backend, value) in given.items():
        if value and backend != args.backend:
            raise InputError(f"{name} goes with --backend {backend} only")


def _chosen(graphs: list[tuple[str, str]], wanted: str | None) -> list[tuple[str, str]]:
    if wanted is None:
        return graphs
    names = wanted.split(",")
    known = list(dict.fromkeys(stage for stage, _ in graphs))
    for name in names:
        if name not in known:
            raise InputError(f"'stage' must be of {', '.join(known)}; got {name!r}")
    return [(stage, file) for stage, file in graphs if stage in names]


def _maker(args: argparse.Namespace) -> tuple[Make, Callable[[], None]]:
    """What builds with a backend, and what frees what it holds."""
    from ..engines.tensorrt_library import library

    if args.backend == "rtx":
        from ..engines.rtx_builder import TARGETS, build_rtx

        targets = tuple(args.gpu.split(",")) if args.gpu else TARGETS
        lib = library("rtx")
        return lambda stage, path, told: build_rtx(lib, stage, path, targets, told), lambda: None
    from ..engines.gpu import Gpu
    from ..engines.tensorrt_builder import BuildOptions, build_tensorrt

    options = BuildOptions(
        builds=3 if args.builds is None else args.builds,
        portable=args.portable,
        timing_cache=args.timing_cache,
    )
    # the driver first: without one TensorRT's own start may end the process
    gpu = Gpu.open(device="tensorrt")
    try:
        lib = library("tensorrt")
    except BaseException:
        gpu.close()
        raise
    return lambda stage, path, told: build_tensorrt(lib, stage, path, gpu, options, told), gpu.close


def _progress(stage: str, number: int, of: int) -> Progress | None:
    """One line that is written over, on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def told(phase: str, share: float) -> None:
        _wipe()
        print(f"{stage} ({number} of {of}): {phase} {share:4.0%}", end="", file=sys.stderr)
        sys.stderr.flush()

    return told


def _wipe() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _line(record: Record, path: Path, seconds: float) -> str:
    made = record.fingerprint
    kinds = ", ".join(f"{count} {kind}" for kind, count in record.layers.items())
    latency = "" if record.latency_ms is None else f", {record.latency_ms:.2f} ms a run"
    return (
        f"{record.stage}: {made.backend} {made.version} for {', '.join(made.capabilities)}"
        f"{f' on {made.gpu}' if made.gpu else ''}{latency}\n"
        f"  {record.size_bytes / 1e6:.1f} MB in {seconds:.1f} s; layers: {kinds}\n"
        f"  {path}\n"
        f"  fingerprint {made.key}, graph {made.onnx[:12]}, {made.profile}"
    )


def _document(record: Record, path: Path, seconds: float) -> dict[str, Any]:
    key = record.fingerprint.key
    return {**asdict(record), "path": str(path), "key": key, "seconds": round(seconds, 3)}
