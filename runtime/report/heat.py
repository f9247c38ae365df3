"""Where concepts are, trial by trial: made from the betas that a run kept, shown as slices.

A map is made after the run, with the bundle that decoded it, and kept in the run's folder as NIfTI
on the model grid, which lies in the world of the run: nothing is interpolated a second time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from PIL import Image

from ..decoder import Decoder
from ..errors import InputError
from .betas import Betas
from .pictures import address
from .story import Attempt, Story, Trial

HEAT = "heat"
_AXES = (("sagittal", 0), ("coronal", 1), ("axial", 2))
_ZOOM = 1.0
"""Pixels for each millimetre."""
_PAPER = np.array([248, 248, 246])
_HOT = np.array([[226, 226, 222], [245, 150, 50], [120, 20, 0]])
"""Colours from nothing to the hottest."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One plane through a map where it is hottest."""

    plane: str
    position: str
    address: str
    """A picture that holds itself."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A map that is kept in a run's folder."""

    path: Path
    concept: str
    similarity: float
    """Cosine between the decoded CLIP vector and the concept."""
    revision: int
    slices: tuple[Slice, ...]


def locate(story: Story, decoder: Decoder, concepts: Sequence[str]) -> int:
    """Make the maps of every trial that has a beta; how many were made.

    Parameters
    ----------
    story : Story
    decoder : Decoder
        Of the bundle that decoded the run.
    concepts : sequence of str
        Each a few words.

    Raises
    ------
    InputError
        Another bundle, one without a localizer, or a run that kept no betas.
    """
    if decoder.bundle.sha256 != story.header["bundle"]:
        raise InputError(
            f"the run was decoded by bundle {story.header['bundle'][:16]}, not by "
            f"{decoder.bundle.sha256[:16]}; name that one"
        )
    localizer = decoder.stages.need_localizer()
    vectors = localizer.concepts.vectors(concepts)
    betas = Betas.of(story)
    made = 0
    for attempt, trial in story.trials():
        revision = newest_revision(story, attempt, trial)
        if revision is None:
            continue
        values, _ = betas.read(attempt.number, trial.number, revision)
        grid = betas.grid(values)
        rows: list[tuple[Any, Any]] = []
        for member in localizer.members:
            tokens = member.cubes.tokens_of(grid)
            if member.encoder is None:
                hidden = decoder.stages.encode(tokens)["hidden"]
            else:
                hidden = member.encoder.run({"tokens": tokens[None]})["hidden"]
            rows.append(member.relevance(hidden, vectors))
        for k, concept in enumerate(concepts):
            heat = localizer.fused([relevance[k] for relevance, _ in rows])
            image = betas.image(heat, attempt)
            sign = float(np.mean([similarity[k] for _, similarity in rows]))
            _keep(story, (attempt.number, trial.number, revision), concept.strip(), sign, image)
            made += 1
    return made


def newest_revision(story: Story, attempt: Attempt, trial: Trial) -> int | None:
    """The refined answer's, or the fast one's where no refined beta was kept."""
    for revision in (1, 0):
        if story.beta(attempt.number, trial.number, revision) is not None:
            return revision
    return None


def _keep(
    story: Story, key: tuple[int, int, int], concept: str, similarity: float, image: Any
) -> None:
    attempt, trial, revision = key
    folder = story.folder / HEAT
    name = f"attempt-{attempt}-trial-{trial:04d}-revision-{revision}-{label(concept)}"
    told = {
        "attempt": attempt,
        "trial": trial,
        "revision": revision,
        "concept": concept,
        "similarity": round(similarity, 4),
    }
    try:
        folder.mkdir(exist_ok=True)
        nib.save(image, folder / f"{name}.nii.gz")
        (folder / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")
    except OSError as exc:
        raise InputError(f"{folder} cannot be written: {exc.strerror}") from exc


def label(concept: str) -> str:
    """A concept as names of files can hold it: letters and digits alone."""
    words = re.findall("[A-Za-z0-9]+", concept)
    return "".join([words[0].lower(), *(word.capitalize() for word in words[1:])]) if words else "x"


def heat_maps(story: Story, *, draw: bool = True) -> dict[tuple[int, int], list[HeatMap]]:
    """The maps that are kept, by attempt and trial; with pictures, if `draw`."""
    found: dict[tuple[int, int], list[HeatMap]] = {}
    paths = sorted((story.folder / HEAT).glob("*.json"))
    region = Betas.of(story).region() if paths and draw else np.empty(0)
    for path in paths:
        try:
            told = json.loads(path.read_text())
            image: Any = nib.load(path.with_suffix(".nii.gz"))
            slices = _slices(image, region) if draw else ()
        except (OSError, ValueError, ImageFileError) as exc:
            raise InputError(f"{path} is damaged ({exc}); locate again, or remove it") from exc
        one = HeatMap(
            path.with_suffix(".nii.gz"),
            told["concept"],
            float(told["similarity"]),
            int(told["revision"]),
            slices,
        )
        found.setdefault((told["attempt"], told["trial"]), []).append(one)
    return found


def _slices(image: Any, region: NDArray[Any]) -> tuple[Slice, ...]:
    """Three planes; left is left, and what the model does not read has the colour of the page."""
    upright, inside = (
        nib.as_closest_canonical(nib.Nifti1Image(data, image.affine))
        for data in (np.asarray(image.dataobj, np.float32), region.astype(np.float32))
    )
    heat, read = (np.asarray(one.dataobj, np.float32) for one in (upright, inside))
    centre = np.unravel_index(int(heat.argmax()), heat.shape)
    mm = apply_affine(upright.affine, centre)
    sizes = np.asarray(upright.header.get_zooms()[:3], np.float64)
    top = float(heat.max()) or 1.0
    found: list[Slice] = []
    for plane, axis in _AXES:
        # rows of a picture run downwards, so the upper direction has to come first
        cut, shown = (np.moveaxis(one, axis, 0)[centre[axis]].T[::-1] for one in (heat, read))
        at = np.linspace(0, 1, len(_HOT))
        colours = np.stack([np.interp(cut / top, at, _HOT[:, c]) for c in range(3)], -1)
        colours[shown == 0] = _PAPER
        across, up = (sizes[one] for one in range(3) if one != axis)
        picture = Image.fromarray(colours.round().astype(np.uint8)).resize(
            (round(cut.shape[1] * across * _ZOOM), round(cut.shape[0] * up * _ZOOM)),
            Image.Resampling.NEAREST,
        )
        position = f"{'xyz'[axis]} = {mm[axis]:.0f} mm".replace("-", "\N{MINUS SIGN}")
        found.append(Slice(plane, position, address(picture)))
    return tuple(found)
