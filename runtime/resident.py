"""Denoising that stays on the GPU: between the start and the picture no number visits the host.

`reconstruction.py` says what is computed; this is the same arithmetic in the same order, with what
was met, the schedule's coefficients and the embeddings of time in device memory. Noise comes from
the host's own generator, so a seed gives the same picture on every device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .device_picture import DevicePicture
from .engines.arithmetic import Arithmetic
from .engines.buffer import Buffer
from .engines.capture import Replayed
from .engines.engine import DeviceEngine
from .engines.gpu import Gpu
from .manifest import DiffusionSpec
from .schedule import Schedule

Floats = NDArray[np.float32]


class Resident:
    """U-Net and VAE with everything between them, on one GPU and one stream.

    Everything is enqueued and nothing waits; `Gpu.wait` does, once.

    Parameters
    ----------
    unet : DeviceEngine
        Opened on `gpu`.
    picture : DevicePicture
        The VAE's.
    gpu : Gpu
    spec : DiffusionSpec
    arrays : mapping
        clip_scale, clip_shift, clip_noise (1, D) and level_embedding (D,).
    schedules : mapping
        All that may run.
    times : mapping
        (1, E) float32 for every timestep.
    empty_states : (1, L, W) float32
        States of no text.
    """

    def __init__(
        self,
        unet: DeviceEngine,
        picture: DevicePicture,
        gpu: Gpu,
        *,
        spec: DiffusionSpec,
        arrays: Mapping[str, NDArray[Any]],
        schedules: Mapping[str, Schedule],
        times: Mapping[float, Floats],
        empty_states: Floats,
    ) -> None:
        self.gpu = gpu
        self._unet, self._picture, self._vae = unet, picture, picture.decoder
        self._spec, self._arrays = spec, arrays
        self._arithmetic = Arithmetic(gpu)
        self._size = size = math.prod(spec.latent_shape)
        self._clip_size = unet.inputs["class_labels"].shape[1] // 2
        widest = max(len(schedule.final) for schedule in schedules.values())
        self._met = gpu.allocate((widest, size), np.float32)
        self._clean = gpu.allocate((1, *spec.latent_shape), np.float32)
        self._one = self._constant(np.ones(1, np.float32))
        self._coefficients: dict[int, tuple[Schedule, Buffer]] = {}
        self._starts: dict[tuple[float, str], Buffer] = {}
        rows = list(times)
        self._time_of = {time: row for row, time in enumerate(rows)}
        table = np.concatenate([times[time] for time in rows])
        self._times = self._constant(table.astype(unet.inputs["time"].dtype))
        # latent, noise and the CLIP vector's shift lie side by side: they are one copy
        numbers = 2 * size + self._clip_size
        self._given = gpu.allocate((numbers,), np.float32)
        self._latent = self._given.part(0, (size,))
        self._mixed = self._given.part(0, (2, size))
        self._shift = self._given.part(8 * size, (self._clip_size,))
        self._pinned = gpu.pinned((numbers,), np.float32)
        self._host_latent, self._host_noise = self._pinned[:size], self._pinned[size : 2 * size]
        self._host_shift = self._pinned[2 * size :]
        self._steps_noise = gpu.pinned((widest, size), np.float32)
        self._scale = self._constant(np.asarray(arrays["clip_scale"], np.float32).ravel())
        self._prepare_guidance(empty_states)
        self._states: Floats | None = None
        self._graphs: dict[int, tuple[Schedule, Replayed]] = {}
        """All steps of a schedule, by its `id`; only where the U-Net's engine may be captured."""
        self._decoding = Replayed(gpu, self._decode)
        image = self._vae.outputs["image"]
        self._image = gpu.pinned(image.shape, image.dtype)
        self._latent_out = gpu.pinned((1, *spec.latent_shape), np.float32)

    def copy_latent(self, latent: Buffer, to: Buffer) -> None:
        """Enqueue a copy of a latent (1, 4, h, w) in the other buffer's type."""
        self._combine(to, latent, self._one, terms=1)

    def _constant(self, values: NDArray[Any]) -> Buffer:
        buffer = self.gpu.allocate(values.shape, values.dtype)
        self.gpu.upload(values, buffer)
        return buffer

    def _prepare_guidance(self, empty_states: Floats) -> None:
        """What stays in the U-Net's inputs: the level's embedding, and the half without a text."""
        labels, states = (self._unet.buffers[name] for name in ("class_labels", "states"))
        half = labels.dtype.itemsize * self._clip_size
        guidance = self._spec.guidance
        first = 2 * half if guidance > 1 else 0
        level = labels.part(first + half, (self._clip_size,))
        self.gpu.upload(self._arrays["level_embedding"], level)
        self._noised = labels.part(first, (self._clip_size,))
        one = (1, *states.shape[1:])
        self._text = states.part(states.nbytes // 2, one) if guidance > 1 else states
        weights = [1 - guidance, guidance] if guidance > 1 else [1.0]
        self._guided = self._constant(np.array(weights, np.float32))
        if guidance > 1:
            self.gpu.upload(empty_states, states.part(0, one))

    def send(self, plan: Schedule, rng: np.random.Generator, latent: Floats | None = None) -> None:
        """Draw all noise and copy it in, with `latent`.

        Parameters
        ----------
        plan : Schedule
        rng : Generator
            Drawn from in the order of `reconstruction.py`: start, CLIP vector, steps.
        latent : (1, 4, h, w) float32, optional
            The predicted latent, unless it is on the device already.
        """
        size, shift, noise = self._size, self._arrays["clip_shift"], self._arrays["clip_noise"]
        self._host_noise[:] = rng.standard_normal(size, np.float32)
        normal = rng.standard_normal((1, self._clip_size), np.float32)
        self._host_shift[:] = (shift + noise * normal).ravel()
        first = size
        if latent is not None:
            self._host_latent[:], first = latent.ravel(), 0
        drawn = self._pinned[first:]
        self.gpu.upload(drawn, self._given.part(4 * first, drawn.shape))
        self.gpu.clear(self._met)
        if plan.draws_noise and plan.steps > 1:
            rows = self._steps_noise[: plan.steps - 1]
            for row in rows:
                row[:] = rng.standard_normal(size, np.float32)
            to = self._met.part(4 * size * (1 + plan.steps), rows.shape)
            self.gpu.upload(rows, to)

    def begin(self, states: Floats, beta: float, latent: Buffer | None, clip: Buffer) -> None:
        """Enqueue what comes before the first step.

        Parameters
        ----------
        states : (1, L, W) float32
            Copied in unless they are the array of the last time.
        beta : float
            Share of noise in the start.
        latent : (1, 4, h, w), optional
            Where it lies on the device; None if `send` brought it.
        clip : (1, D)
            On the device.
        """
        if states is not self._states:
            self.gpu.upload(states, self._text)
            self._states = states
        if latent is not None:
            self._combine(self._latent, latent, self._one, terms=1)
        self._combine(self._row(0), self._mixed, self._start(beta), terms=2)
        self._arithmetic.affine(self._noised, clip, self._scale, self._shift)

    def step(self, plan: Schedule, number: int) -> None:
        """Enqueue one denoising step, counted from 0."""
        weights, unet = self._weights(plan), self._unet.buffers
        self._combine(
            unet["sample"], self._met, self._line(plan, weights, number), self._width(plan)
        )
        row = self._time_of[float(plan.timesteps[number])]
        time = unet["time"]
        self.gpu.copy(self._times.part(row * time.nbytes, time.shape), time)
        self._unet.launch()
        self._combine(self._row(1 + number), unet["out"], self._guided, unet["out"].shape[0])

    def end(self, plan: Schedule, after: int) -> None:
        """Enqueue the clean latent as it is after so many steps."""
        line = 2 * plan.steps if after == plan.steps else plan.steps + after - 1
        weights = self._line(plan, self._weights(plan), line)
        self._combine(self._clean, self._met, weights, self._width(plan))
        self.gpu.download(self._clean, self._latent_out)

    def denoise(self, plan: Schedule) -> None:
        """Enqueue all steps and the clean latent: one CUDA graph from the second time on, where the
        U-Net's engine may be captured. ONNX Runtime's are graphs of their own."""
        if not self._unet.capturable:
            self._steps(plan)
            return
        if id(plan) not in self._graphs:
            self._graphs[id(plan)] = plan, Replayed(self.gpu, partial(self._steps, plan))
        self._graphs[id(plan)][1].launch()

    def _steps(self, plan: Schedule) -> None:
        for number in range(plan.steps):
            self.step(plan, number)
        self.end(plan, plan.steps)

    def decode(self, *, floats: bool = False) -> None:
        """Enqueue the picture of the clean latent, and the copy of its pixels to the host; one CUDA
        graph like the steps. With `floats` the picture itself is copied, too."""
        if self._vae.capturable:
            self._decoding.launch()
        else:
            self._decode()
        if floats:
            self.gpu.download(self._vae.buffers["image"], self._image)

    def _decode(self) -> None:
        self.copy_latent(self._clean, self._vae.buffers["latent"])
        self._picture.enqueue()

    @property
    def latent(self) -> Floats:
        """(1, 4, h, w) float32, a copy of what the last `end` gave, once the GPU was waited for."""
        return self._latent_out.copy()

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 of what the last `decode` gave, after waiting; ScansideError where the
        picture is not finite."""
        return self._picture.read()

    @property
    def image(self) -> Floats:
        """(1, 3, H, W) float32, a copy of what the last `decode` with `floats` gave."""
        return self._image.astype(np.float32)

    def _combine(self, target: Buffer, sources: Buffer, weights: Buffer, terms: int) -> None:
        self._arithmetic.combine(target, sources, weights, terms=terms, length=self._size)

    def _row(self, number: int) -> Buffer:
        return self._met.part(4 * self._size * number, (self._size,))

    def _width(self, plan: Schedule) -> int:
        return len(plan.final)

    def _weights(self, plan: Schedule) -> Buffer:
        """Coefficients (2 n + 1, width): inputs, guesses, final."""
        known = self._coefficients.get(id(plan))
        if known is None:
            rows = np.ascontiguousarray(plan.pack()[:, 1:])
            known = self._coefficients[id(plan)] = plan, self._constant(rows)
        return known[1]

    def _line(self, plan: Schedule, weights: Buffer, number: int) -> Buffer:
        width = self._width(plan)
        return weights.part(4 * width * number, (width,))

    def _start(self, beta: float) -> Buffer:
        key = (beta, self._spec.mix)
        if key not in self._starts:
            keep = 1 - beta if self._spec.mix == "literal" else math.sqrt(1 - beta**2)
            self._starts[key] = self._constant(np.array([keep, beta], np.float32))
        return self._starts[key]

    def close(self) -> None:
        """Free the graphs and unload the kernels; the memory belongs to the Gpu."""
        for _, graph in self._graphs.values():
            graph.close()
        self._decoding.close()
        self._arithmetic.close()
