"""The localizer's graph: the gradient in it is autograd's, and its weights lie on disk once."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import external_data_helper

from scanside.export.checkpoint import open_checkpoint
from scanside.export.localizer import (
    CONCEPTS,
    EncoderWithHidden,
    LocalizationSettings,
    Localizer,
)
from scanside.export.localizer_parts import read_localization
from scanside.export.localizer_stages import autograd_relevance
from scanside.export.parity import compare_graph
from scanside.export.shared_weights import fold_repeats, share_weights
from scanside.export.to_onnx import export_graph
from scanside.export.vit3d import ViT3D, ViT3DConfig
from scanside.runtime.errors import CheckpointError
from scanside.runtime.localization.choices import BASELINES, CAMS, LAYERS, SCORES

CONFIG = ViT3DConfig(
    num_cubes=9,
    cube=3,
    hidden_size=40,
    num_hidden_layers=2,
    num_attention_heads=5,
    intermediate_size=72,
    head_hidden_size=56,
    clip_size=20,
    latent_shape=(4, 4, 4),
    prefix_size=24,
    prefix_hidden_size=24,
)


@pytest.fixture(scope="module")
def encoder() -> ViT3D:
    torch.manual_seed(0)
    return ViT3D(CONFIG).half().float().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def hidden(encoder: ViT3D) -> torch.Tensor:
    torch.manual_seed(1)
    return encoder.features(torch.randn(1, 9, 27))[0]


def some_concepts(count: int) -> np.ndarray:
    vectors = np.zeros((CONCEPTS, CONFIG.clip_size), np.float32)
    vectors[:count] = np.random.default_rng(2).standard_normal((count, CONFIG.clip_size))
    return vectors


@pytest.mark.parametrize(
    ("score", "cam", "layer", "baseline"), list(itertools.product(SCORES, CAMS, LAYERS, BASELINES))
)
def test_the_gradient_is_autograds(
    encoder: ViT3D, hidden: torch.Tensor, score: str, cam: str, layer: str, baseline: str
) -> None:
    settings = LocalizationSettings(score=score, cam=cam, layer=layer, baseline=baseline)
    vectors = some_concepts(3)
    relevance, similarity = Localizer(encoder, settings)(hidden, torch.from_numpy(vectors))
    for row in range(3):
        want, cosine = autograd_relevance(encoder, hidden.numpy(), vectors[row], settings)
        size = np.abs(want).max()
        if (cam, layer, baseline) == ("hirescam", "output", "none"):
            # all but zero, for attention does not see a token's length: nothing to divide by
            size = max(size, 1e-2)
        np.testing.assert_allclose(relevance[row], want, atol=1e-4 * size)
        assert similarity[row] == pytest.approx(cosine, abs=1e-5)
    assert not relevance[3:].any()
    assert not similarity[3:].any()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_graph_is_autograd_within_the_export_tolerance(
    encoder: ViT3D, hidden: torch.Tensor, tmp_path: Path, layer: str
) -> None:
    settings, vectors = LocalizationSettings(layer=layer), some_concepts(CONCEPTS)
    inputs = {"hidden": hidden, "concepts": torch.from_numpy(vectors)}
    module = Localizer(encoder, settings).traced(*inputs.values())
    path = export_graph(module, inputs, ["relevance", "similarity"], tmp_path / "localizer.onnx")
    # another volume than the one that it was traced on
    other = hidden.numpy() + np.random.default_rng(3).standard_normal(hidden.shape, np.float32)
    found = [autograd_relevance(encoder, other, vector, settings) for vector in vectors]
    wanted = {
        "relevance": np.stack([relevance for relevance, _ in found]),
        "similarity": np.array([similarity for _, similarity in found], np.float32),
    }
    assert compare_graph(path, [({"hidden": other, "concepts": vectors}, wanted)]).relative < 1e-4


def test_a_concept_does_not_change_its_neighbours(encoder: ViT3D, hidden: torch.Tensor) -> None:
    localizer = Localizer(encoder, LocalizationSettings())
    vectors = torch.from_numpy(some_concepts(CONCEPTS))
    alone, _ = localizer(hidden, vectors[:1])
    together, _ = localizer(hidden, vectors)
    torch.testing.assert_close(together[:1], alone)
    assert (together[0] - together[1]).abs().max() > 1e-4 * together.abs().max()


@pytest.fixture
def pair(encoder: ViT3D, hidden: torch.Tensor, tmp_path: Path) -> tuple[Path, Path]:
    """encoder.onnx and localizer.onnx."""
    tokens = torch.zeros(1, 9, 27)
    names = ["clip", "latent", "prefix", "hidden"]
    owner = export_graph(
        EncoderWithHidden(encoder), {"tokens": tokens}, names, tmp_path / "encoder.onnx"
    )
    inputs = {"hidden": hidden, "concepts": torch.from_numpy(some_concepts(CONCEPTS))}
    module = Localizer(encoder, LocalizationSettings()).traced(*inputs.values())
    return owner, export_graph(
        module, inputs, ["relevance", "similarity"], tmp_path / "localizer.onnx"
    )


def run(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_shared_weights_change_no_number_and_lie_on_disk_once(
    pair: tuple[Path, Path], hidden: torch.Tensor
) -> None:
    tokens = np.random.default_rng(0).standard_normal((1, 9, 27), np.float32)
    feeds = {"hidden": hidden.numpy(), "concepts": some_concepts(4)}
    before = [*run(pair[0], tokens=tokens), *run(pair[1], **feeds)]
    sizes = [path.stat().st_size for path in pair]
    data = pair[0].with_name("shared.data")
    shared = share_weights(*pair, data)
    after = [*run(pair[0], tokens=tokens), *run(pair[1], **feeds)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
    # six matrices of the last layer and two of f_wc, in half precision
    width, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    matrices = 4 * width**2 + 2 * width * inner
    matrices += CONFIG.head_hidden_size * (width + CONFIG.clip_size)
    assert 2 * matrices <= shared == data.stat().st_size < 2 * matrices + 1024
    total = sum(path.stat().st_size for path in (*pair, data))
    assert total < sum(sizes) - 2 * matrices
    inline = [t for t in onnx.load(pair[1], load_external_data=False).graph.initializer]
    kept = [t for t in inline if not external_data_helper.uses_external_data(t)]
    assert max(np.prod(t.dims) for t in kept) <= 9 * width, "the mean brain's tokens at most"


def test_graphs_with_nothing_in_common_stay_as_they_are(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    other = export_graph(
        torch.nn.Linear(64, 64), {"x": torch.zeros(1, 64)}, ["y"], tmp_path / "other.onnx"
    )
    before = pair[0].read_bytes()
    assert share_weights(pair[0], other, tmp_path / "shared.data") == 0
    assert not (tmp_path / "shared.data").exists()
    assert pair[0].read_bytes() == before


def test_a_graph_holds_no_matrix_twice(pair: tuple[Path, Path], hidden: torch.Tensor) -> None:
    feeds = {"hidden": hidden.numpy(), "concepts": some_concepts(4)}
    before, size = run(pair[1], **feeds), pair[1].stat().st_size
    fold_repeats(pair[1])
    assert pair[1].stat().st_size < size
    for old, new in zip(before, run(pair[1], **feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-7)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def add_encoder(checkpoint: Path, cube: int, **changes: object) -> None:
    """Write encoder_<cube>/ of the checkpoint's geometry, with as many cubes as its mask keeps."""
    import nibabel as nib

    from scanside.export.cubes import active_cubes

    config = open_checkpoint(checkpoint).encoder
    mask = np.asarray(nib.load(checkpoint / "geometry/mask.nii.gz").dataobj)
    count = len(active_cubes(mask, cube, config.pad, config.keep_fraction))
    torch.manual_seed(cube)
    ViT3D(replace(config, cube=cube, num_cubes=count, **changes)).save(
        checkpoint / f"encoder_{cube}"
    )


def test_up_to_two_encoders_stand_beside_the_one_that_decodes(checkpoint: Path) -> None:
    add_encoder(checkpoint, 4)
    add_encoder(checkpoint, 5)
    found = read_localization(open_checkpoint(checkpoint))
    assert found is not None
    assert [part.name for part in found.others] == ["encoder_5", "encoder_4"]
    for part in found.others:
        assert part.mean.shape == (part.config.num_cubes, part.config.cube**3)
        assert part.load().config.cube == part.config.cube
    add_encoder(checkpoint, 3)
    with pytest.raises(CheckpointError, match="4 encoders; a bundle holds up to 3"):
        read_localization(open_checkpoint(checkpoint))


def test_an_encoder_that_only_localizes_needs_no_other_heads(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    add_encoder(checkpoint, 5)
    path = checkpoint / "encoder_5/model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if not k.startswith(("f_wv", "f_t"))}, path)
    (part,) = read_localization(open_checkpoint(checkpoint)).others
    part.load()
    save_file({k: v for k, v in weights.items() if not k.startswith("f_wc")}, path)
    with pytest.raises(CheckpointError, match=r"encoder_5/' is no ViT3D .* missing are \['f_wc"):
        part.load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_size": 32}, "encoder clip_size is 24, encoder_5 clip_size is 32"),
        ({"mapping": "affine"}, "mapping is resize, encoder_5 mapping is affine"),
    ],
)
def test_encoders_that_do_not_fit_each_other_are_refused(
    checkpoint: Path, changes: dict[str, object], message: str
) -> None:
    add_encoder(checkpoint, 5, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_localization(open_checkpoint(checkpoint))


def test_a_checkpoint_without_concepts_has_no_localizer(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "concept")
    assert read_localization(open_checkpoint(checkpoint)) is None
    add_encoder(checkpoint, 5)
    with pytest.raises(CheckpointError, match="has encoder_5/ but no concept/"):
        read_localization(open_checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"score": "l2"}, "score must be one of cosine, dot; got 'l2'"),
        ({"cam": "grad"}, "cam must be one of gradcam, hirescam"),
        ({"threshold": 1.5}, "threshold must be above 0 and at most 1; got 1.5"),
        ({"colour": 1}, r"unknown keys \['colour'\]; expected of score, cam"),
    ],
)
def test_wrong_settings_are_refused(
    checkpoint: Path, values: dict[str, object], message: str
) -> None:
    (checkpoint / "concept/localization.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        read_localization(open_checkpoint(checkpoint))
