"""How good is the picture of the reference bundle, for each schedule and number of steps?

    cd benchmarks; python reconstruction_quality.py --json results/reconstruction_quality.json \\
        --plot results/reconstruction_quality.png

Held-out scenes, seen subjects, mean of three trials: PixCorr, SSIM and two-way identification
against steps and milliseconds; then what conditions the picture (the written prompt, the caption,
no text), and the paper's Figure 6: the share of noise in the start, with text and without. The
encoder and the language model run once for each trial; everything else is what a decode does.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from timing import ROOT, machine, write

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
from scanside.runtime.reconstruction import Condition, Reconstruction, to_pixels
from scanside.runtime.volume import load_volume

BETAS = (0.6, 0.75, 0.9, 0.93, 0.98, 1.0)
"""Shares of noise in the start: the five of the paper's Figure 6, and its default."""
TEXTS = ("written", "caption", "none")
Pictures = NDArray[np.float32]


class Trial(NamedTuple):
    """What the stages before the picture made of one volume."""

    condition: Condition
    texts: dict[str, NDArray[np.float32]]
    """Prompt encoder's answer to each of `TEXTS`."""


def trials(decoder: Decoder, count: int) -> tuple[list[Trial], Pictures]:
    """Encoded trials and their true scenes."""
    scenes = draw_scenes(count, np.random.default_rng(71), held_out=True)
    true, out = render(scenes), []
    shown = []
    pictures, language = decoder.stages.pictures, decoder.stages.language
    assert pictures is not None
    assert language is not None
    for index, subject, volume in volumes(scenes, SEEN, 3, 72):
        source = load_volume(to_nifti(volume, Subject(subject)))
        tokens = decoder.stages.preprocessor.tokens(source)
        encoded = decoder.stages.encoder.run({"tokens": tokens[None]})
        written = decoder.decode(tokens, tasks=("prompt", "caption"))
        assert written.prompt is not None
        assert written.caption is not None
        texts = {"written": written.prompt, "caption": written.caption, "none": ""}
        states = {name: pictures.prompt.encode(text)[0] for name, text in texts.items()}
        condition = Condition(
            clip=encoded["clip"], latent=encoded["latent"], states=states["written"]
        )
        out.append(Trial(condition, states))
        shown.append(true[index])
    return out, np.stack(shown)


def pictures_of(
    made: Reconstruction,
    conditions: Iterable[Condition],
    schedule: str,
    steps: int,
    beta: float | None = None,
) -> tuple[Pictures, float]:
    """Pictures (B, H, W, 3) in 0..1, and the median of their milliseconds."""
    images, ms = [], []
    for seed, condition in enumerate(conditions):
        began = time.perf_counter()
        latent = made.denoise(condition, steps=steps, seed=seed, schedule=schedule, beta=beta)
        pixels = to_pixels(made.decode(latent))
        ms.append(1e3 * (time.perf_counter() - began))
        images.append(pixels.astype(np.float32) / 255)
    return np.stack(images), float(np.median(ms))


def judge(images: Pictures, true: Pictures, frozen: FrozenEncoders) -> dict[str, float]:
    """PixCorr, SSIM and two-way identification in CLIP space."""
    similar = [
        structural_similarity(a, b, channel_axis=2, data_range=1.0)
        for a, b in zip(images, true, strict=True)
    ]
    identified = two_way_identification(clip_vectors(frozen, images), clip_vectors(frozen, true))
    return {
        "pixcorr": round(pixel_correlation(images, true), 4),
        "ssim": round(float(np.mean(similar)), 4),
        "two_way": round(identified, 4),
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """PixCorr against milliseconds, a line for each schedule."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for schedule in dict.fromkeys(row["schedule"] for row in rows):
        line = [row for row in rows if row["schedule"] == schedule]
        axes.plot([r["ms"] for r in line], [r["pixcorr"] for r in line], marker="o", label=schedule)
    for row in rows:
        if row["schedule"] == "ddim":
            axes.annotate(
                str(row["steps"]), (row["ms"], row["pixcorr"]), (0, -12), textcoords="offset points"
            )
    axes.set(xscale="log", xlabel="milliseconds for denoising and VAE", ylabel="PixCorr")
    axes.set_title("Picture against time, reference bundle; numbers are DDIM's steps")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Decode, judge, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="reference")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "export/reference/checkpoint")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    about = machine()
    frozen = FrozenEncoders(args.checkpoint)
    with Decoder.open(args.bundle, threads=args.threads) as decoder:
        encoded, true = trials(decoder, args.trials)
        pictures, spec = decoder.stages.pictures, decoder.bundle.manifest.diffusion
        assert pictures is not None
        assert spec is not None
        made = pictures.reconstruction
        written = [trial.condition for trial in encoded]
        rows = []
        for schedule, available in spec.schedules.items():
            for steps in available:
                images, ms = pictures_of(made, written, schedule, steps)
                row = {"schedule": schedule, "steps": steps, "ms": round(ms, 2)}
                rows.append(row | judge(images, true, frozen))
                print(rows[-1], flush=True)
        starts = []
        for beta in BETAS:
            for text in TEXTS:
                conditions = [
                    dataclasses.replace(trial.condition, states=trial.texts[text])
                    for trial in encoded
                ]
                images, _ = pictures_of(made, conditions, spec.schedule, spec.steps, beta)
                starts.append({"beta": beta, "text": text} | judge(images, true, frozen))
                print(starts[-1], flush=True)
    question = "quality of the picture against schedule, steps, start and text"
    result = {"question": question, **about, "trials": args.trials, "threads": args.threads}
    write({**result, "schedules": rows, "starts": starts}, args.json)
    if args.plot:
        plot(rows, args.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
