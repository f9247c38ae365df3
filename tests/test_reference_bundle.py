"""The shipped bundle: it is whole, it decodes the shipped trials, and it says how well it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanside.export.reference.scores import pixel_correlation
from scanside.export.reference.texts import named_objects
from scanside.runtime import Decoder
from scanside.runtime.cli import main

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "runtime/reference"
CHECKPOINT = ROOT / "export/reference/checkpoint"
MOST_BYTES = 40 * 2**20


@pytest.fixture(scope="module")
def decoder():
    with Decoder.open("reference", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def trials():
    return json.loads((SHIPPED / "trials/trials.json").read_text())["trials"]


@pytest.fixture(scope="module")
def results(decoder, trials):
    tasks = ("preview", "caption", "image")
    return [decoder.decode(SHIPPED / "trials" / row["volume"], tasks=tasks) for row in trials]


def test_the_shipped_bundle_verifies(capsys):
    assert main(["verify", "reference"]) == 0
    assert "verified" in capsys.readouterr().out


def test_checkpoint_and_bundle_together_stay_small():
    files = [p for folder in (SHIPPED / "bundle", CHECKPOINT) for p in folder.rglob("*")]
    assert sum(p.stat().st_size for p in files if p.is_file()) <= MOST_BYTES


def test_the_manifest_carries_scores_of_every_condition():
    manifest = json.loads((SHIPPED / "bundle/manifest.json").read_text())
    rows = manifest["quality"]["scores"]["rows"]
    conditions = {"seen, mean of three", "seen, single trial", "unseen, mean of three"}
    assert conditions <= {row["condition"] for row in rows}
    for row in rows:
        # Compiled and PyTorch within one point, on the trials that the manifest says; the small
        # number is for the rounding of shares like 0.706 - 0.696.
        assert abs(row["compiled"] - row["pytorch"]) <= 0.01 + 1e-9


def test_captions_name_far_more_objects_than_chance(trials, results):
    named = [named_objects(row["caption"]) for row in trials]
    right = sum(len(n & named_objects(r.caption)) for n, r in zip(named, results, strict=True))
    # A guessed colour and shape is right once in 48 times.
    assert right / sum(map(len, named)) > 0.6


def test_pictures_look_like_their_scenes_more_than_like_others(trials, results):
    true = np.stack([_picture(SHIPPED / "trials" / row["scene"]) for row in trials])
    images = np.stack([r.image / 255 for r in results]).astype(np.float32)
    own = pixel_correlation(images, true)
    others = pixel_correlation(images, np.roll(true, 1, axis=0))
    assert own > others + 0.6


def _picture(path: Path):
    return np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
