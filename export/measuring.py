"""Latency, memory and size of the bundles among which export chooses, on this machine's CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..runtime import Decoder
from ..runtime.bench.cold import start_cold
from ..runtime.bench.plan import Plan
from ..runtime.bundle import Bundle
from .choice import Option

TASKS = ("preview", "caption", "image")
ROUNDS = 20
"""The least that shows a 95th percentile."""
BLOCKS = 4
_WARM_UP = 2
Bundles = Mapping[tuple[str, str], Path]
"""By precision and quantization."""


def latencies(
    bundles: Bundles,
    volumes: Sequence[Path],
    steps: Sequence[int],
    *,
    rounds: int = ROUNDS,
    threads: int = 2,
    say: Callable[[str], None] = lambda _: None,
) -> dict[Option, list[float]]:
    """Seconds from a volume's file to the last answer, by round.

    Every round decodes one volume with every option. One bundle is open at a time, for a few rounds
    in a row, so that large ones fit into memory; bundles take turns `BLOCKS` times, in another
    order each time, so that a slow minute hits all of them.
    """
    order = np.random.default_rng(0)
    found: dict[Option, list[float]] = {
        Option(precision=p, quantize=q, steps=count): [] for p, q in bundles for count in steps
    }
    parts = np.array_split(np.arange(rounds), BLOCKS)
    for block in [part for part in parts if len(part)]:
        for number in order.permutation(len(bundles)):
            precision, quantize = list(bundles)[number]
            with Decoder.open(bundles[precision, quantize], threads=threads) as decoder:
                for count in steps:
                    for _ in range(_WARM_UP):
                        _decode_s(decoder, volumes[0], count, 0)
                for turn in block:
                    volume = volumes[turn % len(volumes)]
                    for count in order.permutation(list(steps)):
                        option = Option(precision=precision, quantize=quantize, steps=int(count))
                        found[option].append(_decode_s(decoder, volume, int(count), int(turn)))
            say(f"{precision}, {quantize}: {block[-1] + 1} of {rounds} rounds timed")
    return found


def _decode_s(decoder: Decoder, volume: Path, steps: int, seed: int) -> float:
    began = time.perf_counter()
    decoder.decode(volume, TASKS, steps=steps, seed=seed)
    return time.perf_counter() - began


def peak_mib(bundle: Path, volume: Path, threads: int = 2) -> float:
    """Most memory of a new process that opens a bundle and decodes three times."""
    plan = Plan(bundle=str(bundle), cold=1, threads=threads)
    run = start_cold(plan, [Bundle.open(bundle)], volume, lambda _: None)
    return run.bytes[str(bundle)]["peak"] / 2**20


def size_mib(bundle: Path) -> float:
    """On disk."""
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) / 2**20
