"""Where a concept is: the map lies where it should, speaks of what was asked, and can be drawn."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image

from scanside.kernels import Geometry
from scanside.runtime import BundleError, Decoder, Done, Heatmap, InputError, Token
from scanside.runtime.cli import main
from scanside.runtime.localization.ablation import located, random_like
from scanside.runtime.localization.asked import ask_concept, concept_in, is_sentence
from scanside.runtime.localization.heat import CubeMap, fuse, scale, to_volume
from scanside.runtime.manifest import EncoderSpec, GridSpec, TensorSpec
from scanside.runtime.preprocess import Preprocessor
from scanside.runtime.volume import load_volume

ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]
HOT = 29
"""A cube in the middle of the model grid below."""
PRESENT = "dog"
"""A concept for which the random weights have some relevance in the golden volume."""


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Path) -> Iterator[Decoder]:
    with Decoder.open(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def three(three_encoder_bundle: Path) -> Iterator[Decoder]:
    with Decoder.open(three_encoder_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def volume(tiny_bundle: Path) -> Path:
    return tiny_bundle / "golden" / "volume.nii.gz"


def without_localizer(bundle: Path, folder: Path) -> Path:
    """The bundle as an exporter without localization wrote it."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["localization"]
    for encoder in manifest["encoders"]:
        del encoder["localizer"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


# --- the map lies where it should


def reading(geometry: GridSpec) -> tuple[Preprocessor, CubeMap]:
    """Preprocessor and cube map of an encoder that reads every cube."""
    x, y, z = (-(-size // geometry.cube) for size in geometry.grid)
    active = np.arange(x * y * z)
    shape = (1, len(active), geometry.cube**3)
    spec = EncoderSpec(
        role="decode",
        file="encoder.onnx",
        arrays="encoder.npz",
        geometry=geometry,
        normalisation="none",
        inputs={"tokens": TensorSpec(shape=shape, dtype="float32")},
        outputs={},
    )
    preprocessor = Preprocessor(spec, {"active": active}, 1.0)
    return preprocessor, CubeMap(preprocessor.geometry, preprocessor.live, 1)


def model_grid(mapping: str, pad: str = "back") -> GridSpec:
    affine = ((0.0, 0, 3.0, -30), (0, 2.5, 0, -40), (4.0, 0, 0, -25), (0, 0, 0, 1))
    return GridSpec(
        grid=(20, 26, 22), axcodes="SAR", affine=affine, cube=6, pad=pad,
        mapping=mapping, align_corners=False, cubes=80,
    )  # fmt: skip


def hot_volume(axcodes: str, low: np.ndarray, high: np.ndarray) -> nib.Nifti1Image:
    """1 between two corners in millimetres, 0 elsewhere, on an anisotropic grid that covers the
    model's field of view and is stored in the given orientation.
    """
    zooms, start = np.array([1.7, 2.3, 3.1]), np.array([-36.0, -44.0, -33.0])
    shape = (46, 36, 34)
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = start
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * zooms + start
    data = ((points >= low) & (points <= high)).all(-1).astype(np.float32)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(axcodes)))
    return nib.Nifti1Image(apply_orientation(data, turn), affine @ inv_ornt_aff(turn, shape))


def centre_of(heat: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Millimetres of the upper half of a map's mass."""
    voxels = np.argwhere(heat >= 0.5 * heat.max())
    weights = heat[tuple(voxels.T)]
    return (affine @ [*np.average(voxels, axis=0, weights=weights), 1])[:3]


@pytest.mark.parametrize(
    ("axcodes", "pad"),
    [*((axcodes, "back") for axcodes in ORIENTATIONS), ("RAS", "front"), ("PIL", "both")],
)
def test_one_hot_cube_lands_within_a_voxel(axcodes: str, pad: str) -> None:
    grid = model_grid("affine", pad)
    preprocessor, cubes = reading(grid)
    corner = preprocessor.geometry.corners[HOT]
    box = np.array(grid.affine) @ [*zip(corner - 0.5, corner + 5.5, strict=True), (1, 1)]
    low, high = box[:3].min(1), box[:3].max(1)
    image = hot_volume(axcodes, low, high)
    source = load_volume(image)
    relevance = preprocessor.tokens(source).mean(1)
    assert relevance.argmax() == HOT
    matrix = preprocessor.model_to_source(source)
    heat = to_volume(cubes.grid(relevance), matrix, source.data.shape, 1)
    assert heat.shape == image.shape
    off = np.linalg.inv(image.affine)[:3, :3] @ (centre_of(heat, image.affine) - (low + high) / 2)
    assert np.abs(off).max() < 1, "within one voxel of the volume, along each of its axes"


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SAR", "ILA"])
def test_one_hot_cube_lands_within_a_voxel_of_a_resized_volume(axcodes: str) -> None:
    """Shape to shape: where a cube of the model grid lies is told by the volume, not by affines."""
    grid = model_grid("resize")
    preprocessor, cubes = reading(grid)
    # the same share of the volume's extent, its axes in the order S, A, R
    corner = preprocessor.geometry.corners[HOT]
    share = np.stack([corner, corner + 6]) / np.array(grid.grid)
    extent = np.array([46, 36, 34]) * [1.7, 2.3, 3.1]
    edge = np.array([-36.0, -44.0, -33.0]) - 0.5 * np.array([1.7, 2.3, 3.1])
    low, high = edge + extent * share[:, ::-1]
    image = hot_volume(axcodes, low, high)
    source = load_volume(image)
    relevance = preprocessor.tokens(source).mean(1)
    matrix = preprocessor.model_to_source(source)
    heat = to_volume(cubes.grid(relevance), matrix, source.data.shape, 1)
    off = np.linalg.inv(image.affine)[:3, :3] @ (centre_of(heat, image.affine) - (low + high) / 2)
    assert np.abs(off).max() < 1


def test_cubes_of_every_size_agree_on_the_place() -> None:
    """What is fused must lie in one place: a smooth source through cubes of 6, 5 and 4."""
    centres = []
    for cube in (6, 5, 4):
        geometry = Geometry(grid=(24, 24, 24), cube=cube, active=np.arange((-(-24 // cube)) ** 3))
        middle = geometry.corners + (cube - 1) / 2
        relevance = np.exp(-((middle - [9.0, 12.5, 14.0]) ** 2).sum(1) / 50).astype(np.float32)
        heat = CubeMap(geometry, geometry.in_grid, 1).grid(relevance)
        centres.append(centre_of(heat, np.eye(4)))
    assert np.ptp(centres, axis=0).max() < 1


def test_a_map_is_the_trilinear_one_of_torch() -> None:
    import torch
    from torch.nn import functional as F

    geometry = Geometry(grid=(20, 26, 22), cube=6, active=np.arange(80), pad="back")
    relevance = np.random.default_rng(0).random(80, np.float32)
    cubes = torch.from_numpy(relevance.reshape(1, 1, 4, 5, 4))
    padded = F.interpolate(cubes, (24, 30, 24), mode="trilinear", align_corners=False)
    heat = CubeMap(geometry, geometry.in_grid, 1).grid(relevance)
    np.testing.assert_allclose(heat, padded[0, 0, :20, :26, :22], atol=1e-6)


def test_nothing_is_hot_outside_the_active_cubes_and_edges_are_not_dimmed() -> None:
    geometry = Geometry(grid=(18, 18, 18), cube=6, active=np.array([13, 14]))
    live = geometry.in_grid.copy()
    live[0, :7] = False
    heat = CubeMap(geometry, live, 1).grid(np.ones(2, np.float32))
    assert np.count_nonzero(heat) == 2 * 216 - 7
    assert heat[heat > 0] == pytest.approx(1)


def test_maps_are_scaled_before_they_are_fused() -> None:
    weak, strong = np.zeros((2, 1, 1, 4), np.float32)
    weak[0, 0, 1], strong[0, 0, 2] = 1e-3, 10
    assert fuse([weak, strong], "mean")[0, 0].tolist() == [0, 0.5, 0.5, 0]
    assert fuse([weak, strong], "max")[0, 0].tolist() == [0, 1, 1, 0]
    assert fuse([weak, strong, weak], "others")[0, 0].tolist() == [0, 0.5, 0.5, 0]
    assert fuse([weak, strong], "others")[0, 0].tolist() == [0, 0, 1, 0]
    assert fuse([strong], "mean") is strong
    assert fuse([strong], "others") is strong
    assert scale(np.array([-2.0, 1.0]), "max").tolist() == [-1, 0.5]
    assert scale(np.array([-2.0, 2.0]), "minmax").tolist() == [0, 1]
    assert scale(np.zeros(2), "max").tolist() == [0, 0]


# --- decoding


def test_a_location_lies_on_the_volumes_own_grid(decoder: Decoder, volume: Path) -> None:
    (found,) = decoder.locations(volume, PRESENT)
    image = nib.load(volume)
    assert found.heat.shape == image.shape
    np.testing.assert_array_equal(found.heat.affine, image.affine)
    heat = found.heat.get_fdata()
    assert (heat.min(), round(heat.max(), 6)) >= (0, 0.8)
    assert bytes(found.heat.header["descrip"]).startswith(b"where: dog")
    np.testing.assert_array_equal(decoder.locate(volume, PRESENT).get_fdata(), heat)
    # the hottest voxel lies in, or beside, the most relevant cube
    best = decoder.stages.preprocessor.geometry.corners[found.relevance[0].argmax()]
    hottest = np.array(np.unravel_index(found.grid.argmax(), found.grid.shape))
    assert (hottest >= best - 1).all()
    assert (hottest <= best + 6).all()


@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "SAL"])
def test_every_orientation_gives_the_same_map(decoder: Decoder, volume: Path, axcodes: str) -> None:
    image = nib.load(volume)
    turn = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(tuple(axcodes)))
    turned = image.as_reoriented(turn)
    back = decoder.locate(turned, PRESENT)
    again = nib.as_closest_canonical(back).get_fdata()
    want = nib.as_closest_canonical(decoder.locate(volume, PRESENT)).get_fdata()
    np.testing.assert_allclose(again, want, atol=1e-4)


def test_many_concepts_are_placed_in_one_pass_of_the_encoder(
    decoder: Decoder, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{colour} dog" for colour in ("red", "green", "blue", "white", "black") for _ in "ab"]
    alone = [decoder.locations(volume, name)[0] for name in names]
    runs = {"encoder": 0, "localizer": 0, "concept_encoder": 0}

    def counted(engine: object, stage: str) -> None:
        run = engine.run

        def once(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            runs[stage] += 1
            return run(feeds)

        monkeypatch.setattr(engine, "run", once)

    counted(decoder.stages.encoder, "encoder")
    counted(decoder.stages.localizer.members[0].localizer, "localizer")
    counted(decoder.stages.localizer.concepts.engine, "concept_encoder")
    together = decoder.locations(volume, names)
    # ten concepts are two batches of eight; all vectors are remembered
    assert runs == {"encoder": 1, "localizer": 2, "concept_encoder": 0}
    for one, other in zip(alone, together, strict=True):
        assert one.concept == other.concept
        assert one.similarity == pytest.approx(other.similarity, abs=1e-5)
        np.testing.assert_allclose(one.grid, other.grid, atol=1e-4)


def test_three_encoders_are_fused(three: Decoder, volume: Path) -> None:
    localizer = three.stages.localizer
    assert [m.cubes.geometry.cube for m in localizer.members] == [6, 5, 4]
    found, other = three.locations(volume, [PRESENT, "red circle"])
    assert [len(row) for row in found.relevance] == [
        len(m.cubes.geometry.active) for m in localizer.members
    ]
    maps = [
        scale(member.cubes.grid(np.maximum(row, 0)), "max")
        for member, row in zip(localizer.members, found.relevance, strict=True)
    ]
    np.testing.assert_allclose(found.grid, scale(np.mean(maps, 0), "max"), atol=1e-6)
    assert np.abs(found.grid - other.grid).max() > 0.1
    assert main(["verify", str(three.bundle.root)]) == 0


def test_a_heat_map_is_an_event_and_part_of_the_result(decoder: Decoder, volume: Path) -> None:
    events = list(decoder.stream(volume, ("caption",), locate=["dog", "house"]))
    kinds = [type(event) for event in events]
    assert kinds[:2] == [Heatmap, Heatmap]
    assert kinds[-1] is Done
    assert set(kinds[2:-1]) == {Token}
    result = events[-1].result
    assert [one.concept for one in result.locations] == ["dog", "house"]
    assert {"locate", "until_heatmap"} <= set(result.latency_ms)
    assert [row["concept"] for row in result.as_dict()["located"]] == ["dog", "house"]
    assert decoder.decode(volume, "caption").locations == []


# --- without the located voxels


def test_ablation_takes_the_located_voxels_away(decoder: Decoder, volume: Path) -> None:
    found = decoder.locate(volume, PRESENT, ablate=True, tasks="caption", threshold=0.3)
    tokens = decoder.stages.preprocessor.tokens(load_volume(volume))
    live = decoder.stages.preprocessor.live
    mask = located(decoder.stages.localizer, found.location, live, 0.3)
    grid = found.location.grid
    assert found.voxels == mask.sum() == np.count_nonzero(grid >= 0.3 * grid.max()) > 0
    assert not mask[~live].any()
    without = decoder.decode(np.where(mask, 0, tokens), "caption")
    assert found.after.caption == without.caption
    assert found.before.caption == decoder.decode(volume, "caption").caption
    vector = decoder.stages.localizer.concepts.vectors([PRESENT])[0]
    clip = decoder.stages.encode(np.where(mask, np.float32(0), tokens))["clip"][0]
    cosine = clip @ vector / np.linalg.norm(clip) / np.linalg.norm(vector)
    assert found.similarity_after == pytest.approx(cosine, abs=1e-5)
    assert found.drop == found.similarity - found.similarity_after
    assert found.random_drop == found.similarity - found.similarity_random
    fewer = decoder.locate(volume, PRESENT, ablate=True, tasks="caption", threshold=0.9)
    assert 0 < fewer.voxels < found.voxels


def test_random_voxels_are_as_many_and_active() -> None:
    live = np.random.default_rng(0).random((7, 64)) > 0.3
    found = np.zeros_like(live)
    found[2:4] = live[2:4]
    one, other = random_like(found, live, 1), random_like(found, live, 2)
    assert one.sum() == other.sum() == found.sum()
    assert not one[~live].any()
    assert (one != other).any()
    assert (one == random_like(found, live, 1)).all()


# --- sentences


@pytest.mark.parametrize(
    ("answer", "concept"),
    [
        ("Locating the concept: red circle", "red circle"),
        ('Locating the concept of "dog".', "dog"),
        ("Locating the concept of a dog", "a dog"),
        ("Locating the concept...", ""),
        ("", ""),
        ("dog", "dog"),
    ],
)
def test_the_concept_is_read_from_an_answer(answer: str, concept: str) -> None:
    assert concept_in(answer, 'Locating the concept of "{concept}"') == concept


def test_only_the_instruction_is_a_sentence() -> None:
    instruction = 'Locating the concept of "{concept}"'
    assert is_sentence('Locating the concept of "red circle"', instruction)
    assert is_sentence(" locating the concept of the red circle", instruction)
    assert not is_sentence("red circle", instruction)
    assert not is_sentence("red circle", None)


def test_the_language_model_says_which_concept_a_sentence_asks_for() -> None:
    trial = Path(__file__).parent.parent / "runtime/reference/trials/trial-01.nii.gz"
    with Decoder.open("reference", threads=1, warm=False) as decoder:
        tokens = decoder.stages.preprocessor.tokens(load_volume(trial))
        prefix = decoder.stages.encode(tokens)["prefix"][0]
        language = decoder.stages.need_language()
        for concept in ("red circle", "yellow star"):
            sentence = f'Locating the concept of "{concept}"'
            assert ask_concept(language, prefix, sentence) == concept


# --- bad input


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        ("", "'concept' is empty"),
        (" \t", "'concept' is empty"),
        ("word " * 40, r"the concept has \d+ tokens, the bundle's text encoder takes 22"),
        ("\udcff", "not valid UTF-8"),
    ],
)
def test_a_concept_that_cannot_be_located_is_refused(
    decoder: Decoder, volume: Path, concept: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        decoder.locate(volume, concept)
    with pytest.raises(InputError, match=message):
        decoder.stream(volume, locate=[concept])  # at the call, before anything is decoded


def test_no_concept_and_mere_tokens_are_refused(decoder: Decoder, volume: Path) -> None:
    with pytest.raises(InputError, match="no concept to locate"):
        decoder.locations(volume, [])
    tokens = decoder.stages.preprocessor.tokens(load_volume(volume))
    with pytest.raises(InputError, match="tokens do not say on which grid"):
        decoder.locate(tokens, "dog")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(
    decoder: Decoder, volume: Path, threshold: float
) -> None:
    with pytest.raises(InputError, match="'threshold' must be from 0 to 1"):
        decoder.locate(volume, "dog", ablate=True, threshold=threshold)


def test_a_bundle_without_localizer_decodes_and_says_how_to_get_one(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = without_localizer(tiny_bundle, tmp_path / "bundle")
    assert main(["verify", str(bundle)]) == 0
    with Decoder.open(bundle, threads=1) as decoder:
        assert decoder.decode(volume, "caption").caption
        with pytest.raises(InputError, match="has no localizer.*export a checkpoint with concept/"):
            decoder.locate(volume, "dog")
    capsys.readouterr()
    words = ["decode", str(bundle), str(volume), "--locate", "dog", "--out", str(tmp_path / "o")]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "has no localizer" in printed.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["encoders"][1].pop("localizer"), "every encoder needs a localizer"),
        (lambda m: m["encoders"][1]["geometry"].update(axcodes="RAS"), "another model grid"),
        (
            lambda m: m["encoders"][1]["localizer"]["outputs"]["relevance"].update(shape=[8, 3]),
            "localizer_5.onnx does not fit encoder_5.onnx",
        ),
        (lambda m: m["localization"].update(fusion="sum"), "this version knows mean, max"),
    ],
)
def test_encoders_that_cannot_be_fused_are_refused(
    three_encoder_bundle: Path, tmp_path: Path, change: object, message: str
) -> None:
    manifest = json.loads((three_encoder_bundle / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        Decoder.open(tmp_path)


# --- files and the command


def test_the_command_writes_map_and_pictures(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["decode", str(tiny_bundle), str(volume), "--out", str(out), "--task", "caption"]
    assert main([*words, "--locate", PRESENT, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["degraded"] == []
    assert document["heatmap"] == str(out / "heatmap.nii.gz")
    assert nib.load(document["heatmap"]).shape == nib.load(volume).shape
    assert document["located"][0]["concept"] == PRESENT
    for key in ("heatmap_slices", "heatmap_glass"):
        with Image.open(document[key]) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
            assert picture.text["scanside:concept"] == PRESENT
        # heat is drawn: pixels that are far from grey
        assert (np.ptp(pixels, axis=2) > 100).sum() > 500
    slices = hashlib.sha256(Path(document["heatmap_slices"]).read_bytes()).hexdigest()
    assert main([*words, "--locate", PRESENT, "--anatomy", str(volume)]) == 0
    again = hashlib.sha256((out / "heatmap.png").read_bytes()).hexdigest()
    assert again == slices, "the volume itself is what lies under the map by default"
    assert main(words) == 0
    assert sorted(p.name for p in out.iterdir()) == ["result.json"], "no map of another run"


def test_without_the_plot_extra_the_map_alone_is_written(
    tiny_bundle: Path,
    volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    monkeypatch.setitem(sys.modules, "nilearn.plotting", None)
    words = ["decode", str(tiny_bundle), str(volume), "--out", str(tmp_path / "out"), "--json"]
    assert main([*words, "--task", "caption", "--locate", PRESENT]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "heatmap_slices" not in document
    (sentence,) = document["degraded"]
    assert "pip install 'scanside[plot]'" in sentence
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "heatmap.nii.gz",
        "result.json",
    ]
