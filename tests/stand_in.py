"""Code on the stand-in for the driver (`stand_in_driver.c`), with networks in NumPy that work on
device memory: all but networks and GPU is the real thing. Each run is a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).with_name("stand_in_driver.c")
PREPARED = """
import ctypes, math
from dataclasses import replace
import numpy as np
from scanside.runtime.bundle import Bundle
from scanside.runtime.engines.gpu import Gpu
from scanside.runtime.errors import ScansideError
from scanside.runtime.manifest import TensorSpec
from scanside.runtime.denoising import Condition
from scanside.runtime.reconstruction import Reconstruction, to_pixels

bundle = Bundle.open("reference")
given, arrays = bundle.manifest.diffusion, bundle.arrays(bundle.manifest.diffusion.arrays)
rng = np.random.default_rng(0)
E, W, D, L = arrays["time_embeddings"].shape[1], 6, arrays["clip_scale"].size, 3

def look(buffer):
    memory = (ctypes.c_uint8 * buffer.nbytes).from_address(buffer.pointer)
    return np.ctypeslib.as_array(memory).view(buffer.dtype).reshape(buffer.shape)

def unet(sample, time, states, class_labels):
    told = time.sum() + states.sum((1, 2)) + (class_labels * np.arange(2 * D)).sum(1) / D
    return {"out": np.tanh(sample + 0.1 * told[:, None, None, None]) - 0.2 * sample}

def vae(latent):
    return {"image": np.tanh(latent[:, :3].repeat(2, 2).repeat(2, 3))}

class Host:
    stage, provider = "net", "numpy"
    def __init__(self, work, inputs, outputs, dtype):
        self.work = work
        self.inputs, self.outputs = (
            {n: TensorSpec(shape=s, dtype=dtype) for n, s in kind.items()}
            for kind in (inputs, outputs)
        )
    def run(self, feeds):
        half = {n: np.asarray(v, self.inputs[n].dtype) for n, v in feeds.items()}
        out = self.work(**{n: v.astype("f4") for n, v in half.items()})
        return {n: v.astype(self.outputs[n].dtype).astype("f4") for n, v in out.items()}
    def close(self):
        pass

class Device(Host):
    capturable = False
    def __init__(self, gpu, *given):
        super().__init__(*given)
        self.gpu = gpu
        specs = self.inputs | self.outputs
        self.buffers = {n: gpu.allocate(s.shape, s.dtype) for n, s in specs.items()}
    def bind(self, buffers):
        raise AssertionError("addresses stay")
    def launch(self):
        out = Host.run(self, {n: look(self.buffers[n]) for n in self.inputs})
        for name, values in out.items():
            look(self.buffers[name])[...] = values

def networks(make, batch, dtype):
    c, h, w = given.latent_shape
    sample, image = (batch, c, h, w), (1, 3, 2 * h, 2 * w)
    inputs = {
        "sample": sample, "time": (1, E), "states": (batch, L, W), "class_labels": (batch, 2 * D)
    }
    yield make(unet, inputs, {"out": sample}, dtype)
    yield make(vae, {"latent": (1, c, h, w)}, {"image": image}, dtype)

def condition():
    return Condition(
        clip=rng.standard_normal((1, D), np.float32),
        latent=rng.standard_normal((1, *given.latent_shape), np.float32),
        states=rng.standard_normal((1, L, W), np.float32),
    )
"""
"""Begins every run: engines on host and device, and the reference bundle's schedules."""

Run = Callable[..., tuple[str, list[str]]]


def built(folder: Path) -> Run:
    """Compile the stand-in. `run` gives what code prints that runs on it, and the calls it got."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the native code needs a C compiler, and so does this test"
    command = [compiler, "-std=gnu11", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", SOURCE]
    subprocess.run([*command, "-lm"], check=True)

    def run(code: str, **settings: str) -> tuple[str, list[str]]:
        log = folder / "calls"
        log.unlink(missing_ok=True)
        wanted = {"LD_LIBRARY_PATH": str(folder), "STAND_IN_CAPABILITY": "90"}
        done = subprocess.run(
            [sys.executable, "-P", "-W", "error", "-c", PREPARED + code],
            env=os.environ | wanted | {"STAND_IN_LOG": str(log)} | settings,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, log.read_text().splitlines()

    return run
