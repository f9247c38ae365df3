"""A volume goes to the encoder's answers, and to a picture, on the GPU: the same as on the host,
and no more is copied than was asked for. On the stand-in for the driver."""

from __future__ import annotations

from collections import Counter

import pytest

from .stand_in import Run, built

JOINED = """
import os
from pathlib import Path
from types import SimpleNamespace
from scanside.runtime.device_chain import DeviceChain
from scanside.runtime.device_encoding import DeviceEncoding
from scanside.runtime.kernels import open_kernels
from scanside.runtime.preprocess import Preprocessor
from scanside.runtime.reconstruction import to_pixels
from scanside.runtime.volume import load_volume

spec = bundle.manifest.encoder
N, C = spec.inputs["tokens"].shape[1:]
reading = bundle.arrays(spec.arrays), bundle.manifest.input.scale
on_host = Preprocessor(spec, *reading)
on_gpu = Preprocessor(spec, *reading, device="cuda", kernels=open_kernels(bundle))
weights = rng.standard_normal((C, D)).astype("f4") / C
c, h, w = given.latent_shape

def encoder(tokens):
    clip = (tokens[0] @ weights).mean(0, keepdims=True)
    latent = np.resize(tokens[0, :, ::7].ravel() / 1000, (1, c, h, w))
    prefix = tokens.mean(2)[:, :8].reshape(1, 2, 4)
    return {"clip": clip, "latent": np.tanh(latent), "prefix": prefix}

def encoders(make):
    outputs = {"clip": (1, D), "latent": (1, c, h, w), "prefix": (1, 2, 4)}
    return make(encoder, {"tokens": (1, N, C)}, outputs, "float32")

def volume(seed, size=(40, 44, 38), slope=0.5):
    values = np.random.default_rng(seed).integers(-3000, 3000, size).astype("i2")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -2.0 * np.array(size)
    made = load_volume((np.asfortranarray(values), affine))
    return replace(made, slope=slope)

def apart(found, wanted):
    return max(np.abs(found[n] - wanted[n]).max() / np.abs(wanted[n]).max() for n in found)

log = Path(os.environ["STAND_IN_LOG"])
gpu = Gpu.open()
here, there = encoders(Host), encoders(lambda *given: Device(gpu, *given))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs code on the stand-in."""
    return built(tmp_path_factory.mktemp("driver"))


def test_answers_are_those_of_the_host_and_only_the_wanted_ones_are_copied(run: Run) -> None:
    code = """
joined = DeviceEncoding(on_gpu, there)
joined.warm()
loaded = log.read_text().split().count("cuModuleLoadData")
every = ("clip", "latent", "prefix")
def on_cpu(volume):
    return here.run({"tokens": on_host.tokens(volume)[None]})
volumes = [volume(0), volume(1), volume(2, slope=0.25), volume(3, size=(140, 130, 131))]
for one in volumes:
    print(apart(joined.encode(joined.place(one), every), on_cpu(one)))
first, second = (joined.place(one) for one in volumes[:2])
print(apart(joined.encode(first, every), on_cpu(volumes[0])))  # the second's tokens lay there
there.run({"tokens": np.ones((1, N, C), "f4")})
print(apart(joined.encode(first, every), on_cpu(volumes[0])))  # others may run the encoder
assert log.read_text().split().count("cuModuleLoadData") == loaded, "no volume waits for it"
on_host_too = on_host.tokens(volumes[0])
print(apart(joined.encode(on_host_too, every), on_cpu(volumes[0])))  # and tokens may be the host's
assert first.tokens.pointer != second.tokens.pointer
del second
before = len(log.read_text().splitlines())
found = joined.encode(joined.place(volumes[1]), ("clip", "unheard of"))
assert list(found) == ["clip"]
calls = log.read_text().splitlines()[before:]
print(*(calls.count(n) for n in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemAlloc")))
joined.close()
for work in (lambda: joined.place(volumes[0]), lambda: joined.encode(first, every)):
    try:
        work()
    except ScansideError as exc:
        assert str(exc).startswith("the decoder is closed"), exc
    else:
        raise AssertionError("it is closed")
for each in (on_gpu, on_host):
    each.close()
gpu.close()
"""
    out, calls = run(JOINED + code)
    *apart, copies = out.splitlines()
    assert len(apart) == 7
    assert max(map(float, apart)) < 1e-5
    assert copies == "1 2 0", "the volume in; what is not finite, and the one answer, out"
    count = Counter(calls)
    for opens, closes in (
        ("cuMemAlloc", "cuMemFree"),
        ("cuMemHostAlloc", "cuMemFreeHost"),
        ("cuModuleLoadData", "cuModuleUnload"),
        ("cuCtxPushCurrent", "cuCtxPopCurrent"),
    ):
        assert count[opens] == count[closes] > 0, opens


def test_a_volume_that_becomes_infinite_is_refused_at_once(run: Run) -> None:
    code = """
joined = DeviceEncoding(on_gpu, there)
for bad in (volume(0, slope=1e36), volume(0, slope=1e300)):
    for place in (on_host.tokens, joined.place):
        try:
            place(bad)
        except ScansideError as exc:
            print(exc)
good = volume(1)
wanted = here.run({"tokens": on_host.tokens(good)[None]})
assert apart(joined.encode(joined.place(good), ("clip", "latent")), wanted) < 1e-5
"""
    out, _ = run(JOINED + code)
    first, same, second, other = out.splitlines()
    assert first == same
    assert second == other
    assert "its values become infinite with slope 1e+36" in first


def test_the_chain_gives_the_host_s_picture_and_waits_once(run: Run) -> None:
    code = """
empty = np.zeros((1, L, W), "f4")
made, on_cpu = (
    Reconstruction(*networks(make, 1, "float32"), given, arrays, empty)
    for make in (lambda *given: Device(gpu, *given), Host)
)
pictures = SimpleNamespace(reconstruction=made, prompt=SimpleNamespace(empty=empty))
joined = DeviceEncoding(on_gpu, there)
chain = DeviceChain(SimpleNamespace(encoder=there, pictures=pictures, device_encoding=joined))
for one in (volume(0), volume(1), volume(2, size=(150, 130, 131))):
    encoded = here.run({"tokens": on_host.tokens(one)[None]})
    what = Condition(clip=encoded["clip"], latent=encoded["latent"], states=empty)
    wanted = to_pixels(on_cpu.decode(on_cpu.denoise(what, steps=4, seed=5)))
    found = chain.picture(one, steps=4, seed=5).pixels
    print(np.abs(found.astype(int) - wanted).max())
    wanted, found = to_pixels(on_cpu.preview(encoded["latent"])), chain.preview(one)
    print(np.abs(found.astype(int) - wanted).max())
    assert apart(chain.encoded(), encoded) < 1e-5
for work in (lambda: chain.picture(volume(4), steps=4), lambda: chain.preview(volume(4))):
    log.write_text("")
    work()
    calls = log.read_text().splitlines()
    print(*(calls.count(n) for n in ("cuStreamSynchronize", "cuMemcpyHtoDAsync", "cuMemAlloc")))
for work in (lambda one: chain.picture(one, steps=4), chain.preview):
    try:
        with np.errstate(all="ignore"):  # the networks in NumPy would warn
            work(volume(0, slope=1e36))
    except ScansideError as exc:
        print(exc)
    try:  # what was noted of one volume is not told of the next
        chain.picture(volume(1), steps=7)
    except ScansideError as exc:
        assert "'steps' must be one of" in str(exc), exc
"""
    out, _ = run(JOINED + code)
    *levels, picture, preview, refused, too = out.splitlines()
    assert len(levels) == 6
    assert max(map(int, levels)) <= 1
    assert picture == "1 2 0", "the volume, and the noise that is drawn while it is encoded"
    assert preview == "1 1 0"
    assert refused == too
    assert "its values become infinite with slope 1e+36" in refused
