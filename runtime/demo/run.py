"""Decode the shipped trials as a user would, and write what came out.

`run_demo(folder)` leaves `index.html`, which holds everything, and the pictures beside it as files.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle import REFERENCE
from ..decoder import Decoder
from ..png import write_png
from ..volume import load_volume
from .captions import compare
from .outcome import Outcome
from .page import Facts, png, render
from .region import read_region
from .slices import Brain, draw_brain
from .trials import Trial, read_trials

TRIALS = REFERENCE.parent / "trials"
PAGE = "index.html"
THREADS, SEED = 2, 0


def run_demo(
    out: Path,
    *,
    bundle: str | Path = "reference",
    trials: Path = TRIALS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Decode every trial of a folder with one bundle; write pictures and one page.

    Parameters
    ----------
    out : Path
        Folder to write to; made if it is missing.
    bundle : path or "reference"
        A bundle with a language model and a diffusion model.
    trials : Path
        Folder with `trials.json` and the files it names.
    progress : callable
        Told what is being done, in a few words.

    Raises
    ------
    BundleError
        The bundle or its trials are not whole.
    OSError
        The folder cannot be written.
    """
    listed = read_trials(trials)
    progress("opening the bundle")
    with Decoder.open(bundle, threads=THREADS) as decoder:
        outcomes: list[Outcome] = []
        for number, trial in enumerate(listed, 1):
            progress(f"decoding {trial.name}, {number} of {len(listed)}")
            outcomes.append(decode_trial(decoder, trial))
        page = render(outcomes, decoder.bundle.manifest.raw.get("quality", {}), _facts(decoder))
        _write(out, outcomes)
    (out / PAGE).write_text(page, encoding="utf-8")
    return outcomes


def decode_trial(decoder: Decoder, trial: Trial) -> Outcome:
    """Decode one trial and hold it against its truth."""
    result = decoder.decode(trial.volume, tasks=("preview", "caption", "image"), seed=SEED)
    assert result.caption is not None
    assert result.preview is not None
    assert result.image is not None
    return Outcome(
        trial=trial,
        brain=_brain(decoder, trial),
        scene=np.asarray(Image.open(trial.scene).convert("RGB")),
        preview=result.preview,
        image=result.image,
        caption=compare(trial.caption, result.caption),
        prompt=result.image_prompt or "",
        provenance={kind: result.provenance(kind) for kind in ("image", "preview")},
        latency_ms=result.latency_ms,
    )


def _brain(decoder: Decoder, trial: Trial) -> Brain:
    image: Any = nib.as_closest_canonical(nib.load(trial.volume))
    volume, preprocessor = load_volume(image), decoder.stages.preprocessor
    matrix = preprocessor.model_to_source(volume)
    region = read_region(preprocessor.geometry, matrix, volume.data.shape)
    scale = decoder.bundle.manifest.input.scale
    values: NDArray[np.float32] = image.get_fdata(dtype=np.float32) * np.float32(scale)
    return draw_brain(values, image.affine, region)


def _facts(decoder: Decoder) -> Facts:
    manifest = decoder.bundle.manifest
    assert manifest.diffusion is not None
    return Facts(
        bundle=manifest.name,
        identity=decoder.bundle.sha256,
        created=manifest.raw["created"],
        machine=f"{_processor()} ({os.cpu_count()} logical cores)",
        threads=THREADS,
        steps=manifest.diffusion.steps,
        schedule=manifest.diffusion.schedule,
        producer=manifest.raw["producer"],
        input_units=manifest.input.units,
    )


def _processor() -> str:
    """Name of the processor; the `platform` module does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _write(out: Path, outcomes: list[Outcome]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        name = outcome.trial.name
        for drawn in outcome.brain.slices:
            (out / f"{name}-{drawn.plane}.png").write_bytes(png(drawn.pixels))
        for kind, pixels in (("preview", outcome.preview), ("image", outcome.image)):
            write_png(out / f"{name}-{kind}.png", pixels, outcome.provenance[kind])
