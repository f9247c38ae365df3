"""Half precision keeps the reference's answers, with every rounding of it on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from scanside.export.emulated import STAGES, emulated_bundle
from scanside.export.reference.scenes import draw_scenes, render
from scanside.export.reference.scores import pixel_correlation, volumes
from scanside.export.reference.texts import names_every_object
from scanside.export.reference.trials import to_nifti
from scanside.export.reference.world import SEEN, Subject
from scanside.runtime import Decoder
from scanside.runtime.bundle import REFERENCE, Bundle
from scanside.runtime.volume import load_volume

TRIALS = 6


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated_bundle("reference", tmp_path_factory.mktemp("half") / "bundle")


def test_only_the_rounded_graphs_differ(half: Path) -> None:
    whole, rounded = Bundle.open("reference"), Bundle.open(half, always_hash=True)
    changed = {
        name for name, spec in whole.manifest.files.items() if rounded.manifest.files[name] != spec
    }
    assert changed == {f"{stage}.onnx" for stage in STAGES}
    for stage in STAGES:
        before, after = (
            len(onnx.load(root / f"{stage}.onnx", load_external_data=False).graph.node)
            for root in (REFERENCE, half)
        )
        assert after > before  # three nodes round one number


def test_scores_stay_within_a_point(half: Path) -> None:
    """Few trials, the same for both; `benchmarks/half_scores.py` has more."""
    scenes = draw_scenes(TRIALS, np.random.default_rng(91), held_out=True)
    given = list(volumes(scenes, SEEN[:1], 3, 103))
    right, previews = list[float](), list[np.ndarray]()
    prefixes: list[np.ndarray] = []
    for bundle in ("reference", half):
        with Decoder.open(bundle, threads=1, warm=False) as decoder:
            texts, shown, found = [""] * TRIALS, [np.empty(0)] * TRIALS, [np.empty(0)] * TRIALS
            for scene, subject, volume in given:
                image = to_nifti(volume, Subject(subject))
                result = decoder.decode(image, tasks=("caption", "preview"), seed=0)
                assert result.caption is not None
                assert result.preview is not None
                texts[scene], shown[scene] = result.caption, result.preview / 255
                tokens = decoder.stages.preprocessor.tokens(load_volume(image))
                found[scene] = decoder.stages.encode(tokens)["prefix"]
        right.append(
            float(np.mean([names_every_object(t, scenes.named(i)) for i, t in enumerate(texts)]))
        )
        previews.append(np.stack(shown).astype(np.float32))
        prefixes.append(np.stack(found))
    true = render(scenes)
    whole, rounded = (pixel_correlation(made, true) for made in previews)
    assert whole > 0.5
    assert abs(whole - rounded) < 0.01
    assert right[1] >= right[0] - 0.01
    # the roundings are there, and small
    worst = np.abs(prefixes[0] - prefixes[1]).max() / np.abs(prefixes[0]).max()
    assert 1e-5 < worst < 1e-2
