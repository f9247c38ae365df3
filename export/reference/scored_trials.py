"""Held-out trials of the reference world in files, by which options of an export are scored."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from .scenes import draw_scenes, render
from .scores import volumes
from .texts import caption
from .trials import to_nifti
from .world import SEEN, Subject

TRIALS = 120
_SCENES_SEED, _BRAINS_SEED = 97, 98


def write_scored_trials(folder: Path, trials: int = TRIALS) -> Path:
    """Single trials of subjects whose brains the models know, who see scenes that are new to them.

    Parameters
    ----------
    folder : Path
        Made; holds `trials.json`, volumes and pictures as `export.held_out` reads them.
    trials : int
        The subjects take turns.
    """
    folder.mkdir(parents=True)
    scenes = draw_scenes(trials, np.random.default_rng(_SCENES_SEED), held_out=True)
    pictures = (render(scenes) * 255).round().astype(np.uint8)
    for index, subject, volume in volumes(scenes, SEEN, 1, _BRAINS_SEED):
        nib.save(to_nifti(volume, Subject(subject)), folder / f"{index}.nii.gz")
        Image.fromarray(pictures[index]).save(folder / f"{index}.png")
    rows = [
        {"volume": f"{i}.nii.gz", "scene": f"{i}.png", "caption": caption(scenes.named(i))}
        for i in range(trials)
    ]
    (folder / "trials.json").write_text(json.dumps({"trials": rows}, indent=2) + "\n")
    return folder
