"""The picture: Stable unCLIP as arithmetic around two graphs, with the schedule as numbers.

The start is the paper's Eq. 4, `(1 - beta) * latent + beta * noise`, or the mix that keeps the
variance, `sqrt(1 - beta^2) * latent + beta * noise`. What the U-Net sees at each step, and the
clean latent that follows, are linear in what was met before (`schedule.py`).

Noise comes from Philox with the caller's seed, in a fixed order (start, clip vector, steps), so
that a seed gives the same picture on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .denoising import CONDITIONING, Begun, Condition, Step, Whole
from .device_picture import NOT_FINITE, DevicePicture
from .engines.engine import DeviceEngine, Engine
from .errors import BundleError, InputError, ScansideError
from .host_denoiser import HostDenoiser
from .manifest import DiffusionSpec
from .resident import Resident
from .resident_denoiser import ResidentDenoiser
from .schedule import Schedule, time_rows

Floats = NDArray[np.float32]
_TIME = ("times", "time_embeddings")


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
        self._vae = vae
        self._spec = spec
        tables = [f"{n}_{k}" for n, steps in spec.schedules.items() for k in steps]
        missing = [name for name in (*CONDITIONING, *_TIME, *tables) if name not in arrays]
        if missing:
            raise BundleError(
                f"{spec.arrays} lacks {', '.join(missing[:5])}; export the bundle again"
            )
        try:
            self._schedules = {name: Schedule.unpack(arrays[name]) for name in tables}
            times, embeddings = (arrays[name] for name in _TIME)
            times_of = time_rows(times, embeddings, self._schedules)
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
        given: Any = {
            "spec": spec,
            "arrays": arrays,
            "times": times_of,
            "empty_states": empty_states,
        }
        self._denoiser: HostDenoiser | ResidentDenoiser
        if isinstance(unet, DeviceEngine) and isinstance(vae, DeviceEngine):
            picture, schedules = self._pictures[vae], self._schedules
            resident = Resident(unet, picture, unet.gpu, schedules=schedules, **given)
            width = unet.inputs["class_labels"].shape[1] // 2
            self._denoiser = ResidentDenoiser(resident, width)
        else:
            self._denoiser = HostDenoiser(unet, **given)

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
        return self.plan(steps).steps

    def plan(self, steps: int) -> Schedule:
        """The bundle's schedule of that many steps; InputError if there is no table for them."""
        return self._plan(self._spec.schedule, steps)

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
        return self._denoiser.steps(condition, plan, share, philox(seed))

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

    @property
    def on_gpu(self) -> ResidentDenoiser | None:
        """What denoises, where U-Net, VAE and all between them are on one GPU."""
        return self._denoiser if isinstance(self._denoiser, ResidentDenoiser) else None

    @property
    def preview_on_gpu(self) -> DevicePicture | None:
        """What previews are made with, where that runs on a GPU."""
        return self._pictures.get(self._tiny or self._vae)

    def begin(self, condition: Condition, *, steps: int, seed: int, floats: bool = False) -> Begun:
        """Enqueue all steps and the picture of the latent, and wait for nothing.

        Parameters and errors are those of `steps`, what is not finite shows in waiting; with
        `floats` the picture comes in float32, too. Only where there is `on_gpu`; no other picture
        of an image or a step is made in between.
        """
        assert self.on_gpu is not None, "the caller looks at `on_gpu`"
        plan, beta = self.plan(steps), self._spec.beta
        self._check_start(condition.latent, beta)
        return self.on_gpu.begin(condition, plan, beta, philox(seed), floats=floats)

    def whole(self, condition: Condition, *, steps: int, seed: int, floats: bool = False) -> Whole:
        """What `begin` enqueues, waited for."""
        return self.begin(condition, steps=steps, seed=seed, floats=floats).whole()

    def close(self) -> None:
        """Free what it holds on a GPU; may be called twice."""
        self._denoiser.close()
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


def philox(seed: int) -> np.random.Generator:
    """The generator of a seed, the same on every machine."""
    return np.random.Generator(np.random.Philox(seed))


def _finite(image: Floats) -> Floats:
    if not np.isfinite(image).all():
        raise ScansideError(NOT_FINITE)
    return image


def to_pixels(image: Floats) -> NDArray[np.uint8]:
    """(1, 3, H, W) in [-1, 1] to (H, W, 3) uint8, rounded as diffusers does."""
    pixels = np.clip(image[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1) * 255
    return pixels.round().astype(np.uint8)
