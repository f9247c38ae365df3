"""Denoising that stays on the GPU gives what the host computes; what a library enqueues is
captured, or refused with the reason.

Both on the stand-in for the driver, with networks in NumPy that work on device memory, so that all
but the networks and the GPU is the real thing. Each test is a process of its own.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from .stand_in import Run, built


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs code on the stand-in."""
    return built(tmp_path_factory.mktemp("driver"))


COMPARED = """
gpu = Gpu.open()
batch = 2 if GUIDANCE > 1 else 1
spec = replace(given, guidance=GUIDANCE, mix=MIX)
empty = rng.standard_normal((1, L, W), np.float32)
here, there = (
    Reconstruction(*networks(make, batch, DTYPE), spec, arrays, empty)
    for make in (Host, lambda *given: Device(gpu, *given))
)
assert there.on_gpu and not here.on_gpu
drawn = {name: here._schedules[f"{name}_4"].draws_noise for name in spec.schedules}
for name in sorted(drawn, key=drawn.get):
    for steps in (1, 4):
        what = condition()
        asked = dict(steps=steps, seed=steps, schedule=name, beta=0.7)
        for one, other in zip(here.steps(what, **asked), there.steps(what, **asked), strict=True):
            assert (one.number, one.of) == (other.number, other.of)
            print(np.abs(one.latent - other.latent).max() / np.abs(one.latent).max())
assert sorted(set(drawn.values())) == [False, True]
for _ in range(2):
    what = condition()
    one, made = here.denoise(what, steps=4, seed=9), there.whole(what, steps=4, seed=9, floats=True)
    print(np.abs(one - made.step.latent).max() / np.abs(one).max())
    print(np.abs(here.decode(one) - made.image).max())
    assert np.array_equal(to_pixels(made.image), made.pixels)
    assert np.array_equal(to_pixels(there.decode(made.step.latent)), there.pixels(made.step.latent))
    assert np.array_equal(there.pixels(made.step.latent), there.preview_pixels(made.step.latent))
    assert (made.denoised_s, made.decoded_s) == (0.002, 0.002)
there.close()
gpu.close()
"""


@pytest.mark.parametrize(
    ("guidance", "mix", "dtype", "most"),
    [
        (1.0, "literal", "float32", 1e-5),  # float32 in another order of additions
        (3.0, "variance", "float32", 3e-5),
        (3.0, "literal", "float16", 5e-2),  # half precision rounds guided differences
    ],
)
def test_denoising_on_the_device_is_that_of_the_host(
    run: Run, guidance: float, mix: str, dtype: str, most: float
) -> None:
    settings = f"GUIDANCE, MIX, DTYPE = {guidance}, {mix!r}, {dtype!r}\n"
    out, calls = run(settings + COMPARED)
    differences = [float(line) for line in out.split()]
    assert len(differences) > 20
    assert max(differences) < most
    count = Counter(calls)
    for opens, closes in (
        ("cuMemAlloc", "cuMemFree"),
        ("cuMemHostAlloc", "cuMemFreeHost"),
        ("cuStreamCreateWithPriority", "cuStreamDestroy"),
        ("cuEventCreate", "cuEventDestroy"),
        ("cuModuleLoadData", "cuModuleUnload"),
        ("cuCtxPushCurrent", "cuCtxPopCurrent"),
    ):
        assert count[opens] == count[closes] > 0, opens


def test_a_whole_picture_waits_once(run: Run) -> None:
    code = """
gpu = Gpu.open()
made = Reconstruction(
    *networks(lambda *given: Device(gpu, *given), 1, "float32"), given, arrays,
    np.zeros((1, L, W), np.float32),
)
what = condition()
made.whole(what, steps=8, seed=0)
from pathlib import Path
import os
Path(os.environ["STAND_IN_LOG"]).write_text("")
made.whole(what, steps=8, seed=1)
"""
    _, calls = run(code)
    count = Counter(calls)
    assert count["cuStreamSynchronize"] == 1
    assert count["cuMemAlloc"] == count["cuMemHostAlloc"] == count["cuEventCreate"] == 0
    assert count["cuMemcpyDtoHAsync"] == 2  # the latent and the picture
    assert count["cuMemcpyHtoDAsync"] == 2  # the CLIP vector; noise and latent together


REPLAYED = """
from pathlib import Path
import os
gpu = Gpu.open()
class Capturable(Device):
    capturable = CAPTURABLE
made = Reconstruction(
    *networks(lambda *given: Capturable(gpu, *given), 1, "float32"), given, arrays,
    np.zeros((1, L, W), np.float32),
)
what, log = condition(), Path(os.environ["STAND_IN_LOG"])
wanted = made.whole(what, steps=4, seed=0)
for _ in range(3):
    log.write_text("")
    found = made.whole(what, steps=4, seed=0)
    # the stand-in does the work while it is captured, and nothing when a graph is launched
    assert np.array_equal(found.pixels, wanted.pixels)
    calls = log.read_text().splitlines()
    print(*(calls.count(name) for name in ("cuStreamBeginCapture", "cuGraphLaunch",
          "cuLaunchKernel", "cuStreamSynchronize")))
log.write_text("")
made.whole(what, steps=8, seed=0)
print(*(log.read_text().split().count(name) for name in ("cuStreamBeginCapture", "cuGraphLaunch")))
made.close()
print(log.read_text().split().count("cuGraphExecDestroy"))
gpu.close()
"""


def test_engines_that_may_be_captured_become_two_graphs(run: Run) -> None:
    """All steps with the clean latent, and the picture; what comes before differs each time."""
    out, _ = run(REPLAYED.replace("CAPTURABLE", "True"))
    second, third, fourth, other_schedule, freed = out.splitlines()
    begin = 2  # kernels before the first step: the start, and the CLIP vector
    # two captures, each of which waits before; 4 steps of 2 kernels, the latent, the picture's two
    assert second == f"2 2 {begin + 4 * 2 + 1 + 2} 3"
    assert third == fourth == f"0 2 {begin} 1"
    assert other_schedule == "0 1"  # its first run is enqueued as it is, the picture is a graph
    assert freed == "2"


def test_engines_with_graphs_of_their_own_are_not_captured(run: Run) -> None:
    out, _ = run(REPLAYED.replace("CAPTURABLE", "False"))
    *runs, other_schedule, freed = out.splitlines()
    assert set(runs) == {"0 0 13 1"}
    assert (other_schedule, freed) == ("0 0", "0")


def test_a_caller_s_own_stream_is_used_and_destroyed(run: Run) -> None:
    """As `benchmarks/gpu_beside.py` runs the U-Net beside the language model."""
    benchmarks = Path(__file__).resolve().parent.parent / "benchmarks"
    code = f"""
import sys
sys.path.insert(0, {str(benchmarks)!r})
from gpu_beside import of_equal_rights
gpu = Gpu.open(make_stream=of_equal_rights)
gpu.allocate((4,), "f4")
gpu.wait()
gpu.close()
"""
    _, calls = run(code)
    count = Counter(calls)
    assert count["cuStreamCreateWithPriority"] == 0
    assert count["cuStreamCreate"] == count["cuStreamDestroy"] == 1


def test_what_is_not_finite_is_told_with_its_step(run: Run) -> None:
    code = """
gpu = Gpu.open()
made = Reconstruction(
    *networks(lambda *given: Device(gpu, *given), 1, "float32"), given, arrays,
    np.zeros((1, L, W), np.float32),
)
what = condition()
good = made.denoise(what, steps=4, seed=0)
for work in (lambda bad: list(made.steps(bad, steps=4, seed=0)),
             lambda bad: made.whole(bad, steps=4, seed=0)):
    try:
        work(replace(what, latent=np.full_like(what.latent, np.inf)))
    except ScansideError as exc:
        print(exc)
assert np.array_equal(made.denoise(what, steps=4, seed=0), good), "nothing is left behind"
for latent in (np.full_like(what.latent, np.nan), good):
    try:
        print(made.pixels(latent).shape)
    except ScansideError as exc:
        print(exc)
"""
    out, _ = run(code)
    first, whole, picture, after = out.splitlines()
    assert picture.startswith("the decoded picture is not finite; check the volume's units")
    assert after.endswith(", 3)"), "what was noted of one picture is not told of the next"
    assert first.startswith("the latent is not finite after step 1 of 4; check the volume's units")
    assert whole.startswith("the latent is not finite after step 4 of 4; check the volume's units")


CAPTURED = """
from scanside.runtime.engines.capture import Captured
gpu = Gpu.open()
def work():
    done.append(1)
    if FAILS:
        raise ValueError("operation not permitted when stream is capturing")
done = []
try:
    captured = Captured(gpu, work)
    captured.launch()
    captured.launch()
    print(captured.nodes, len(done))
    captured.close()
    captured.close()
except ScansideError as exc:
    print(exc)
gpu.close()
"""


@pytest.mark.parametrize(
    ("node", "fails", "said"),
    [
        ("", False, "3 1"),
        ("end", False, "2 1"),
        ("between", False, "the work cannot be captured: it calls the host in between"),
        (
            "",
            True,
            "the work cannot be captured: operation not permitted when stream is capturing",
        ),
    ],
)
def test_a_library_s_work_is_captured_or_the_reason_told(
    run: Run, node: str, fails: bool, said: str
) -> None:
    settings = {"STAND_IN_NODE": node} if node else {}
    out, calls = run(f"FAILS = {fails}\n{CAPTURED}", **settings)
    assert out.strip() == said
    count = Counter(calls)
    assert count["cuStreamBeginCapture"] == count["cuStreamEndCapture"] == 1
    assert count["cuGraphInstantiate"] == count["cuGraphExecDestroy"]
    assert count["cuGraphLaunch"] == 2 * count["cuGraphInstantiate"]
    assert count["cuGraphDestroyNode"] == (node == "end")
