"""A picture on the GPU is made beside the texts that it does not wait for, and is the same one.

On the stand-in for the driver; networks are the reference bundle's, which compute on device memory.
"""

from __future__ import annotations

import json

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
    return lambda: (order.append("waited"), made())[1]

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


def orders(run: Run, *asked: str) -> list[list[str]]:
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
"""
    out, _ = run(code + "\ndecoder.close(); there.close(); gpu.close()\n")
    return [json.loads(line) for line in out.splitlines()]


def test_the_picture_begins_with_the_first_token_that_it_does_not_wait_for(run: Run) -> None:
    found = orders(
        run,
        "('caption', 'image'), prompt='none'",
        "('caption', 'image'), prompt='a red circle'",
        "('caption', 'image'), prompt='caption', ask=('What is it?',)",
        "('image',), prompt='written', ask=('What is it?',)",
    )
    texts = ["begun", "caption", "waited", "Image", "Done"]
    asked = ["begun", "ask", "waited", "Image", "Done"]
    assert found == [texts, texts, ["caption", *asked], ["prompt", *asked]]


def test_where_somebody_looks_in_between_it_waits_for_its_turn(run: Run) -> None:
    after = ["caption", "begun", "waited", "Image", "Done"]
    found = orders(
        run,
        "('caption', 'image'), prompt='caption'",
        "('caption', 'image'), prompt='none', deadline_s=600.0",
        "('caption', 'image'), prompt='none', intermediate=1",
        "('image',), prompt='none'",
    )
    step_by_step = ["caption", "Image", "Done"]
    shown = ["caption", "Intermediate", "Image", "Done"]
    assert found == [after, step_by_step, shown, after[1:]]


STOPPED = """
result = None
for event in decoder.stream(volume, ("caption", "image"), prompt="none", steps=2, seed=3):
    if isinstance(event, Token):
        decoder.stop()
    result = event.result if isinstance(event, Done) else result
wanted = decoded(("image",), host, prompt="none")
assert np.abs(result.image.astype(int) - wanted.image.astype(int)).max() <= 1
print(json.dumps(result.degraded))
decoder.close(); there.close(); gpu.close()
"""


def test_a_picture_that_is_being_made_is_given_after_a_stop_request(run: Run) -> None:
    out, _ = run(DECODER + "pictures.reconstruction = there\n" + STOPPED)
    assert json.loads(out) == ["caption: cut after 2 words by a stop request"]


FAILING = """
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
    order, caption, degraded = json.loads(out)
    assert order == ["caption", "Preview", "Done"]
    assert caption
    assert degraded == ["image: no room on the card; the preview stands in"]
