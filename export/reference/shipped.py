"""Stage `trials`: the held-out trials that the demo decodes, and the export's golden volume."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .noise import Brain
from .scenes import Scenes, draw_scenes, render
from .texts import caption
from .trials import Session, to_nifti
from .world import SEEN, UNSEEN, Subject

SHIPPED = (
    ("S1", 3), ("S2", 3), ("S5", 3), ("S1", 1), ("S4", 1), ("S7", 3), ("S8", 3), ("S7", 1),
)  # fmt: skip
"""Subject and number of trials averaged, for each shipped trial. Scenes are the first of a seeded
draw, never chosen by result.
"""


def averaged_trials(subject: str, scenes: Scenes, repeats: int, seed: int) -> NDArray[np.float32]:
    """Mean over repeats of each scene, (B, X, Y, Z) float32; the scenes are shown once each, then
    again.
    """
    session = Session(Brain(Subject(subject)), seed)
    total = np.zeros((len(scenes), *Subject(subject).shape), np.float32)
    for _ in range(repeats):
        for i, volume in enumerate(session.trials(scenes)):
            total[i] += volume
    total /= repeats
    return total


def write_trials(checkpoint: Path, work: Path) -> None:
    """Write trials/ (volumes, true pictures, trials.json) and golden/volume.nii.gz below the
    checkpoint's folder.
    """
    del work
    folder = checkpoint / "trials"
    folder.mkdir(parents=True, exist_ok=True)
    scenes = draw_scenes(len(SHIPPED), np.random.default_rng(81), held_out=True)
    pictures = (render(scenes) * 255).round().astype(np.uint8)
    rows = []
    for i, (subject, repeats) in enumerate(SHIPPED):
        name = f"trial-{i + 1:02d}"
        volume = averaged_trials(subject, scenes[i : i + 1], repeats, 82 + i)[0]
        nib.save(to_nifti(volume, Subject(subject)), folder / f"{name}.nii.gz")
        Image.fromarray(pictures[i]).save(folder / f"{name}.png")
        rows.append(
            {
                "name": name,
                "subject": subject,
                "seen": subject in SEEN,
                "average_of": repeats,
                "volume": f"{name}.nii.gz",
                "scene": f"{name}.png",
                "caption": caption(scenes.named(i)),
            }
        )
    golden = draw_scenes(1, np.random.default_rng(83), held_out=True)
    (checkpoint / "golden").mkdir(exist_ok=True)
    # Not the subject whose grid is the model grid: verify should see a real resize.
    volume = averaged_trials("S5", golden, 3, 84)[0]
    nib.save(to_nifti(volume, Subject("S5")), checkpoint / "golden/volume.nii.gz")
    (folder / "trials.json").write_text(json.dumps({"trials": rows}, indent=2) + "\n")


assert all(subject in SEEN + UNSEEN for subject, _ in SHIPPED)
