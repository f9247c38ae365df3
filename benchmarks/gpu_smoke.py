"""Does the shipped bundle decode on this machine's GPU, and to the same answers as on its CPU?

    python -P benchmarks/gpu_smoke.py [--device cuda,language=cpu,concept_encoder=cpu]

It needs no network. Each check prints a line; what fails is listed at the end, with exit code 1, so
that one run tells all there is to tell. The times at its end are a first look, not a benchmark:
see gpu_suite.py.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from scanside.kernels.cuda_driver import call
from scanside.runtime import Decoder
from scanside.runtime.bundle import REFERENCE, Bundle
from scanside.runtime.device_chain import DeviceChain
from scanside.runtime.engines.arithmetic import Arithmetic
from scanside.runtime.engines.driver import probe
from scanside.runtime.engines.engine import DeviceEngine
from scanside.runtime.engines.gpu import Gpu
from scanside.runtime.engines.pixels import Looks
from scanside.runtime.errors import ScansideError
from scanside.runtime.golden import golden_checks
from scanside.runtime.reconstruction import to_pixels
from scanside.runtime.volume import Volume, load_volume

DEVICE = "cuda,language=cpu,concept_encoder=cpu"
PACKAGES = ("onnxruntime-gpu", "onnxruntime", "cuda-bindings", "llama-cpp-python", "numpy")
MOST_LEVELS = 3
"""Of 255: float32 in another order of additions, through eight steps and the VAE."""


failures: list[str] = []
"""A sentence for every check that did not hold."""


def main(argv: list[str] | None = None) -> int:
    """Run every check; 0 if all hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default=DEVICE, help=f"default {DEVICE}")
    parser.add_argument("--bundle", default="reference")
    parser.add_argument("--decodes", type=int, default=200, help="timed ones; default 200")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps; default 4")
    args = parser.parse_args(argv)
    try:
        surroundings()
    except ScansideError as exc:
        print(f"FAILED: {exc}", file=sys.stderr)
        return 1
    attempt("arithmetic", arithmetic)
    attempt("looks", looks)
    attempt("decodes", lambda: decodes(args))
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    print(f"{len(failures)} checks failed" if failures else "all checks hold")
    return 1 if failures else 0


def attempt(what: str, work: Callable[[], None]) -> None:
    """Do a part; what it raises is one failure of all."""
    try:
        work()
    except Exception as exc:
        traceback.print_exc()
        failures.append(f"{what}: {type(exc).__name__}: {exc}")


def surroundings() -> None:
    """What runs here."""
    driver = probe()
    print(f"python {platform.python_version()}, driver for CUDA {driver.cuda}")
    for card in driver.gpus:
        print(f"GPU {card.number}: {card}")
    for package in PACKAGES:
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} is not installed")


def arithmetic() -> None:
    """The two small kernels against NumPy, in both precisions."""
    gpu = Gpu.open()
    kernels = Arithmetic(gpu)
    rng = np.random.default_rng(0)
    try:
        for stored in ("float32", "float16"):
            for terms, length, copies in ((1, 1, 1), (9, 1023, 1), (101, 4 * 96 * 96, 2)):
                sources = rng.standard_normal((terms, length)).astype(stored)
                weights = rng.standard_normal(terms).astype("float32")
                scale, shift = rng.standard_normal((2, length)).astype("float32")
                there = [gpu.allocate(a.shape, a.dtype) for a in (sources, weights, scale, shift)]
                for array, buffer in zip((sources, weights, scale, shift), there, strict=True):
                    gpu.upload(array, buffer)
                combined = gpu.allocate((copies, length), stored)
                scaled = gpu.allocate((length,), stored)
                kernels.combine(combined, there[0], there[1], terms=terms, length=length)
                row = there[0].part(0, (length,))
                kernels.affine(scaled, row, there[2], there[3])
                found, one = np.empty((copies, length), stored), np.empty(length, stored)
                gpu.download(combined, found)
                gpu.download(scaled, one)
                gpu.wait()
                wanted = weights.astype("float64") @ sources.astype("float64")
                bound = {"float32": 1e-5, "float16": 2e-3}[stored] * max(1, np.abs(wanted).max())
                expect(f"combine {stored} {terms} x {length}", np.abs(found - wanted).max(), bound)
                alone = sources[0].astype("float64") * scale + shift
                bound = {"float32": 1e-5, "float16": 2e-3}[stored] * max(1, np.abs(alone).max())
                expect(f"affine {stored} {length}", np.abs(one - alone).max(), bound)
    finally:
        kernels.close()
        gpu.close()


def looks() -> None:
    """Pixels against NumPy, and what is noted of numbers that are not finite; both precisions."""
    gpu = Gpu.open()
    kernels = Looks(gpu)
    rng = np.random.default_rng(0)
    try:
        for stored in ("float32", "float16"):
            image = (0.8 * rng.standard_normal((1, 3, 33, 47))).astype(stored)
            for bad in (None, np.inf, np.nan):
                given = image.copy()
                if bad is not None:
                    given[0, 1, 20, 30] = bad
                there = gpu.allocate(given.shape, stored)
                pixels, notes = gpu.allocate((33, 47, 3), np.uint8), gpu.allocate((2,), np.uint32)
                gpu.upload(given, there)
                one, other = notes.part(0, (1,)), notes.part(4, (1,))
                kernels.pixels(pixels, there, one)
                kernels.finite(there, other)
                found, noted = np.empty((33, 47, 3), np.uint8), np.empty(2, np.uint32)
                gpu.download(pixels, found)
                gpu.download(notes, noted)
                gpu.wait()
                wrong = float((noted != (bad is not None)).sum())
                expect(f"notes of {stored} with {bad}", wrong, 0.0)
                if bad is None:
                    apart = np.abs(found.astype(int) - to_pixels(given.astype("f4"))).max()
                    expect(f"pixels {stored}, levels of 255", float(apart), 0.0)
    finally:
        kernels.close()
        gpu.close()


def expect(what: str, found: float, most: float) -> None:
    """Print a check, or end with it."""
    print(f"{what}: {found:.2e}, at most {most:.2e}")
    if not found <= most:
        failures.append(f"{what} is off by {found:.3e}, and {most:.3e} is allowed")


def decodes(args: argparse.Namespace) -> None:
    """Golden outputs, pictures against those of the CPU, then time and memory."""
    volumes = [load_volume(path) for path in sorted(trials().glob("*.nii.gz"))[:3]]
    wanted = {"tasks": ("preview", "caption", "image"), "prompt": "none", "seed": 3}
    with Decoder.open(args.bundle, device="cpu") as decoder:
        on_cpu = [decoder.decode(volume, steps=args.steps, **wanted) for volume in volumes]
    began = time.perf_counter()
    with Decoder.open(args.bundle, device=args.device) as decoder:
        print(f"opened and warmed in {time.perf_counter() - began:.1f} s")
        placement(decoder)
        attempt("golden outputs", lambda: golden(Bundle.open(args.bundle), decoder))
        for number, (volume, other) in enumerate(zip(volumes, on_cpu, strict=True)):
            found = decoder.decode(volume, steps=args.steps, **wanted)
            again = decoder.decode(volume, steps=args.steps, **wanted)
            for kind in ("preview", "image"):
                picture = getattr(found, kind)
                compare(f"{kind} of trial {number}", picture, getattr(other, kind))
                compare(f"{kind} of trial {number}, again", getattr(again, kind), picture)
            paced = decoder.decode(volume, steps=args.steps, deadline_s=600.0, **wanted)
            compare(f"image of trial {number}, step by step", paced.image, found.image)
            print(f"caption: {found.caption!r}")
            if found.caption != other.caption:
                failures.append(f"the caption of trial {number} was {other.caption!r} on the CPU")
        pictures = [result.image for result in on_cpu]
        attempt("chain", lambda: chained(decoder, args, volumes, pictures))
        attempt("timed decodes", lambda: timed(decoder, args, volumes[0]))


def trials() -> Path:
    """Volumes that come with the reference bundle."""
    return REFERENCE.parent / "trials"


def placement(decoder: Decoder) -> None:
    """What runs where, and that every graph on the GPU is there as a whole."""
    for stage, provider in decoder.stages.placement.items():
        print(f"  {stage}: {provider}")
    for engine in decoder.stages.engines.opened:
        if isinstance(engine, DeviceEngine):
            nodes = {name: sum(ops.values()) for name, ops in getattr(engine, "nodes", {}).items()}
            captured = getattr(engine, "captured", None)
            why = getattr(engine, "why_not_captured", "")
            print(f"  {engine.stage}: nodes {nodes}, one CUDA graph: {captured} {why}")


def golden(bundle: Bundle, decoder: Decoder) -> None:
    """Every stage against the outputs that were recorded at export."""
    spec = bundle.manifest.golden
    assert spec is not None, "the reference bundle has golden outputs"
    for check in golden_checks(bundle, decoder.stages, spec):
        print(f"golden {check.what}: {check.measured}, allowed {check.allowed}")
        if not check.passed:
            failures.append(f"golden {check.what}: {check.measured}, allowed {check.allowed}")


def compare(what: str, found: Any, wanted: Any) -> None:
    """Two pictures, level by level."""
    difference = np.abs(found.astype(int) - wanted.astype(int)).max()
    expect(f"{what}, levels of 255", float(difference), MOST_LEVELS)


def chained(
    decoder: Decoder, args: argparse.Namespace, volumes: list[Volume], wanted: list[Any]
) -> None:
    """Volume to picture without the host in between: the same pictures, then time and memory."""
    chain = DeviceChain(decoder.stages)
    for number, (volume, picture) in enumerate(zip(volumes, wanted, strict=True)):
        made = chain.picture(volume, steps=args.steps, seed=3)
        compare(f"chain, trial {number}", made.pixels, picture)
    for _ in range(10):
        chain.picture(volumes[0], steps=args.steps, seed=3)
    before, wall, steps, vae = free_bytes(chain.gpu), [], [], []
    for seed in range(args.decodes):
        began = time.perf_counter()
        made = chain.picture(volumes[0], steps=args.steps, seed=seed)
        wall.append(time.perf_counter() - began)
        steps.append(made.denoised_s)
        vae.append(made.decoded_s)
    report("chain, volume to picture, wall", wall)
    report(f"  {args.steps} steps, GPU", steps)
    report("  VAE, GPU", vae)
    grown = before - free_bytes(chain.gpu)
    expect("bytes of device memory that the chain grew by", float(max(grown, 0)), 1 << 20)


def timed(decoder: Decoder, args: argparse.Namespace, volume: Volume) -> None:
    """`decode` as a caller uses it."""
    kept: dict[str, list[float]] = {}
    for seed in range(args.decodes):
        result = decoder.decode(
            volume, ("preview", "image"), prompt="none", steps=args.steps, seed=seed
        )
        for stage, took in result.latency_ms.items():
            kept.setdefault(stage, []).append(took / 1e3)
    for stage, seconds in kept.items():
        report(f"decode, {stage}", seconds)


def free_bytes(gpu: Gpu) -> int:
    """Device memory that is free."""
    with gpu.current():
        free, _ = call("cuMemGetInfo")
    return int(free)


def report(what: str, seconds: list[float]) -> None:
    """p50, p99 and the longest, in milliseconds."""
    p50, p99, most = 1e3 * np.percentile(seconds, [50, 99, 100])
    print(f"{what}: p50 {p50:.3f} ms, p99 {p99:.3f} ms, max {most:.3f} ms, n {len(seconds)}")


if __name__ == "__main__":
    sys.exit(main())
