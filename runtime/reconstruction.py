"""The picture: Stable unCLIP as arithmetic around two graphs, with the schedule as numbers.

The start is the paper's Eq. 4, `(1 - beta) * latent + beta * noise`, or the mix that keeps the
variance, `sqrt(1 - beta^2) * latent + beta * noise`. What the U-Net sees at each step, and the
clean latent that follows, are linear in what was met before (`schedule.py`).

Noise comes from Philox with the caller's seed, in a fixed order (start, clip vector, steps), so
that a seed gives the same picture on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .device_picture import NOT_FINITE, DevicePicture
from .engines.buffer import Buffer
from .engines.engine import DeviceEngine, Engine
from .engines.gpu import Gpu
from .errors import BundleError, InputError, ScansideError
from .manifest import DiffusionSpec
from .resident import Resident
from .schedule import Schedule, time_rows

Floats = NDArray[np.float32]
_CONDITIONING = ("clip_scale", "clip_shift", "clip_noise", "level_embedding")
_TIME = ("times", "time_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What one picture is made from."""

    clip: Floats
    """(1, D) CLIP image embedding."""
    latent: Floats
    """(1, 4, h, w) predicted latent, in the diffusion model's units."""
    states: Floats
    """(1, L, W) keys and values of the prompt for every cross-attention."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What is known after a denoising step."""

    number: int
    """From 1."""
    of: int
    latent: Floats
    """(1, 4, h, w) clean latent: a guess after every step but the last."""


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A picture that was made without a look in between."""

    step: Step
    """The last one."""
    pixels: NDArray[np.uint8]
    """(H, W, 3)."""
    image: Floats | None
    """(1, 3, H, W) float32 in [-1, 1] up to overshoot, where it was asked for."""
    denoised_s: float
    """Time that the GPU took for the steps, and for the picture of the latent."""
    decoded_s: float


class Reconstruction:
    """The diffusion stage of a bundle.

    Where U-Net and VAE run on one GPU, so does everything between them (`resident.py`).

    Parameters
    ----------
    unet : Engine
        sample (B, 4, h, w), time (1, E), states (B, L, W), class_labels (B, 2 D) -> out (B, 4, h,
        w); B is 2 with guidance, else 1.
    vae : Engine
        latent (1, 4, h, w) -> image (1, 3, H, W) in [-1, 1].
    spec : DiffusionSpec
    arrays : mapping
        Conditioning, schedules and embeddings of time of diffusion.npz.
    empty_states : (1, L, W) float32
        Keys and values of no text for every cross-attention of the U-Net, side by side; the other
        half of guidance.
    tiny : Engine, optional
        A tiny decoder with the contract of `vae`, for previews.

    Raises
    ------
    BundleError
        A table or a conditioning array is missing, or they do not fit together.
    """

    def __init__(
        self,
        unet: Engine,
        vae: Engine,
        spec: DiffusionSpec,
        arrays: Mapping[str, NDArray[Any]],
        empty_states: Floats,
        tiny: Engine | None = None,
    ) -> None:
        self._tiny = tiny
        self._unet = unet
        self._vae = vae
        self._spec = spec
        self._arrays = arrays
        self._empty = empty_states
        tables = [f"{n}_{k}" for n, steps in spec.schedules.items() for k in steps]
        missing = [name for name in (*_CONDITIONING, *_TIME, *tables) if name not in arrays]
        if missing:
            raise BundleError(
                f"{spec.arrays} lacks {', '.join(missing[:5])}; export the bundle again"
            )
        try:
            self._schedules = {name: Schedule.unpack(arrays[name]) for name in tables}
            times, embeddings = (arrays[name] for name in _TIME)
            self._time = time_rows(times, embeddings, self._schedules)
        except ValueError as exc:
            raise BundleError(f"{spec.arrays}: {exc}; export the bundle again") from exc
        if embeddings.shape[1:] != unet.inputs["time"].shape[1:]:
            raise BundleError(
                f"{spec.arrays} embeds time in {embeddings.shape[1]} numbers, {spec.unet} takes "
                f"{unet.inputs['time'].shape[1]}; export the bundle again"
            )
        self._pictures: dict[Engine, DevicePicture] = {
            engine: DevicePicture(engine)
            for engine in (vae, tiny)
            if isinstance(engine, DeviceEngine)
        }
        self._resident: Resident | None = None
        self._device_clip: Buffer | None = None
        self._events: list[Any] = []
        if isinstance(unet, DeviceEngine) and isinstance(vae, DeviceEngine):
            self._resident = Resident(
                unet,
                self._pictures[vae],
                unet.gpu,
                spec=spec,
                arrays=arrays,
                schedules=self._schedules,
                times=self._time,
                empty_states=empty_states,
            )
            width = unet.inputs["class_labels"].shape[1] // 2
            self._device_clip = unet.gpu.allocate((1, width), np.float32)

    @property
    def resident(self) -> bool:
        """Whether `whole` can be used: U-Net, VAE and all between them are on one GPU."""
        return self._resident is not None

    @property
    def schedule(self) -> str:
        """The schedule that is taken unless another one is asked for."""
        return self._spec.schedule

    @property
    def beta(self) -> float:
        """The share of noise in the start, unless another one is asked for."""
        return self._spec.beta

    @property
    def has_tiny(self) -> bool:
        """Whether previews have a decoder of their own."""
        return self._tiny is not None

    def check_steps(self, steps: int | None) -> int:
        """The steps asked for, or the bundle's; InputError if there is no table for them."""
        if steps is None:
            return self._spec.steps
        return self._plan(self._spec.schedule, steps).steps

    @property
    def fewest_steps(self) -> int:
        """The smallest number of steps with a table."""
        return min(self._spec.schedules[self._spec.schedule])

    def steps_within(self, most: float) -> int:
        """The largest number of steps with a table that is at most `most`; 0 if there is none."""
        available = self._spec.schedules[self._spec.schedule]
        return max((n for n in available if n <= most), default=0)

    def denoise(
        self,
        condition: Condition,
        *,
        steps: int,
        seed: int,
        schedule: str | None = None,
        beta: float | None = None,
    ) -> Floats:
        """The clean latent, (1, 4, h, w) float32, after all steps; see `steps`."""
        *_, last = self.steps(condition, steps=steps, seed=seed, schedule=schedule, beta=beta)
        return last.latent

    def steps(
        self,
        condition: Condition,
        *,
        steps: int,
        seed: int,
        schedule: str | None = None,
        beta: float | None = None,
    ) -> Iterator[Step]:
        """Denoise step by step; whoever stops taking steps has the last guess.

        Parameters
        ----------
        condition : Condition
        steps : int
            One for which the schedule has a table.
        seed : int
            At least 0.
        schedule : str, optional
        beta : float, optional
            Share of noise in the start, 0 to 1; both by default the bundle's.

        Raises
        ------
        InputError
            A schedule or a number of steps without a table, a latent of another size, or a share
            that is none.
        ScansideError
            The latent becomes infinite or NaN; the message says at which step.
        """
        share = self._spec.beta if beta is None else beta
        plan = self._plan(schedule or self._spec.schedule, steps)
        self._check_start(condition.latent, share)
        return self._steps(condition, plan, share, _philox(seed))

    def _plan(self, schedule: str, steps: int) -> Schedule:
        available = self._spec.schedules.get(schedule)
        if available is None:
            raise InputError(
                f"'schedule' must be one of {', '.join(self._spec.schedules)}, which this bundle "
                f"has tables of; got {schedule!r}"
            )
        if steps not in available:
            raise InputError(
                f"'steps' must be one of {', '.join(map(str, available))}, for which this bundle "
                f"has {schedule} tables; got {steps}"
            )
        return self._schedules[f"{schedule}_{steps}"]

    def _check_start(self, latent: Floats, beta: float) -> None:
        wanted = (1, *self._spec.latent_shape)
        if latent.shape != wanted:
            raise InputError(f"the latent must have the shape {wanted}; got {latent.shape}")
        if not 0 <= beta <= 1:
            raise InputError(f"'beta' must be from 0 to 1; got {beta}")

    def _steps(
        self, condition: Condition, plan: Schedule, beta: float, rng: np.random.Generator
    ) -> Iterator[Step]:
        if self._resident:
            yield from self._resident_steps(self._resident, condition, plan, beta, rng)
            return
        steps = plan.steps
        shape = condition.latent.shape
        met = np.zeros((len(plan.final), condition.latent.size), np.float32)
        met[0] = self._start(condition.latent, beta, rng).ravel()
        conditions = self._guided(condition.states, self._class_labels(condition.clip, rng))
        for k in range(steps):
            x = (plan.inputs[k] @ met).reshape(shape)
            time = self._time[float(plan.timesteps[k])]
            met[1 + k] = self._predict(x, time, conditions).ravel()
            last = k == steps - 1
            with np.errstate(invalid="ignore", over="ignore"):  # is looked at right below
                latent = (plan.final if last else plan.guesses[k]) @ met
            yield _finite_step(Step(k + 1, steps, latent.reshape(shape)))
            if plan.draws_noise and not last:
                met[1 + steps + k] = rng.standard_normal(met.shape[1], np.float32)

    def whole(self, condition: Condition, *, steps: int, seed: int, floats: bool = False) -> Whole:
        """All steps and the picture of the latent, enqueued on the GPU and waited for once.

        Parameters and errors are those of `steps`; with `floats` the picture comes in float32, too.
        Only where `resident`.
        """
        resident = self._resident
        assert resident is not None, "the caller looks at `resident`"
        plan, beta, gpu = self._plan(self._spec.schedule, steps), self._spec.beta, resident.gpu
        self._check_start(condition.latent, beta)
        began, *_ = self._clocks(gpu)
        gpu.note(began)
        self._enqueue_start(resident, condition, plan, beta, _philox(seed))
        return self._rest(resident, plan, floats)

    def from_device(
        self,
        upstream: Callable[[], None],
        clip: Buffer,
        latent: Buffer,
        states: Floats,
        *,
        steps: int,
        seed: int,
    ) -> Whole:
        """As `whole`, from what an encoder leaves on the device; only where `resident`.

        Parameters
        ----------
        upstream : callable
            Enqueues what writes `clip` and `latent`; while the GPU is at it, noise is drawn.
        clip : (1, D)
        latent : (1, 4, h, w)
        states : (1, L, W) float32
        steps, seed : int
        """
        resident = self._resident
        assert resident is not None, "the caller looks at `resident`"
        plan, beta, gpu = self._plan(self._spec.schedule, steps), self._spec.beta, resident.gpu
        began, *_ = self._clocks(gpu)
        upstream()
        resident.send(plan, _philox(seed))
        gpu.note(began)
        resident.begin(states, beta, latent, clip)
        return self._rest(resident, plan, floats=False)

    def _rest(self, resident: Resident, plan: Schedule, floats: bool) -> Whole:
        """Enqueue all steps and the picture, and wait once."""
        _, denoised, decoded = self._events
        resident.denoise(plan)
        resident.gpu.note(denoised)
        resident.decode(floats=floats)
        resident.gpu.note(decoded)
        resident.gpu.wait()
        return self._made(resident, plan.steps, floats)

    @property
    def preview_on_device(self) -> DevicePicture | None:
        """What previews are made with, where that runs on a GPU."""
        return self._pictures.get(self._tiny or self._vae)

    @property
    def on_device(self) -> Resident:
        """What denoises on the GPU; only where `resident`."""
        assert self._resident is not None, "the caller looks at `resident`"
        return self._resident

    def _clocks(self, gpu: Gpu) -> list[Any]:
        if not self._events:
            self._events = [gpu.clock() for _ in range(3)]
        return self._events

    def _made(self, resident: Resident, steps: int, floats: bool) -> Whole:
        began, denoised, decoded = self._events
        gpu = resident.gpu
        last = _finite_step(Step(steps, steps, resident.latent))
        return Whole(
            last,
            resident.pixels,
            resident.image if floats else None,
            gpu.seconds_between(began, denoised),
            gpu.seconds_between(denoised, decoded),
        )

    def _resident_steps(
        self,
        resident: Resident,
        condition: Condition,
        plan: Schedule,
        beta: float,
        rng: np.random.Generator,
    ) -> Iterator[Step]:
        """Step by step, waiting for each: only the clean latent comes to the host."""
        self._enqueue_start(resident, condition, plan, beta, rng)
        for k in range(plan.steps):
            resident.step(plan, k)
            resident.end(plan, k + 1)
            resident.gpu.wait()
            yield _finite_step(Step(k + 1, plan.steps, resident.latent))

    def _enqueue_start(
        self,
        resident: Resident,
        condition: Condition,
        plan: Schedule,
        beta: float,
        rng: np.random.Generator,
    ) -> None:
        assert self._device_clip is not None, "allocated beside `_resident`"
        resident.gpu.upload(condition.clip, self._device_clip)
        resident.send(plan, rng, condition.latent)
        resident.begin(condition.states, beta, None, self._device_clip)

    def _start(self, latent: Floats, beta: float, rng: np.random.Generator) -> Floats:
        keep = 1 - beta if self._spec.mix == "literal" else math.sqrt(1 - beta**2)
        noise: Floats = rng.standard_normal(latent.shape, np.float32)
        return np.add(keep * latent, beta * noise, dtype=np.float32)

    def _class_labels(self, clip: Floats, rng: np.random.Generator) -> Floats:
        """(1, 2 D): the noised CLIP vector and the embedding of the noise level."""
        scale, shift, noise, level = (self._arrays[name] for name in _CONDITIONING)
        normal = rng.standard_normal(clip.shape, np.float32)
        noised = clip * scale + shift + noise * normal
        return np.concatenate([noised, level[None]], axis=1).astype(np.float32)

    def _guided(self, states: Floats, labels: Floats) -> dict[str, Floats]:
        if self._spec.guidance > 1:
            states = np.concatenate([self._empty, states])
            labels = np.concatenate([np.zeros_like(labels), labels])
        return {"states": states, "class_labels": labels}

    def _predict(self, x: Floats, time: Floats, conditions: Mapping[str, Floats]) -> Floats:
        guidance = self._spec.guidance
        feeds = {
            "sample": np.concatenate([x, x]) if guidance > 1 else x,
            "time": time,
            **conditions,
        }
        out: Floats = self._unet.run(feeds)["out"]
        return np.add(out[:1], guidance * (out[1:] - out[:1])) if guidance > 1 else out

    def close(self) -> None:
        """Free what it holds on a GPU; may be called twice."""
        if self._resident:
            self._resident.close()
        for picture in self._pictures.values():
            picture.close()

    def decode(self, latent: Floats) -> Floats:
        """The picture of a latent, (1, 3, H, W) float32 in [-1, 1] up to overshoot.

        Raises
        ------
        ScansideError
            It is not finite.
        """
        return _finite(self._vae.run({"latent": latent})["image"])

    def preview(self, latent: Floats) -> Floats:
        """The same through the tiny decoder, or through the VAE where the bundle has none."""
        return _finite((self._tiny or self._vae).run({"latent": latent})["image"])

    def pixels(self, latent: Floats) -> NDArray[np.uint8]:
        """What `decode` gives as (H, W, 3) uint8; on a GPU only the pixels come to the host."""
        return self._shown(self._vae, latent)

    def preview_pixels(self, latent: Floats) -> NDArray[np.uint8]:
        """What `preview` gives as (H, W, 3) uint8."""
        return self._shown(self._tiny or self._vae, latent)

    def _shown(self, decoder: Engine, latent: Floats) -> NDArray[np.uint8]:
        if decoder in self._pictures:
            return self._pictures[decoder].of(latent)
        return to_pixels(_finite(decoder.run({"latent": latent})["image"]))


def _philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _finite_step(step: Step) -> Step:
    if not np.isfinite(step.latent).all():
        raise ScansideError(
            f"the latent is not finite after step {step.number} of {step.of}; check the "
            "volume's units, and the bundle with scanside verify"
        )
    return step


def _finite(image: Floats) -> Floats:
    if not np.isfinite(image).all():
        raise ScansideError(NOT_FINITE)
    return image


def to_pixels(image: Floats) -> NDArray[np.uint8]:
    """(1, 3, H, W) in [-1, 1] to (H, W, 3) uint8, rounded as diffusers does."""
    pixels = np.clip(image[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1) * 255
    return pixels.round().astype(np.uint8)
