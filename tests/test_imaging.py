"""A picture that is planned, shown on the way, stopped and ranked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanside.runtime import (
    Decoder,
    Done,
    Event,
    Image,
    InputError,
    Intermediate,
    Preview,
    Result,
    Token,
)
from scanside.runtime.reconstruction import to_pixels


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Path) -> Iterator[Decoder]:
    with Decoder.open(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokens(decoder: Decoder) -> np.ndarray:
    return decoder.bundle.arrays("golden/outputs.npz")["tokens"][0]


def plan_with(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, **costs: float) -> None:
    """Let planning see given costs in seconds instead of this machine's."""
    monkeypatch.setattr(decoder._costs, "of", lambda stage: costs.get(stage, 0.0))


def run(decoder: Decoder, tokens: np.ndarray, **options: Any) -> tuple[list[Event], Result]:
    events = list(decoder.stream(tokens, "image", prompt="none", **options))
    assert isinstance(events[-1], Done)
    return events[:-1], events[-1].result


def engine_of(decoder: Decoder, name: str) -> Any:
    assert decoder.stages.pictures is not None
    made = decoder.stages.pictures.reconstruction
    return getattr(made._denoiser if name == "_unet" else made, name)


def test_the_preview_goes_through_the_tiny_decoder(
    decoder: Decoder, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    for name in ("_vae", "_tiny"):
        engine = engine_of(decoder, name)

        def noted(feeds: Any, name: str = name, run: Any = engine.run) -> Any:
            used.append(name)
            return run(feeds)

        monkeypatch.setattr(engine, "run", noted)
    result = decoder.decode(tokens, ("preview", "image"), prompt="none", steps=1)
    assert used == ["_tiny", "_vae"]
    assert result.preview is not None
    assert result.image is not None
    assert result.preview.shape == result.image.shape


def test_guesses_are_shown_on_the_way_if_asked_for(decoder: Decoder, tokens: np.ndarray) -> None:
    events, result = run(decoder, tokens, steps=8, intermediate=3)
    assert [type(e) for e in events] == [Intermediate, Intermediate, Image]
    assert [(e.step, e.of) for e in events if isinstance(e, Intermediate)] == [(3, 8), (6, 8)]
    shown = [e.image for e in events if isinstance(e, Intermediate)]
    assert not np.array_equal(*shown)
    assert result.steps == 8
    assert "preview" in result.latency_ms  # that is where their time is counted
    events, _ = run(decoder, tokens, steps=8)
    assert [type(e) for e in events] == [Image]


def test_a_stop_ends_after_the_current_step(decoder: Decoder, tokens: np.ndarray) -> None:
    """The picture is the guess that was there, decoded in full."""
    stream = decoder.stream(tokens, "image", prompt="none", steps=8, intermediate=3)
    shown = next(stream)
    assert isinstance(shown, Intermediate)
    decoder.stop()
    image, done = stream
    assert isinstance(image, Image)
    assert isinstance(done, Done)
    result = done.result
    assert (result.steps, result.planned_steps, image.steps) == (3, 8, 3)
    assert result.degraded == ["image: 3 of 8 steps, by a stop request"]
    assert result.provenance("image")["schedule_steps"] == 8


def test_another_thread_may_stop_a_decode(decoder: Decoder, tokens: np.ndarray) -> None:
    engine = engine_of(decoder, "_unet")
    original, calls = engine.run, []

    def stops(feeds: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            other = threading.Thread(target=decoder.stop)
            other.start()
            other.join()
        return original(feeds)

    engine.run = stops
    try:
        result = decoder.decode(tokens, "image", prompt="none", steps=50)
    finally:
        engine.run = original
    assert len(calls) == result.steps == 2
    assert result.image is not None


def test_a_stop_while_text_is_written_keeps_its_words(decoder: Decoder, tokens: np.ndarray) -> None:
    stream = decoder.stream(tokens, ("caption", "describe", "image"))
    assert isinstance(next(stream), Token)
    decoder.stop()
    *_, done = stream
    assert isinstance(done, Done)
    result = done.result
    assert result.caption
    assert result.description == ""
    assert result.image is None
    assert result.preview is not None
    assert result.degraded[0].endswith("by a stop request")
    assert result.degraded[1:] == [
        "describe: left out, for a stop request came before its first word",
        "image: left out by a stop request; the preview stands in",
    ]


def test_a_stop_without_a_decode_does_nothing(tiny_bundle: Path, tokens: np.ndarray) -> None:
    with Decoder.open(tiny_bundle, threads=1, warm=False) as fresh:
        fresh.stop()
        assert fresh.decode(tokens, "image", prompt="none", steps=2).steps == 2
        fresh.stop()
        assert fresh.decode(tokens, "image", prompt="none", steps=2).steps == 2


def test_the_candidate_that_fits_the_clip_vector_best_is_kept(
    decoder: Decoder, tokens: np.ndarray
) -> None:
    events, result = run(decoder, tokens, steps=4, seed=5, candidates=6)
    assert [c.seed for c in result.candidates] == [5, 6, 7, 8, 9, 10]
    best = max(result.candidates, key=lambda c: c.similarity)
    assert result.image_seed == best.seed
    assert len({c.similarity for c in result.candidates}) == 6
    # shown once for each that fits better than all before
    rising = np.maximum.accumulate([c.similarity for c in result.candidates])
    assert len(events) == len(set(rising))
    _, alone = run(decoder, tokens, steps=4, seed=best.seed)
    np.testing.assert_array_equal(result.image, alone.image)
    assert alone.candidates == []
    assert result.as_dict()["candidates"][0]["seed"] == 5
    assert "candidates" not in alone.as_dict()


def test_the_similarity_is_that_of_picture_and_decoded_vector(
    decoder: Decoder, tokens: np.ndarray
) -> None:
    _, result = run(decoder, tokens, steps=2, candidates=2)
    stages = decoder.stages
    assert stages.pictures is not None
    assert stages.pictures.ranker is not None
    wanted = stages.encode(tokens)["clip"][0]
    assert result.image is not None
    image = (result.image.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)
    found = stages.pictures.ranker.encode(image)[0]
    cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
    best = max(c.similarity for c in result.candidates)
    assert best == pytest.approx(cosine, abs=0.02)  # the picture was rounded to grey levels


def test_candidates_stop_where_the_deadline_leaves_no_more(
    decoder: Decoder, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_with(decoder, monkeypatch, step=1.0)
    left = iter([1000.0] * 4 + [3.0] * 100)
    from scanside.runtime.clock import Clock

    # asked for once to plan, three times between four steps, and before the next candidate
    monkeypatch.setattr(Clock, "left_s", property(lambda _: next(left)))
    _, result = run(decoder, tokens, steps=4, candidates=5, deadline_s=1000)
    assert len(result.candidates) == 1
    assert result.degraded == ["image: 1 of 5 candidates, for the deadline leaves no more"]


def test_a_bundle_without_image_encoder_refuses_several_candidates(
    decoder: Decoder, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder.stages.pictures, "ranker", None)
    with pytest.raises(InputError, match="'candidates' is 2, but this bundle has no image encoder"):
        decoder.stream(tokens, "image", candidates=2)
    assert decoder.decode(tokens, "image", prompt="none", steps=1).image is not None


def test_steps_that_take_longer_than_planned_end_in_a_guess(
    decoder: Decoder, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_with(decoder, monkeypatch, step=1.0, vae=1.0)
    from scanside.runtime.clock import Clock

    left = iter([100.0, 50.0, 10.0, 1.5])
    monkeypatch.setattr(Clock, "left_s", property(lambda _: next(left)))
    _, result = run(decoder, tokens, steps=8, deadline_s=100)
    assert (result.steps, result.planned_steps) == (3, 8)
    assert result.degraded == [
        "image: 3 of 8 steps, for they took longer than planned and the deadline came near"
    ]
    assert result.image is not None


def test_a_deadline_shorter_than_the_preview_still_gives_one_and_says_so(
    decoder: Decoder, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_with(decoder, monkeypatch, preview=0.5, vae=2.0, step=2.0)
    events, result = run(decoder, tokens, deadline_s=0.1)
    assert [type(e) for e in events] == [Preview]
    assert result.preview is not None
    left_out, late = result.degraded
    assert left_out.startswith("image: left out, for not even the fewest steps fit")
    assert late.startswith("preview: late, for it takes about 500 ms and the deadline leaves ")


@pytest.mark.parametrize("tasks", ["image", "preview,image"])
def test_a_latent_that_overflows_keeps_the_preview_and_names_the_step(
    decoder: Decoder, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch, tasks: str
) -> None:
    engine = engine_of(decoder, "_unet")
    original, calls = engine.run, []

    def overflows(feeds: Any) -> Any:
        calls.append(1)
        out = original(feeds)["out"]
        return {"out": out * np.float32(np.inf) if len(calls) == 3 else out}

    monkeypatch.setattr(engine, "run", overflows)
    with np.errstate(invalid="ignore"):  # of the made-up overflow itself
        result = decoder.decode(tokens, tasks, prompt="none", steps=8)
    assert result.image is None
    assert result.preview is not None
    assert len(calls) == 3
    assert len(result.degraded) == 1
    assert "not finite after step 3 of 8" in result.degraded[0]
    assert result.degraded[0].endswith("the preview stands in")


def test_a_candidate_that_overflows_leaves_the_one_before(
    decoder: Decoder, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(decoder, "_unet")
    original, calls = engine.run, []

    def overflows(feeds: Any) -> Any:
        calls.append(1)
        out = original(feeds)["out"]
        return {"out": np.full_like(out, np.nan) if len(calls) > 2 else out}

    monkeypatch.setattr(engine, "run", overflows)
    _, result = run(decoder, tokens, steps=2, candidates=3)
    assert result.image is not None
    assert result.image_seed == 0
    assert result.degraded[0].startswith("image: a further candidate failed: the latent is not")


def test_a_given_prompt_is_encoded_once_for_many_volumes(
    decoder: Decoder, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoder.stages.pictures is not None
    engine: Any = decoder.stages.pictures.prompt._engine
    original, calls = engine.run, []
    monkeypatch.setattr(engine, "run", lambda feeds: calls.append(1) or original(feeds))
    first, again = (
        decoder.decode(tokens, "image", prompt="a green ring", steps=1) for _ in range(2)
    )
    other = decoder.decode(tokens, "image", prompt="a red star", steps=1)
    assert len(calls) == 2
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize(("option", "value"), [("candidates", 0), ("intermediate", -1)])
def test_impossible_wishes_are_refused(
    decoder: Decoder, tokens: np.ndarray, option: str, value: int
) -> None:
    with pytest.raises(InputError, match=f"'{option}' must be at least"):
        decoder.stream(tokens, "image", **{option: value})


def test_a_picture_that_is_not_finite_is_never_shown(
    decoder: Decoder, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(decoder, "_vae")
    size = engine.outputs["image"].shape
    monkeypatch.setattr(engine, "run", lambda _: {"image": np.full(size, np.nan, np.float32)})
    result = decoder.decode(tokens, "image", prompt="none", steps=1)
    assert result.image is None
    assert result.preview is not None
    assert "the decoded picture is not finite" in result.degraded[0]


def test_pixels_are_rounded_and_clipped() -> None:
    image = np.array([-1.5, -1.0, 0.0, 0.004, 1.0, 2.0], np.float32).reshape(1, 1, 1, 6)
    pixels = to_pixels(np.repeat(image, 3, 1))
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]
