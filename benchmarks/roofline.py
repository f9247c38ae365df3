"""How far is each stage from what the machine allows?

    python benchmarks/roofline.py --json benchmarks/results/roofline.json
    python benchmarks/roofline.py BUNDLE --runs 5        # a full size, where a call takes seconds

A call cannot take less than its products at the highest rate that any product reaches here, nor, if
the weights are larger than the last cache, less than it takes to read them all. Both limits are
measured with torch in the same run: large products in float32 and in 8 bits, a sum over a large
array. The stages run on zeros, which takes as long as anything else.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graph_work import Work, onnx_work, token_work
from timing import machine, percentiles_ms, write

from scanside.runtime.bench import Neighbours
from scanside.runtime.bundle import Bundle
from scanside.runtime.cli import main as command_line
from scanside.runtime.engines.onnx_cpu import OnnxEngine
from scanside.runtime.language import LanguageModel

CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
TOKENS = 16
Json = dict[str, Any]


def seconds_of(call: Callable[[], Any], runs: int, warm_up: int = 2) -> list[float]:
    """Seconds of each call."""
    taken: list[float] = []
    for number in range(-warm_up, runs):
        began = time.perf_counter()
        call()
        if number >= 0:
            taken.append(time.perf_counter() - began)
    return taken


def limits(threads: int, runs: int) -> dict[str, float]:
    """The best that this machine was seen to do: GFLOP/s, GOP/s in 8 bits, GB/s, MiB of cache."""
    torch.set_num_threads(threads)
    size = 2048
    products = 2e-9 * size**3
    one = torch.randn(size, size)
    eight = torch.randint(-127, 127, (size, size), dtype=torch.int8)
    large = torch.zeros(2**27)  # 512 MiB
    found = {
        "float32 GFLOP/s": products / min(seconds_of(lambda: one @ one, runs)),
        "int8 GOP/s": products / min(seconds_of(lambda: torch._int_mm(eight, eight), runs)),
        "memory GB/s": large.nbytes / min(seconds_of(large.sum, runs)) / 1e9,
    }
    if CACHE.exists():
        found["cache MiB"] = float(CACHE.read_text().strip().removesuffix("K")) / 1024
    return {name: round(value, 1) for name, value in found.items()}


def floor_ms(work: Work, limit: dict[str, float]) -> tuple[float, str]:
    """The least time of a call, and what sets it."""
    by_products = work.float_operations / limit["float32 GFLOP/s"] / 1e6
    by_products += work.integer_operations / limit["int8 GOP/s"] / 1e6
    by_memory = 0.0
    if work.weight_bytes > limit.get("cache MiB", 0.0) * 2**20:
        by_memory = work.weight_bytes / limit["memory GB/s"] / 1e6
    return max((by_products, "arithmetic"), (by_memory, "memory"))


def graphs(bundle: Bundle) -> dict[str, str]:
    """File of each graph."""
    files = {"encoder": bundle.manifest.encoder.file}
    spec = bundle.manifest.diffusion
    if spec:
        files |= {"prompt encoder": spec.prompt_encoder, "U-Net, a step": spec.unet}
        files["VAE decoder"] = spec.vae_decoder
        optional = {"tiny decoder": spec.preview_decoder, "image encoder": spec.image_encoder}
        files |= {name: file for name, file in optional.items() if file}
    return files


def row(name: str, seconds: list[float], work: Work, limit: dict[str, float]) -> Json:
    """One line of the table."""
    floor, by = floor_ms(work, limit)
    ms = percentiles_ms(seconds)
    return {
        "graph": name,
        "ms": ms,
        "floor_ms": round(floor, 4),
        "bound_by": by,
        "times_floor": round(float(np.median(seconds)) * 1e3 / floor, 2),
        "gflop": round((work.float_operations + work.integer_operations) / 1e9, 4),
        "weights_mib": round(work.weight_bytes / 2**20, 1),
    }


def language_row(bundle: Bundle, threads: int, runs: int, limit: dict[str, float]) -> Json:
    """A token of the language model, behind a prefix of zeros."""
    spec = bundle.manifest.language
    assert spec is not None
    path = bundle.path(spec.file)
    model, seconds = LanguageModel(path, spec, threads=threads), list[float]()
    try:
        model.attend(np.zeros((spec.prefix_length, spec.width), np.float32))
        for _ in range(runs):
            answer = model.answer(next(iter(spec.instructions.values())), limit=TOKENS)
            answer.read()
            if len(answer.tokens) > 1:
                seconds.append(answer.token_s)
    finally:
        model.close()
    return row("language, a token", seconds, token_work(path), limit)


def main() -> int:
    """Verify, measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="reference")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine(("torch", "onnx"))
    if command_line(["verify", args.bundle]) != 0:
        return 1
    bundle, rows = Bundle.open(args.bundle), list[Json]()
    with Neighbours() as neighbours:
        limit = limits(args.threads, min(args.runs, 10))
        for name, file in graphs(bundle).items():
            path = bundle.path(file)
            engine = OnnxEngine(name, path, args.threads)
            feeds = {key: np.zeros(s.shape, s.dtype) for key, s in engine.inputs.items()}
            taken = seconds_of(lambda e=engine, f=feeds: e.run(f), args.runs)
            rows.append(row(name, taken, onnx_work(path), limit))
        if bundle.manifest.language:
            rows.append(language_row(bundle, args.threads, args.runs, limit))
    for one in rows:
        print(
            f"{one['graph']:20}{one['ms'].get('p50', one['ms']['max']):12.3f} ms"
            f"{one['floor_ms']:12.4f} ms by {one['bound_by']:12}{one['times_floor']:8.1f} times",
            file=sys.stderr,
        )
    question = "distance of each stage from the limits of the machine"
    result = {"question": question, **about, "bundle": args.bundle, "threads": args.threads}
    write({**result, **neighbours.as_dict(), "limits": limit, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
