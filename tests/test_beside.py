"""A picture on the GPU is made beside the texts that it does not wait for, and is the same one.

On the stand-in for the driver; networks are the reference bundle's, which compute on device memory.
"""

from __future__ import annotations

import json
import re

import pytest

from .stand_in import Run, built

DECODER = """
import json
from scanside.runtime import Decoder, Done, Image, Token
from scanside.runtime.bundle import REFERENCE

def on_gpu(engine):
    sizes = [{n: s.shape for n, s in kind.items()} for kind in (engine.inputs, engine.outputs)]
    return Device(gpu, lambda **feeds: engine.run(feeds), *sizes, "float32")

gpu = Gpu.open()
decoder = Decoder.open("reference", threads=1, warm=False)
pictures = decoder.stages.pictures
host = pictures.reconstruction
unet, vae = (on_gpu(engine) for engine in (host._denoiser._unet, host._vae))
there = Reconstruction(unet, vae, given, arrays, pictures.prompt.empty)
volume = REFERENCE.parent / "trials" / "trial-01.nii.gz"
order, begin = [], there.begin

def begun(*args, **asked):
    order.append("begun")
    made = begin(*args, **asked)
    return replace(made, whole=lambda: (order.append("waited"), made.whole())[1])

there.begin = begun

def decoded(tasks, made, **asked):
    pictures.reconstruction, result = made, None
    order.clear()
    for event in decoder.stream(volume, tasks, steps=2, seed=3, **asked):
        kind = type(event).__name__
        if kind == "Token":
            kind = event.task
        if order[-1:] != [kind]:
            order.append(kind)
        result = event.result if isinstance(event, Done) else result
    return result
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs code on the stand-in."""
    return built(tmp_path_factory.mktemp("driver"))


def orders(run: Run, *asked: str, **settings: str) -> list[list[str]]:
    """What happened, in order, in decodes with the picture on the GPU; each checked against one
    with the picture on the CPU."""
    code = DECODER
    for options in asked:
        code += f"""
one, other = decoded({options}, made=host), decoded({options}, made=there)
print(json.dumps(order))
assert np.abs(one.image.astype(int) - other.image.astype(int)).max() <= 1
assert (one.caption, one.answers, one.image_prompt, one.steps, one.image_seed, one.degraded) == (
    other.caption, other.answers, other.image_prompt, other.steps, other.image_seed, other.degraded)
assert one.latency_ms.keys() == other.latency_ms.keys()
assert one.candidates and other.candidates or one.candidates == other.candidates
"""
    out, _ = run(code + "\ndecoder.close(); there.close(); gpu.close()\n", **settings)
    return [json.loads(line) for line in out.splitlines()]


ASKED = (
    "('caption', 'image'), prompt='none'",
    "('caption', 'image'), prompt='a red circle'",
    "('caption', 'image'), prompt='caption', ask=('What is it?',)",
    "('image',), prompt='written', ask=('What is it?',)",
)


def test_a_picture_begins_after_the_first_token_and_comes_between_tokens(run: Run) -> None:
    caption = ["caption", "begun", "waited", "Image", "caption", "Done"]
    asked = ["ask", "begun", "waited", "Image", "ask", "Done"]
    assert orders(run, *ASKED) == [caption, caption, ["caption", *asked], ["prompt", *asked]]


def test_a_picture_that_takes_longer_than_the_texts_comes_after_them(run: Run) -> None:
    caption = ["caption", "begun", "caption", "waited", "Image", "Done"]
    asked = ["ask", "begun", "ask", "waited", "Image", "Done"]
    wanted = [caption, caption, ["caption", *asked], ["prompt", *asked]]
    assert orders(run, *ASKED, STAND_IN_LATE="100000") == wanted


def test_where_somebody_looks_in_between_it_waits_for_its_turn(run: Run) -> None:
    one = ["begun", "waited", "Image", "Done"]
    found = orders(
        run,
        "('caption', 'image'), prompt='caption'",
        "('caption', 'image'), prompt='none', deadline_s=600.0",
        "('caption', 'image'), prompt='none', intermediate=1",
        "('caption', 'image'), prompt='none', pauses=True",
        "('caption', 'image'), prompt='none', candidates=2",
        "('image',), prompt='none'",
    )
    step_by_step = ["caption", "Image", "Done"]
    shown = ["caption", "Intermediate", "Image", "Done"]
    paused = ["Pause", "caption", "Pause", *one]
    two = [("begun", "waited"), ("Image",)]
    assert found[:4] == [["caption", *one], step_by_step, shown, paused]
    assert found[4][:4] == ["caption", *two[0], *two[1]]
    assert found[4].count("begun") == 2
    assert found[5] == one


STOPPED = """
result = None
for event in decoder.stream(volume, ("caption", "image"), prompt="none", steps=2, seed=3):
    if isinstance(event, Token) and order:  # it was begun
        decoder.stop()
    result = event.result if isinstance(event, Done) else result
wanted = decoded(("image",), host, prompt="none")
assert np.abs(result.image.astype(int) - wanted.image.astype(int)).max() <= 1
print(json.dumps(result.degraded))
decoder.close(); there.close(); gpu.close()
"""


def test_a_picture_that_is_being_made_is_given_after_a_stop_request(run: Run) -> None:
    code = DECODER + "pictures.reconstruction = there\n" + STOPPED
    out, _ = run(code, STAND_IN_LATE="100000")
    (said,) = json.loads(out)
    assert re.fullmatch(r"caption: cut after [23] words by a stop request", said)


FAILING = """
from scanside.runtime.prompt import PromptEncoder

def unreadable(*_, **__):
    raise ScansideError("the prompt encoder failed")

encode, PromptEncoder.encode = PromptEncoder.encode, unreadable
result = decoded(("caption", "image"), there, prompt="a red circle")
PromptEncoder.encode = encode
print(json.dumps([order, bool(result.caption), result.degraded]))

def fails(*args, **asked):
    raise ScansideError("no room on the card")

there.begin = fails
result = decoded(("caption", "image"), there, prompt="none")
print(json.dumps([order, bool(result.caption), result.degraded]))

there.begin = begun
stream = decoder.stream(volume, ("caption", "image"), prompt="none", steps=2)
next(stream)
stream.close()
one, other = (decoded(("image",), made, prompt="none") for made in (host, there))
assert np.abs(one.image.astype(int) - other.image.astype(int)).max() <= 1
decoder.close(); there.close(); gpu.close()
"""


def test_what_fails_there_is_told_of_the_picture_and_not_of_the_text(run: Run) -> None:
    """And a stream that is left in between spoils nothing for the next one."""
    out, _ = run(DECODER + FAILING)
    found = [json.loads(line) for line in out.splitlines()]
    for why, (order, caption, degraded) in zip(
        ("the prompt encoder failed", "no room on the card"), found, strict=True
    ):
        assert order == ["caption", "Preview", "caption", "Done"]
        assert caption
        assert degraded == [f"image: {why}; the preview stands in"]


ABANDONED = """
stream = decoder.stream(volume, ("caption", "image"), prompt="none", steps=2)
next(stream), next(stream)
assert order == ["begun"]
from pathlib import Path
import os
log = Path(os.environ["STAND_IN_LOG"])
log.write_text("")
there.close()
print(*log.read_text().split()[:3])
log.write_text("")
there.close()
print(log.read_text().count("cuStreamSynchronize"))
decoder.close(); gpu.close()
"""


def test_closing_waits_for_a_picture_that_nobody_waited_for(run: Run) -> None:
    """Its kernels must not be unloaded under it."""
    code = DECODER + "pictures.reconstruction = there\n" + ABANDONED
    out, _ = run(code, STAND_IN_LATE="100000")
    first, second = out.splitlines()
    assert "cuStreamSynchronize" in first
    assert "cuModuleUnload" not in first
    assert second == "0"


COSTS = """
decoder._costs.learn("token", 5.0)
decoded(("caption", "image"), there, prompt="none")
print(decoder._costs.of("token") > 5.0, decoder._costs.of("text caption"))
decoded(("caption",), there)
print(decoder._costs.of("token") < 100.0, decoder._costs.of("text caption") > 0)
decoder.close(); there.close(); gpu.close()
"""


def test_what_a_text_costs_is_not_learnt_beside_a_picture(run: Run) -> None:
    out, _ = run(DECODER + COSTS)
    assert out.splitlines() == ["True 0.0", "True True"]
