"""The decoder as a caller meets it."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scanside.runtime import (
    BundleError,
    Decoder,
    DeviceError,
    Done,
    Image,
    InputError,
    Preview,
    Result,
    Token,
)


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Path) -> Iterator[Decoder]:
    with Decoder.open(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def volume(tiny_bundle: Path) -> Path:
    return tiny_bundle / "golden" / "volume.nii.gz"


@pytest.fixture(scope="module")
def golden(decoder: Decoder) -> dict[str, np.ndarray]:
    return decoder.bundle.arrays("golden/outputs.npz")


def test_decode_gives_the_golden_answers(
    decoder: Decoder, volume: Path, golden: dict[str, np.ndarray]
):
    manifest = decoder.bundle.manifest
    result = decoder.decode(
        volume, ("preview", "caption", "prompt", "image"), prompt=manifest.golden.image_prompt
    )
    assert result.caption == manifest.golden.texts["caption"]
    assert result.prompt == manifest.golden.texts["prompt"]
    # this bundle has a tiny decoder for previews
    for kind, name in (("preview", "tiny_preview"), ("image", "image")):
        pixels = getattr(result, kind)
        expected = np.clip(golden[name][0].transpose(1, 2, 0) / 2 + 0.5, 0, 1) * 255
        assert pixels.dtype == np.uint8
        # half a grey level of rounding, and one for float32 on another machine
        assert np.abs(pixels - expected).max() < 1.5
    assert result.degraded == []
    assert (result.steps, result.seed, result.device) == (8, 0, "cpu")
    assert result.bundle == decoder.bundle.sha256


def test_only_what_is_asked_for_is_done(decoder: Decoder, volume: Path):
    result = decoder.decode(volume, "preview")
    assert (result.caption, result.prompt, result.image, result.steps) == (None, None, None, None)
    assert {"language", "diffusion"}.isdisjoint(result.latency_ms)
    result = decoder.decode(volume, ("caption",))
    assert (result.image, result.preview, result.prompt) == (None, None, None)


def test_every_kind_of_volume_gives_the_same_answer(decoder: Decoder, volume: Path):
    image = nib.load(volume)
    data = image.get_fdata(dtype=np.float32)
    four = np.stack([np.ones_like(data), data], axis=-1)
    first = decoder.decode(volume, "preview").preview
    for source, index in (
        (str(volume), None),
        (image, None),
        ((data, image.affine), None),
        (nib.Nifti1Image(four, image.affine), 1),
    ):
        assert (decoder.decode(source, "preview", index=index).preview == first).all()


def test_normalised_tokens_can_be_decoded(
    decoder: Decoder, volume: Path, golden: dict[str, np.ndarray]
):
    by_tokens = decoder.decode(golden["tokens"][0], "preview")
    assert (by_tokens.preview == decoder.decode(volume, "preview").preview).all()
    assert "load" not in by_tokens.latency_ms


def test_raw_tokens_are_not_normalised(
    decoder: Decoder, volume: Path, golden: dict[str, np.ndarray]
):
    raw = decoder.tokens(volume)
    arrays = decoder.bundle.arrays("encoder.npz")
    inside = decoder.stages.preprocessor.geometry.in_grid
    normalised = np.where(inside, (raw - arrays["mean"]) * arrays["inv_std"], 0)
    assert normalised == pytest.approx(golden["tokens"][0], abs=1e-4)


def test_events_come_in_the_order_preview_text_image_done(decoder: Decoder, volume: Path):
    events = list(decoder.stream(volume, ask=["Where is it?"]))
    kinds = [type(event) for event in events]
    assert kinds[0] is Preview
    assert kinds[-2:] == [Image, Done]
    assert set(kinds[1:-2]) == {Token}
    result = events[-1].result
    pieces = {
        task: "".join(e.text for e in events if isinstance(e, Token) and e.task == task)
        for task in ("caption", "prompt", "ask")
    }
    assert pieces["caption"] == result.caption
    assert pieces["prompt"] == result.image_prompt
    assert pieces["ask"] == result.answers[0].answer
    assert result.answers[0].question == "Where is it?"
    assert set(result.log_prob) == {"caption", "prompt", "ask_0"}
    assert all(value < 0 for value in result.log_prob.values())


def test_the_preview_is_there_before_any_text_is_written(decoder: Decoder, volume: Path):
    stream = decoder.stream(volume)
    assert isinstance(next(stream), Preview)
    stream.close()
    assert decoder.decode(volume, "caption").caption


def test_what_conditions_the_image(decoder: Decoder, volume: Path):
    written = decoder.decode(volume, "image")
    by_caption = decoder.decode(volume, "image", prompt="caption")
    none = decoder.decode(volume, "image", prompt="none")
    given = decoder.decode(volume, "image", prompt="a red circle")
    golden = decoder.bundle.manifest.golden.texts
    assert written.image_prompt == golden["prompt"]
    assert by_caption.image_prompt == golden["caption"]
    assert (none.image_prompt, given.image_prompt) == (None, "a red circle")
    # only the picture was asked for
    for result in (written, by_caption, none, given):
        assert (result.prompt, result.caption) == (None, None)
    assert "language" not in none.latency_ms
    assert not np.array_equal(none.image, given.image)


def test_seed_and_steps_are_used_and_reported(decoder: Decoder, volume: Path):
    def make(**options: int) -> Result:
        return decoder.decode(volume, "image", prompt="none", **options)

    assert np.array_equal(make(seed=1).image, make(seed=1).image)
    assert not np.array_equal(make(seed=1).image, make(seed=2).image)
    assert make(steps=2).steps == 2


def test_latency_adds_up_and_says_when_each_answer_was_there(decoder: Decoder, volume: Path):
    began = time.perf_counter()
    result = decoder.decode(volume, ("preview", "caption", "image"))
    wall = 1e3 * (time.perf_counter() - began)
    ms = result.latency_ms
    stages = ("load", "preprocess", "encode", "preview", "language", "diffusion", "vae")
    assert sum(ms[stage] for stage in stages) <= ms["total"] <= wall
    assert ms["until_preview"] < ms["until_text"] < ms["until_image"] <= ms["total"]
    assert ms["language_first_token"] <= ms["language"]


def test_placement_names_what_executes_each_stage(decoder: Decoder, volume: Path):
    assert decoder.decode(volume, "preview").placement == {
        "preprocess": "native C",
        "encoder": "CPUExecutionProvider",
        "language": "llama.cpp CPU",
        "prompt_encoder": "CPUExecutionProvider",
        "unet": "CPUExecutionProvider",
        "vae_decoder": "CPUExecutionProvider",
        "preview_decoder": "CPUExecutionProvider",
        "image_encoder": "CPUExecutionProvider",
        "concept_encoder": "CPUExecutionProvider",
        "localizer": "CPUExecutionProvider",
    }


def with_costs(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, **costs: float) -> None:
    """Let planning see given costs in seconds instead of this machine's."""
    known = {"states": 0.001, "vae": 0.001, "step": 0.001, "token": 0.0, "text prompt": 0.001}
    monkeypatch.setattr(decoder._costs, "of", lambda stage: (known | costs).get(stage, 0.0))


def test_a_long_deadline_changes_nothing(decoder: Decoder, volume: Path):
    result = decoder.decode(volume, prompt="a red circle", deadline_s=600)
    assert result.degraded == []
    assert result.steps == 8


def test_a_deadline_takes_as_many_steps_as_fit(
    decoder: Decoder, volume: Path, monkeypatch: pytest.MonkeyPatch
):
    with_costs(decoder, monkeypatch, step=20.0)
    result = decoder.decode(volume, "image", prompt="none", deadline_s=110)
    assert result.steps == 4
    assert result.degraded == ["image: 4 of 8 steps, for the deadline leaves no more"]


def test_without_time_for_the_prompt_none_is_used_and_reported(
    decoder: Decoder, volume: Path, monkeypatch: pytest.MonkeyPatch
):
    with_costs(decoder, monkeypatch, **{"text prompt": 1000})
    result = decoder.decode(volume, "image", deadline_s=100)
    assert result.image_prompt is None
    assert result.image is not None
    assert result.degraded == ["image: no text conditions it, for writing the prompt would be late"]


@pytest.mark.parametrize("tasks", ["image", "preview,image"])
def test_without_time_for_any_step_the_preview_stands_in(
    decoder: Decoder, volume: Path, monkeypatch: pytest.MonkeyPatch, tasks: str
):
    with_costs(decoder, monkeypatch, step=1000)
    events = list(decoder.stream(volume, tasks, prompt="none", deadline_s=100))
    assert [type(event) for event in events] == [Preview, Done]
    result = events[-1].result
    assert (result.image, result.steps) == (None, None)
    assert result.preview is not None
    assert result.degraded[0].startswith("image: left out")


def test_a_text_that_the_deadline_leaves_out_says_so(decoder: Decoder, volume: Path):
    result = decoder.decode(volume, "caption", deadline_s=1e-6)
    assert result.caption == ""
    assert result.degraded == ["caption: left out, for the deadline came before its first word"]
    assert result.log_prob == {}
    assert "language_first_token" not in result.latency_ms


def test_a_deadline_that_leaves_out_everything_says_each_thing_once(
    decoder: Decoder, volume: Path, monkeypatch: pytest.MonkeyPatch
):
    """What would have conditioned a picture that is not made is of no interest."""
    with_costs(decoder, monkeypatch, step=1000)
    result = decoder.decode(volume, ("caption", "image"), deadline_s=1)
    assert [sentence.partition(",")[0] for sentence in result.degraded] == [
        "caption: left out",
        "image: left out",
    ]


@pytest.mark.parametrize(("words", "sentence"), [(1, "after 1 word by"), (3, "after 3 words by")])
def test_a_text_that_the_deadline_cuts_says_so(
    decoder: Decoder, volume: Path, monkeypatch: pytest.MonkeyPatch, words: int, sentence: str
):
    from scanside.runtime.answer import Answer

    monkeypatch.setattr(Answer, "_late", lambda self: len(self.text.split()) >= words)
    result = decoder.decode(volume, "caption", deadline_s=600)
    assert len(result.caption.split()) == words
    assert result.degraded == [f"caption: cut {sentence} the deadline"]


def test_every_token_has_its_log_probability_if_asked_for(decoder: Decoder, volume: Path):
    result = decoder.decode(volume, "caption", ask=["Why?"], token_log_probs=True)
    assert set(result.token_log_probs) == {"caption", "ask_0"} == set(result.log_prob)
    for name, scores in result.token_log_probs.items():
        assert np.mean([s.log_prob for s in scores]) == pytest.approx(result.log_prob[name])
    assert decoder.decode(volume, "caption").token_log_probs == {}


def test_a_prompt_that_is_too_long_is_cut_and_reported(decoder: Decoder, volume: Path):
    result = decoder.decode(volume, "image", prompt="red " * 50)
    assert len(result.degraded) == 1
    assert result.degraded[0].endswith("tokens do not fit the text encoder")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tasks": "sing"}, "'tasks' must be of preview, caption.*got 'sing'"),
        ({"tasks": ()}, "nothing to do"),
        ({"seed": -1}, "'seed' must be at least 0; got -1"),
        ({"steps": 3}, "'steps' must be one of 1, 2, 4, 8, 10, 20, 50"),
        ({"deadline_s": 0}, "'deadline_s' must be above 0 seconds; got 0"),
        ({"deadline_s": float("nan")}, "'deadline_s' must be above 0"),
        ({"ask": [" "]}, "'ask' holds an empty question"),
    ],
)
def test_a_wrong_argument_is_refused_at_the_call(
    decoder: Decoder, volume: Path, options: dict[str, object], sentence: str
):
    with pytest.raises(InputError, match=sentence):
        decoder.stream(volume, **options)


def test_wrong_tokens_are_refused(decoder: Decoder, golden: dict[str, np.ndarray]):
    tokens = golden["tokens"][0]
    for wrong in (tokens[1:], tokens * np.nan):
        with pytest.raises(InputError, match=r"tokens must be finite and of shape \(12, 216\)"):
            decoder.decode(wrong)


def test_a_closed_decoder_is_refused(tiny_bundle: Path, volume: Path):
    decoder = Decoder.open(tiny_bundle, threads=1, warm=False)
    decoder.close()
    decoder.close()
    with pytest.raises(InputError, match="the decoder is closed; open it again"):
        decoder.decode(volume)


def without(bundle: Path, folder: Path, part: str) -> Path:
    copy = shutil.copytree(bundle, folder / f"no-{part}")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest[part]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_what_a_bundle_cannot_do_is_refused_by_name(
    tiny_bundle: Path, volume: Path, tmp_path: Path
):
    with Decoder.open(without(tiny_bundle, tmp_path, "language"), threads=1) as mute:
        with pytest.raises(InputError, match="has no language model, so it cannot write text"):
            mute.decode(volume)
        assert mute.decode(volume, "image", prompt="none").image is not None
    with Decoder.open(without(tiny_bundle, tmp_path, "diffusion"), threads=1) as blind:
        with pytest.raises(InputError, match="has no diffusion model, so it makes no pictures"):
            blind.decode(volume)
        assert blind.decode(volume, "caption").caption


@pytest.mark.parametrize(
    ("device", "error", "sentence"),
    [
        ("cuda", DeviceError, "'cuda' was asked for, but no NVIDIA driver was found"),
        ("cpu,unet=rtx", DeviceError, "'rtx' was asked for"),
        ({"default": "cpu", "language": "tensorrt"}, DeviceError, "'tensorrt' was asked for"),
        ("tpu", InputError, "'device' must be one of cpu, cuda, rtx, tensorrt; got 'tpu'"),
        ({"speech": "cpu"}, InputError, "names no stage 'speech'; stages are preprocess, encoder"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_and_never_replaced(
    tiny_bundle: Path, device: object, error: type[Exception], sentence: str
):
    with pytest.raises(error, match=sentence):
        Decoder.open(tiny_bundle, device)


def test_a_split_over_devices_is_written_down_in_the_result(tiny_bundle: Path, volume: Path):
    split = {"default": "cpu", "language": "cpu"}
    with Decoder.open(tiny_bundle, split, threads=1, warm=False) as decoder:
        assert decoder.decode(volume, "preview").device == "default=cpu,language=cpu"


def test_no_threads_are_refused(tiny_bundle: Path):
    with pytest.raises(InputError, match="'threads' must be 1 to 512; got 0"):
        Decoder.open(tiny_bundle, threads=0)


def test_a_stream_ends_when_the_next_one_begins(decoder: Decoder, volume: Path):
    """It would go on with another volume's text, for both share the language model's cache."""
    first = decoder.stream(volume, "caption")
    next(first)
    decoder.decode(volume, "caption")
    with pytest.raises(InputError, match="the decoder has gone on to another volume"):
        next(first)


def test_a_stream_ends_with_its_decoder(tiny_bundle: Path, volume: Path):
    """llama.cpp would end the process on a context that is freed."""
    with Decoder.open(tiny_bundle, threads=1, warm=False) as decoder:
        events = decoder.stream(volume, "caption")
        next(events)
    with pytest.raises(InputError, match="the decoder is closed"):
        next(events)


def test_the_image_keeps_the_text_that_conditioned_it(decoder: Decoder, volume: Path):
    result = decoder.decode(volume, ("prompt", "image"), prompt="a red circle", steps=1)
    assert result.image_prompt == "a red circle"
    assert result.prompt not in (None, "a red circle")


@pytest.mark.parametrize("words", [{"ask": "\udcff"}, {"prompt": "caf\udce9"}])
def test_text_that_is_not_utf8_is_refused(decoder: Decoder, volume: Path, words: dict[str, str]):
    with pytest.raises(InputError, match="is not valid UTF-8"):
        decoder.decode(volume, **words)


def test_values_that_no_encoder_can_take_are_refused(decoder: Decoder, volume: Path):
    shape = decoder.stages.preprocessor.geometry.shape
    with pytest.raises(InputError, match="is not finite for this volume"):
        decoder.decode(np.full(shape, 3e38, np.float32) * np.resize([1, -1], shape), "caption")


@pytest.mark.parametrize("swap", [("unet.onnx", "vae_decoder.onnx"), ("encoder.onnx", "unet.onnx")])
def test_a_graph_in_the_wrong_place_is_refused_in_open(
    tiny_bundle: Path, tmp_path: Path, swap: tuple[str, str]
):
    copy = shutil.copytree(tiny_bundle, tmp_path / "swapped")
    manifest = json.loads((copy / "manifest.json").read_text())
    first, second = swap
    (copy / first).rename(copy / "x")
    (copy / second).rename(copy / first)
    (copy / "x").rename(copy / second)
    files = manifest["files"]
    files[first], files[second] = files[second], files[first]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"the \w+ graph has the inputs .*, but the bundle needs"):
        Decoder.open(copy)


def test_a_damaged_graph_is_refused_in_open(tiny_bundle: Path, tmp_path: Path):
    import hashlib

    copy = shutil.copytree(tiny_bundle, tmp_path / "damaged")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "encoder.onnx").write_bytes(b"no graph")
    manifest["files"]["encoder.onnx"] = {
        "sha256": hashlib.sha256(b"no graph").hexdigest(),
        "bytes": 8,
    }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"encoder.onnx: onnxruntime .* cannot load it"):
        Decoder.open(copy)


def test_a_decode_in_a_fresh_process_loads_no_torch(tiny_bundle: Path, volume: Path):
    code = (
        "import sys; from scanside.runtime import Decoder\n"
        "assert not {'onnxruntime', 'llama_cpp', 'nibabel', 'PIL'} & set(sys.modules)\n"
        "with Decoder.open(sys.argv[1], threads=1) as d: d.decode(sys.argv[2])\n"
        "print({'torch', 'transformers', 'diffusers', 'optimum', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, tiny_bundle, volume], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")
