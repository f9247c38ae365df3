"""What does localization cost beside plain encoding, and beside PyTorch's autograd?

    python benchmarks/localization.py --json benchmarks/results/localization.json

Three encoders and five concepts, random weights at the paper's size (or `--size reference`).
Correctness first: relevance is compared with autograd's, and nothing is timed that differs by more
than 1e-4. Then four things take turns on the same threads, for the same volume's tokens:

- plain encoding: the three encoders as they decode or localize, ONNX Runtime;
- localization: the same, and each encoder's localizer with all concepts at once;
- PyTorch, one backward pass for each concept on one forward pass;
- PyTorch, forward and backward for each concept, as GradCAM is usually called.

Asked for: localization takes at most three times as long as plain encoding.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import ROOT, machine, percentiles_ms, write
from torch.nn import functional as F

from scanside.export.localizer import (
    CONCEPTS,
    EncoderWithHidden,
    LocalizationSettings,
    Localizer,
    Trunk,
)
from scanside.export.localizer_stages import autograd_relevance
from scanside.export.shared_weights import fold_repeats, share_weights
from scanside.export.to_onnx import export_graph
from scanside.export.vit3d import ViT3D, ViT3DConfig
from scanside.runtime.engines.engine import Engine
from scanside.runtime.engines.onnx_cpu import OnnxEngine

Floats = NDArray[np.float32]

CUBES = {14: 96, 12: 144, 10: 240}
"""Edge of a cube and active cubes of each encoder: about the same volume of cortex."""
COUNT = 5
"""Concepts."""
MOST_DIFFERENCE = 1e-4
MOST_RATIO = 3.0
SETTINGS = LocalizationSettings()


@dataclass(frozen=True, slots=True)
class One:
    """One encoder in PyTorch and compiled."""

    module: ViT3D
    tokens: Floats
    encoder: Engine
    localizer: Engine


def make(cube: int, size: ViT3DConfig, folder: Path, threads: int) -> One:
    """An encoder of random weights with its localizer; the one of cube 14 decodes, too."""
    torch.manual_seed(cube)
    config = replace(size, cube=cube, num_cubes=CUBES[cube])
    module = ViT3D(config).half().float().eval().requires_grad_(False)
    tokens = np.random.default_rng(cube).standard_normal(
        (1, config.num_cubes, config.token_size), dtype=np.float32
    )
    given = torch.from_numpy(tokens)
    decodes = cube == max(CUBES)
    names = ["clip", "latent", "prefix", "hidden"] if decodes else ["hidden"]
    graph = EncoderWithHidden(module) if decodes else Trunk(module)
    encoder = export_graph(graph, {"tokens": given}, names, folder / f"encoder_{cube}.onnx")
    inputs = {
        "hidden": module.features(given)[0],
        "concepts": torch.zeros(CONCEPTS, config.clip_size),
    }
    traced = Localizer(module, SETTINGS).traced(*inputs.values())
    outputs = ["relevance", "similarity"]
    localizer = export_graph(traced, inputs, outputs, folder / f"localizer_{cube}.onnx")
    fold_repeats(localizer)
    share_weights(encoder, localizer, folder / f"shared_{cube}.data")
    engines = (OnnxEngine(path.stem, path, threads) for path in (encoder, localizer))
    return One(module, tokens, *engines)


def encode(ones: list[One]) -> None:
    """Plain encoding."""
    for one in ones:
        one.encoder.run({"tokens": one.tokens})


def localize(ones: list[One], concepts: Floats) -> list[Floats]:
    """Relevance (5, N) of each encoder."""
    padded = np.zeros((CONCEPTS, concepts.shape[1]), np.float32)
    padded[:COUNT] = concepts
    found: list[Floats] = []
    for one in ones:
        hidden = one.encoder.run({"tokens": one.tokens})["hidden"]
        given = one.localizer.run({"hidden": hidden, "concepts": padded})
        found.append(given["relevance"][:COUNT])
    return found


def autograd(ones: list[One], concepts: Floats, *, anew: bool) -> None:
    """PyTorch's way: a backward pass for each concept, after one forward pass or one each."""
    for one in ones:
        tokens, targets = torch.from_numpy(one.tokens), torch.from_numpy(concepts)
        hidden: torch.Tensor | None = None
        clip = hidden
        for target in targets:
            if hidden is None or anew:
                with torch.no_grad():
                    hidden = one.module.features(tokens)[0]
                hidden.requires_grad_(True)
                clip = one.module.f_wc(one.module.norm(one.module.blocks[-1](hidden)[:, 0]))[0]
            assert clip is not None
            score = F.cosine_similarity(clip, target, dim=0)
            (gradient,) = torch.autograd.grad(score, hidden, retain_graph=not anew)
            (hidden.detach()[0, 1:] @ gradient[0, 1:].mean(0)).numpy()


def difference(ones: list[One], concepts: Floats) -> float:
    """Largest difference between compiled relevance and autograd's, relative to the largest."""
    worst = 0.0
    for one, found in zip(ones, localize(ones, concepts), strict=True):
        hidden = one.module.features(torch.from_numpy(one.tokens))[0].numpy()
        for row, concept in zip(found, concepts, strict=True):
            want, _ = autograd_relevance(one.module, hidden, concept, SETTINGS)
            worst = max(worst, float(np.abs(row - want).max() / np.abs(want).max()))
    return worst


def turns(works: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each work, taken in turn, after two rounds of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(runs + 2):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if round_number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def sizes() -> dict[str, ViT3DConfig]:
    """The paper's encoder, and that of the reference bundle."""
    import json

    text = (ROOT / "export/reference/checkpoint/encoder/config.json").read_text()
    reference = ViT3DConfig.from_dict(json.loads(text))
    paper = ViT3DConfig(num_cubes=1, prefix_size=2048, prefix_hidden_size=2048)
    return {"paper": paper, "reference": reference}


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("paper", "reference"), default="paper")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine(("torch",))
    size = sizes()[args.size]
    concepts = np.random.default_rng(1).standard_normal((COUNT, size.clip_size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        ones = [make(cube, size, Path(folder), args.threads) for cube in CUBES]
        worst = difference(ones, concepts)
        if worst > MOST_DIFFERENCE:
            print(f"relevance differs from autograd by {worst:.1e}: nothing was timed")
            return 1
        seconds = turns(
            {
                "plain encoding": lambda: encode(ones),
                "localization": lambda: localize(ones, concepts),
                "autograd, one forward pass": lambda: autograd(ones, concepts, anew=False),
                "autograd, a forward pass each": lambda: autograd(ones, concepts, anew=True),
            },
            args.runs,
        )
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    plain = medians["plain encoding"]
    result: dict[str, Any] = {
        "question": "cost of localization, three encoders and five concepts",
        **about,
        "size": args.size,
        "threads": args.threads,
        "difference from autograd": worst,
        "ms": {name: percentiles_ms(values) for name, values in seconds.items()},
        "times plain encoding": {name: median / plain for name, median in medians.items()},
        "at most 3 times": medians["localization"] <= MOST_RATIO * plain,
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
