"""Held-out trials whose truth is known, and how well a decoder answers them.

A folder with `trials.json`, as `scanside reference` and the shipped trials have it:

    {"trials": [{"volume": "trial-01.nii.gz", "scene": "trial-01.png", "caption": "a red ..."}]}

`scene` is the picture that was seen. Where no trial has a scene, or none a caption, what is there
is scored alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..runtime import Decoder
from ..runtime.errors import InputError
from ..runtime.volume import load_volume

LEAST_TRIALS = 20
"""With fewer, one trial moves a score by more than five points."""
Pictures = NDArray[np.uint8]
Scores = dict[str, NDArray[np.float64]]
"""(B,) per trial, by what is scored: caption, PixCorr, two-way identification."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One volume, and what was really seen."""

    volume: Path
    scene: Path | None
    caption: str | None


def read_trials(folder: Path) -> list[Trial]:
    """All trials of a folder.

    Raises
    ------
    InputError
        No or broken `trials.json`, a file that is missing, a truth that only some trials have, or
        fewer trials than `LEAST_TRIALS`.
    """
    try:
        rows = json.loads((folder / "trials.json").read_text(encoding="utf-8"))["trials"]
        trials = [_trial(folder, row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InputError(
            f"'trials' must be a folder with trials.json, "
            '{"trials": [{"volume": FILE, "scene": PICTURE, "caption": TEXT}]}; '
            f"{folder} cannot be read: {type(exc).__name__}: {exc}"
        ) from exc
    if len(trials) < LEAST_TRIALS:
        raise InputError(
            f"'trials' needs at least {LEAST_TRIALS} trials to tell scores apart; {folder} has "
            f"{len(trials)}"
        )
    files = [path for trial in trials for path in (trial.volume, trial.scene) if path]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise InputError(f"'trials' names {missing[0]}, which is not there")
    for truth in ("scene", "caption"):
        known = sum(getattr(trial, truth) is not None for trial in trials)
        if known not in (0, len(trials)):
            raise InputError(
                f"'trials' must have a {truth} for all trials or for none; {folder} has {known} of "
                f"{len(trials)}"
            )
    if trials[0].scene is None and trials[0].caption is None:
        raise InputError(f"'trials' needs a scene or a caption for each trial; {folder} has none")
    return trials


def _trial(folder: Path, row: dict[str, Any]) -> Trial:
    scene, caption = row.get("scene"), row.get("caption")
    return Trial(
        volume=folder / str(row["volume"]),
        scene=None if scene is None else folder / str(scene),
        caption=None if caption is None else str(caption),
    )


def scored(
    decoder: Decoder, trials: Sequence[Trial], steps: Sequence[int]
) -> tuple[dict[int, Scores], list[str]]:
    """Decode every trial, with a picture for each number of steps.

    Returns
    -------
    scores : dict
        By steps; a trial's score is the mean of what there is.
    captions : list of str
        By trial; they do not depend on the steps.
    """
    captions: list[str] = []
    pictures: dict[int, list[Pictures]] = {count: [] for count in steps}
    for number, trial in enumerate(trials):
        tokens = decoder.stages.preprocessor.tokens(load_volume(trial.volume))
        texts = decoder.decode(tokens, tasks=("caption", "prompt"))
        assert texts.caption is not None
        assert texts.prompt is not None
        captions.append(texts.caption)
        for count in steps if trial.scene else ():
            # what the model wrote is given back, so that it is written once for all steps
            made = decoder.decode(
                tokens, tasks="image", seed=number, steps=count, prompt=texts.prompt or "none"
            )
            assert made.image is not None
            pictures[count].append(made.image)
    text: Scores = {}
    true = [trial.caption for trial in trials if trial.caption is not None]
    if true:
        pairs = zip(captions, true, strict=True)
        text["caption"] = np.array([common_words(said, wanted) for said, wanted in pairs])
    if trials[0].scene is None:
        return dict.fromkeys(steps, text), captions
    shape = pictures[steps[0]][0].shape
    scenes = np.stack([_scene(trial, (shape[0], shape[1])) for trial in trials])
    return {
        count: text | _of_pictures(decoder, np.stack(made), scenes)
        for count, made in pictures.items()
    }, captions


def mean_scores(scores: Scores) -> NDArray[np.float64]:
    """The score of each trial, (B,)."""
    return np.mean(list(scores.values()), axis=0)


def common_words(said: str, true: str) -> float:
    """ROUGE-L of two texts, the harmonic mean of its precision and recall, from 0 to 1.

    The longest sequence of words that both have in this order, https://aclanthology.org/W04-1013.

    >>> common_words("a red ring", "A large red ring.")
    0.8571428571428571
    """
    one, other = (re.findall(r"\w+", text.lower()) for text in (said, true))
    if not one or not other:
        return float(one == other)
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for place, wanted in enumerate(other):
            row.append(before[place] + 1 if word == wanted else max(before[place + 1], row[place]))
    return 2 * row[-1] / (len(one) + len(other))


def _of_pictures(decoder: Decoder, made: Pictures, true: Pictures) -> Scores:
    """PixCorr, and two-way identification in CLIP space where the bundle has an image encoder;
    pictures (B, H, W, 3).
    """
    found: Scores = {"pixcorr": _correlation(made, true).diagonal().clip(0, 1)}
    stage = decoder.stages.pictures
    if stage is not None and stage.ranker is not None:
        encode, vectors = stage.ranker.encode, list[NDArray[np.float32]]()
        for pictures in (made, true):
            signed = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            vectors.append(np.concatenate([encode(one[None]) for one in signed]))
        likeness = _correlation(*vectors)
        wins = likeness.diagonal()[:, None] > likeness
        found["two_way"] = wins.sum(1) / (len(wins) - 1)
    return found


def _correlation(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Pearson's, of each of one (B, ...) with each of another, (B, B)."""
    rows = [x.reshape(len(x), -1).astype(np.float64) for x in (one, other)]
    rows = [x - x.mean(1, keepdims=True) for x in rows]
    rows = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in rows]
    return rows[0] @ rows[1].T


def _scene(trial: Trial, shape: tuple[int, int]) -> Pictures:
    assert trial.scene is not None
    try:
        with Image.open(trial.scene) as picture:
            whole = picture.convert("RGB")
    except (OSError, UnidentifiedImageError) as exc:
        raise InputError(f"'trials' names {trial.scene}, which is no picture: {exc}") from exc
    height, width = shape
    if whole.size != (width, height):
        whole = whole.resize((width, height), Image.Resampling.BICUBIC)
    return cast(Pictures, np.asarray(whole))
