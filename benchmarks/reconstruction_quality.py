"""How good is the picture of the reference bundle, for each schedule and number of steps?

    python benchmarks/reconstruction_quality.py \\
        --json benchmarks/results/reconstruction_quality.json

Held-out scenes, seen subjects, one trial a picture as in a real-time run: PixCorr, SSIM and
identification against steps and milliseconds; then what conditions the picture (the written prompt,
the caption, no text), and the paper's Figure 6: the share of noise in the start, with text and
without. The encoder and the language model run once for each trial; everything else is what a
decode does.

All rows of a trial share its noise and are made one after the other, so that they compare in pairs
and whatever else the machine does slows all of them alike. 200 trials take about half an hour on
two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from timing import ROOT, machine, percentiles_ms, write

from scanside.export.reference.scenes import draw_scenes, render
from scanside.export.reference.scores import (
    clip_vectors,
    pixel_correlation,
    two_way_identification,
    volumes,
)
from scanside.export.reference.targets import FrozenEncoders
from scanside.export.reference.trials import to_nifti
from scanside.export.reference.world import SEEN, Subject
from scanside.runtime import Decoder
from scanside.runtime.denoising import Condition
from scanside.runtime.pictures import Pictures
from scanside.runtime.reconstruction import Reconstruction, to_pixels
from scanside.runtime.volume import load_volume

STEPS = (1, 2, 4, 8, 20, 50)
BETAS = (0.6, 0.75, 0.9, 0.93, 0.98, 1.0)
"""Shares of noise in the start: the five of the paper's Figure 6, and its default."""
TEXTS = ("written", "caption", "none")
SHOWN = {
    "schedules": ("schedule", "steps"),
    "without_text": ("schedule", "steps"),
    "starts": ("beta", "text"),
}
"""What tells the rows of a table apart."""
Images = NDArray[np.float32]


class Trial(NamedTuple):
    """What the stages before the picture made of one volume."""

    scene: int
    condition: Condition
    """With the written prompt."""
    texts: Mapping[str, NDArray[np.float32]]
    """Prompt encoder's answer to each of `TEXTS`."""


class Row(NamedTuple):
    """One way to make a picture."""

    schedule: str
    steps: int
    """0 is the preview: the predicted latent, decoded as it is."""
    text: str
    beta: float


def trials(decoder: Decoder, count: int, repeats: int) -> tuple[list[Trial], Images]:
    """Encoded trials, and all scenes (B, H, W, 3) in 0..1."""
    scenes = draw_scenes(count, np.random.default_rng(71), held_out=True)
    pictures = pictures_of(decoder)
    out = []
    for index, subject, volume in volumes(scenes, SEEN, repeats, 72):
        source = load_volume(to_nifti(volume, Subject(subject)))
        tokens = decoder.stages.preprocessor.tokens(source)
        encoded = decoder.stages.encode(tokens)
        written = decoder.decode(tokens, tasks=("prompt", "caption"))
        assert written.prompt is not None
        assert written.caption is not None
        texts = {"written": written.prompt, "caption": written.caption, "none": ""}
        states = {name: pictures.prompt.encode(text)[0] for name, text in texts.items()}
        condition = Condition(
            clip=encoded["clip"], latent=encoded["latent"], states=states["written"]
        )
        out.append(Trial(index, condition, states))
        say(f"trial {len(out)} of {count} encoded")
    return out, render(scenes)


def pictures_of(decoder: Decoder) -> Pictures:
    """The picture stage of a bundle that has one."""
    assert decoder.stages.pictures is not None
    return decoder.stages.pictures


def paint(made: Reconstruction, trial: Trial, row: Row) -> tuple[Images, float]:
    """Picture (H, W, 3) in 0..1, and the seconds from condition to pixels."""
    condition = dataclasses.replace(trial.condition, states=trial.texts[row.text])
    began = time.perf_counter()
    latent = condition.latent
    if row.steps:
        latent = made.denoise(
            condition, steps=row.steps, seed=trial.scene, schedule=row.schedule, beta=row.beta
        )
    pixels = to_pixels(made.decode(latent))
    return pixels.astype(np.float32) / 255, time.perf_counter() - began


def similarity(one: Images, other: Images) -> float:
    """SSIM of two pictures in grey with the Gaussian window of Wang et al. 2004
    (https://doi.org/10.1109/TIP.2003.819861), as papers on brain decoding take it.
    """
    return float(
        structural_similarity(
            rgb2gray(one),
            rgb2gray(other),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def judge(images: Images, true: Images, frozen: FrozenEncoders) -> dict[str, float]:
    """PixCorr, SSIM, and in CLIP space two-way identification and identification among all."""
    vectors = clip_vectors(frozen, images), clip_vectors(frozen, true)
    similar = [similarity(a, b) for a, b in zip(images, true, strict=True)]
    return {
        "pixcorr": round(pixel_correlation(images, true), 4),
        "ssim": round(float(np.mean(similar)), 4),
        "two_way": round(two_way_identification(*vectors), 4),
        "top_1": round(first_place(*vectors), 4),
    }


def first_place(decoded: NDArray[np.float32], true: NDArray[np.float32]) -> float:
    """Share of decoded vectors (B, D) that correlate with their own true vector more than with any
    other.
    """
    correlation = np.corrcoef(decoded, true)[: len(decoded), len(decoded) :]
    return float(np.mean(correlation.argmax(1) == np.arange(len(decoded))))


def twins(
    schedules: Mapping[str, tuple[int, ...]], arrays: Mapping[str, NDArray[Any]]
) -> dict[str, str]:
    """Schedules whose tables are those of another one before, which then stands for both."""
    tables = {
        name: b"".join(arrays[f"{name}_{steps}"].tobytes() for steps in STEPS if steps in available)
        for name, available in schedules.items()
    }
    first = {table: name for name, table in reversed(tables.items())}
    return {name: first[table] for name, table in tables.items() if first[table] != name}


def rows_of(schedules: Mapping[str, tuple[int, ...]], default: Row) -> dict[str, list[Row]]:
    """What is compared: schedules and steps, steps where no text says it all, starts and texts."""
    ways = [
        default._replace(schedule=name, steps=steps)
        for name, available in schedules.items()
        for steps in STEPS
        if steps in available
    ]
    starts = [default._replace(beta=beta, text=text) for beta in BETAS for text in TEXTS]
    bare = [row._replace(text="none") for row in ways if row.schedule == default.schedule]
    preview = default._replace(schedule="preview", steps=0)
    return {"schedules": [preview, *ways], "without_text": bare, "starts": starts}


def measured(
    made: Reconstruction, encoded: list[Trial], true: Images, rows: list[Row], frozen: Any
) -> dict[Row, dict[str, Any]]:
    """Figures of each row, over all trials."""
    images: list[list[Images]] = [[] for _ in rows]
    seconds: list[list[float]] = [[] for _ in rows]
    for done, trial in enumerate(encoded, 1):
        for index, row in enumerate(rows):
            image, took = paint(made, trial, row)
            images[index].append(image)
            seconds[index].append(took)
        say(f"{len(rows)} pictures of trial {done} of {len(encoded)}")
    shown = true[[trial.scene for trial in encoded]]
    return {
        row: {**judge(np.stack(found), shown, frozen), "ms": percentiles_ms(took)}
        for row, found, took in zip(rows, images, seconds, strict=True)
    }


def say(text: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Decode, judge, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="reference")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "export/reference/checkpoint")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1, help="volumes that are averaged")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine(("scikit-image",))
    torch.set_num_threads(args.threads)
    frozen = FrozenEncoders(args.checkpoint)
    with Decoder.open(args.bundle, threads=args.threads) as decoder:
        identity = decoder.bundle.sha256[:12]
        encoded, true = trials(decoder, args.trials, args.repeats)
        spec = decoder.bundle.manifest.diffusion
        assert spec is not None
        default = Row(spec.schedule, spec.steps, "written", spec.beta)
        same = twins(spec.schedules, decoder.bundle.arrays(spec.arrays))
        wanted = rows_of(
            {name: steps for name, steps in spec.schedules.items() if name not in same}, default
        )
        rows = list(dict.fromkeys(row for group in wanted.values() for row in group))
        figures = measured(pictures_of(decoder).reconstruction, encoded, true, rows, frozen)
    result = {
        "question": "quality of the picture against schedule, steps, start and text",
        **about,
        "bundle": args.bundle,
        "bundle_sha256": identity,
        "trials": args.trials,
        "repeats": args.repeats,
        "threads": args.threads,
        "default": {"schedule": default.schedule, "steps": default.steps, "beta": default.beta},
        "same_tables": same,
        **{
            group: [
                {**{name: getattr(row, name) for name in SHOWN[group]}, **figures[row]}
                for row in rows
            ]
            for group, rows in wanted.items()
        },
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
