"""Does a complete decode at the paper's size fit this machine, and where does its time go?

    scanside export random:paper BUNDLE --quantize q4_k_m
    python benchmarks/full_size_decode.py BUNDLE --tokens 16 --steps 2 \\
        --json benchmarks/results/full_size_decode.json

From a volume's file to preview, a caption of so many tokens and a picture of that caption, with the
caption's limit of the bundle replaced, for random weights never end a text by themselves. Of their
tokens hardly one is a whole character, so there may be no text to show or to encode: `engines_ms`
lists the prompt encoder where there was. The first decode of a process reads the weights from disk
and is told apart. `own_share` is what is spent in neither the kernel nor ONNX Runtime nor llama.cpp
nor the reading of the file.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, percentiles_ms, write

from scanside.runtime import Decoder, Done, Token
from scanside.runtime.bench import Neighbours
from scanside.runtime.bench.engines import EngineClock, timed_engines
from scanside.runtime.bench.host_memory import host_memory
from scanside.runtime.bench.measure import default_volumes
from scanside.runtime.bundle import Bundle

TASKS = ("preview", "caption", "image")
MIB = 2**20
Json = dict[str, Any]


def limited(bundle: Bundle, tokens: int) -> Bundle:
    """The bundle, with a caption of at most so many tokens."""
    spec = bundle.manifest.language
    if spec is None or bundle.manifest.diffusion is None:
        raise SystemExit(f"{bundle.root} makes no texts or no pictures; export random:paper")
    spec = replace(spec, max_tokens=spec.max_tokens | {"caption": tokens})
    return replace(bundle, manifest=replace(bundle.manifest, language=spec))


def decode(decoder: Decoder, volume: Path, args: argparse.Namespace, clock: EngineClock) -> Json:
    """One volume: seconds of everything, and what was made."""
    clock.take()
    result, answers = None, dict[str, float]()
    began = time.perf_counter()
    events = decoder.stream(
        volume, TASKS, seed=0, steps=args.steps, prompt="caption", token_log_probs=True
    )
    for event in events:
        now = time.perf_counter() - began
        match event:
            case Token():
                answers.setdefault("first_token", now)
            case Done():
                result, answers["total"] = event.result, now
            case _:
                answers.setdefault(type(event).__name__.lower(), now)
    assert result is not None
    assert result.image is not None
    if result.degraded or not np.isfinite(result.image).all():
        raise SystemExit(f"not a whole decode: {result.degraded}")
    engines = clock.take()
    load_s = result.latency_ms.get("load", 0.0) / 1e3
    own_s = answers["total"] - sum(engines.values()) - load_s
    return {
        "tokens": len(result.token_log_probs["caption"]),
        "image": list(result.image.shape),
        "answers": answers,
        "engines": engines,
        "own": own_s,
        "share": own_s / answers["total"],
    }


def summed(runs: list[Json], key: str) -> Json:
    """Percentiles of every time of that kind."""
    return {name: percentiles_ms([run[key][name] for run in runs]) for name in runs[0][key]}


def main() -> int:
    """Open, decode, measure, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about, bundle = machine(), Bundle.open(args.bundle)
    (volume, *_) = default_volumes(bundle)
    began = time.perf_counter()
    with Neighbours() as neighbours, timed_engines() as clock:
        opening = Decoder.open(limited(bundle, args.tokens), threads=args.threads, warm=False)
        with opening as decoder:
            open_s = time.perf_counter() - began
            first = decode(decoder, volume, args, clock)
            runs: list[Json] = []
            for number in range(args.runs):
                runs.append(decode(decoder, volume, args, clock))
                print(f"decode {number + 1} of {args.runs}: {runs[-1]}", file=sys.stderr)
            memory = {name: round(size / MIB, 1) for name, size in host_memory().items()}
    result = {
        "question": "a complete decode at the paper's size",
        **about,
        **neighbours.as_dict(),
        "bundle": bundle.manifest.name,
        "threads": args.threads,
        "tokens": first["tokens"],
        "steps": args.steps,
        "image": first["image"],
        "open_s": round(open_s, 2),
        "first_decode_s": round(first["answers"]["total"], 2),
        "answers_ms": summed(runs, "answers"),
        "engines_ms": summed(runs, "engines"),
        "own_ms": percentiles_ms([run["own"] for run in runs]),
        "own_share": round(float(np.median([run["share"] for run in runs])), 5),
        "memory_mib": memory,
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
