"""The decoder: a bundle opened once, volumes decoded one after another.

with Decoder.open("reference") as decoder:
    result = decoder.decode("trial.nii.gz")
    print(result.caption)
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .chat import Chat
from .clock import Clock, Costs
from .decoding import Decoding
from .device_encoding import DeviceVolume
from .devices import stage_devices
from .errors import InputError
from .events import Done, Event
from .localization.locating import Locating, placed
from .memory_plan import parse_size
from .request import Request, task_list
from .result import Result
from .stages import Stages, open_stages, warm_up
from .volume import Volume, VolumeSource, load_volume


class Decoder(Locating):
    """An opened bundle. Use `Decoder.open`; close it, or use it in a `with` statement.

    One decode runs at a time: a stream that is not at its end is refused once the next one begins,
    unless it stands at a `Pause`.
    A decoder is not shared between threads, but for `stop`.
    """

    def __init__(self, bundle: Bundle, stages: Stages, device: str, costs: Costs) -> None:
        self.bundle = bundle
        self.stages = stages
        self.device = device
        self._costs = costs
        self._closed = False
        self._live: tuple[weakref.ref[Decoding], ...] = ()
        """The one that runs and those at a pause; replaced as a whole, for `stop` reads it."""

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        device: str | Mapping[str, str] = "cpu",
        threads: int = 2,
        *,
        warm: bool = True,
        vram: str | None = None,
    ) -> Decoder:
        """Open a bundle; everything that can fail fails here.

        Parameters
        ----------
        bundle : path, "reference" or Bundle
            The bundle's folder; "reference" is the one that comes with scanside.
        device : str or mapping
            "cpu", or a device for each stage; see `devices.py`. Used exactly as written.
        threads : int
            CPU threads of each engine.
        warm : bool
            Run every stage once, so that the first decode is as fast as the next and deadlines can
            be planned. False suits a single decode without a deadline.
        vram : str, optional
            Most of the GPU's memory that may be used, for example "8G"; by default all of it.

        Raises
        ------
        BundleError
            No bundle, a changed or missing file, a newer schema, parts that do not fit together.
        DeviceError
            A device that cannot be used, or whose memory does not suffice.
        MissingExtraError
            A library that is not installed.
        """
        devices = stage_devices(device)
        vram_bytes = None if vram is None else parse_size(vram)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        stages = open_stages(opened, devices, threads, vram_bytes)
        costs = Costs()
        try:
            if warm:
                warm_up(stages, costs)
        except BaseException:
            stages.close()
            raise
        name = (
            device if isinstance(device, str) else ",".join(f"{k}={v}" for k, v in device.items())
        )
        return cls(opened, stages, name, costs)

    def decode(
        self,
        volume: VolumeSource,
        tasks: str | Iterable[str] = ("caption", "image"),
        *,
        seed: int = 0,
        deadline_s: float | None = None,
        steps: int | None = None,
        prompt: str = "written",
        index: int | None = None,
        ask: Iterable[str] = (),
        token_log_probs: bool = False,
        candidates: int = 1,
        locate: str | Sequence[str] = (),
    ) -> Result:
        """Decode one volume.

        Parameters
        ----------
        volume : path, nibabel image, (array, affine), or (N, C) float array
            A beta volume, or tokens that are already normalised.
        tasks : sequence of str
            Of preview, caption, describe, prompt, image.
        seed : int
            Of the picture's noise, at least 0.
        deadline_s : float, optional
            Seconds from now to the last answer. What does not fit is shortened or left out, and
            `Result.degraded` says so.
        steps : int, optional
            Denoising steps; by default the bundle's.
        prompt : str
            Text that conditions the picture: "written" by the language model, the "caption",
            "none", or the text itself.
        index : int, optional
            Which volume of a 4-D source, from 0.
        ask : sequence of str
            Questions about the volume.
        token_log_probs : bool
            Keep the log-probability of every token, besides the mean of each text.
        candidates : int
            Pictures to make, with `seed` and the next ones, as far as the deadline leaves time; the
            one whose CLIP vector is nearest to the decoded one is kept.
        locate : str or sequence of str
            Concepts whose place is wanted, `Result.locations`; see `locations`.

        Returns
        -------
        result : Result

        Raises
        ------
        InputError
            A volume or an argument that cannot be used, or a task this bundle cannot do.
        """
        events = self.stream(
            volume,
            tasks,
            seed=seed,
            deadline_s=deadline_s,
            steps=steps,
            prompt=prompt,
            index=index,
            ask=ask,
            token_log_probs=token_log_probs,
            candidates=candidates,
            locate=locate,
        )
        *_, done = events
        assert isinstance(done, Done)
        return done.result

    def stream(
        self,
        volume: VolumeSource,
        tasks: str | Iterable[str] = ("preview", "caption", "image"),
        *,
        seed: int = 0,
        deadline_s: float | None = None,
        steps: int | None = None,
        prompt: str = "written",
        index: int | None = None,
        ask: Iterable[str] = (),
        token_log_probs: bool = False,
        candidates: int = 1,
        intermediate: int = 0,
        locate: str | Sequence[str] = (),
        pauses: bool = False,
    ) -> Iterator[Event]:
        """Decode one volume, each answer as soon as it is there: preview, heat map, text, image,
        then Done.

        Parameters and errors are those of `decode`; wrong arguments are refused at the call. With
        `intermediate` the picture is shown after every so many denoising steps, too. With `pauses`
        the stream yields `Pause` before its texts and before its image: several volumes can then
        take turns, every preview first, then every text, then the images.
        """
        self._check_open()
        questions = (ask,) if isinstance(ask, str) else tuple(ask)
        request = Request(
            tasks=task_list(tasks),
            ask=questions,
            prompt=prompt,
            steps=steps,
            seed=seed,
            deadline_s=deadline_s,
            token_log_probs=token_log_probs,
            candidates=candidates,
            intermediate=intermediate,
            locate=(locate,) if isinstance(locate, str) else tuple(locate),
            pauses=pauses,
        )
        clock = Clock(deadline_s)
        result = Result(
            device=self.device,
            seed=seed,
            bundle=self.bundle.sha256,
            placement=dict(self.stages.placement),
        )
        decoding = Decoding(self.stages, request, result, clock, self._costs, self._take)
        if request.locate:
            volume = decoding.volume = placed(volume, index, clock)
        tokens = self._normalised_tokens(volume, index, clock)
        self._take(decoding)
        return decoding.events(tokens)

    def stop(self) -> None:
        """Let the decode that is running end after its current token or denoising step, or after
        the picture that a GPU makes beside a text.

        So do those at a pause, once they go on. Their results hold what there is by then, and say
        so. The one method that another thread may call; without a decode it does nothing.
        """
        for decoding in self._decodings():
            decoding.stop()

    def chat(self, volume: VolumeSource, *, index: int | None = None) -> Chat:
        """Begin a conversation about one volume, in memory of its own.

        Parameters
        ----------
        volume : path, nibabel image, (array, affine), or (N, C) float array
            As `decode` takes it.
        index : int, optional
            Which volume of a 4-D source, from 0.

        Returns
        -------
        chat : Chat
            It lives until it is closed, or the decoder is; other volumes may be decoded and talked
            about meanwhile.

        Raises
        ------
        InputError
            A volume that cannot be used, or a bundle without a language model.
        """
        self._check_open()
        language, clock = self.stages.need_language(), Clock(None)
        tokens = self._normalised_tokens(volume, index, clock)
        with clock.stage("encode"):
            prefix = self.stages.encode(tokens, ("prefix",))["prefix"][0]
        with clock.stage("language"):
            chat = Chat(language, prefix)
        clock.mark("total")
        chat.latency_ms = clock.latency_ms
        return chat

    @property
    def _decoding(self) -> Callable[..., Result]:
        return self.decode

    def tokens(self, volume: VolumeSource, index: int | None = None) -> NDArray[np.float32]:
        """Raw tokens of a volume, (N, C) float32, in the bundle's units and not normalised."""
        return self.stages.preprocessor.tokens(load_volume(volume, index), normalised=False)

    def close(self) -> None:
        """Free the models; may be called twice."""
        self._closed = True
        for decoding in self._decodings():
            decoding.end("the decoder is closed")
        self.stages.close()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the decoder is closed; open it again")

    def _take(self, decoding: Decoding) -> None:
        """Give the models to a decoding; what is not at a pause ends."""
        others = [other for other in self._decodings() if other is not decoding]
        for other in others:
            if not other.paused:
                other.end("the decoder has gone on to another volume")
        live = [decoding, *(other for other in others if other.paused)]
        self._live = tuple(map(weakref.ref, live))

    def _decodings(self) -> Iterator[Decoding]:
        return filter(None, (reference() for reference in self._live))

    def _normalised_tokens(
        self, volume: Any, index: int | None, clock: Clock
    ) -> NDArray[np.float32] | DeviceVolume:
        shape = self.stages.preprocessor.geometry.shape
        if isinstance(volume, np.ndarray) and volume.ndim == 2:
            if volume.shape != shape or not np.isfinite(volume).all():
                raise InputError(f"tokens must be finite and of shape {shape}; got {volume.shape}")
            return np.ascontiguousarray(volume, np.float32)
        with clock.stage("load"):
            loaded = volume if isinstance(volume, Volume) else load_volume(volume, index)
        with clock.stage("preprocess"):
            return self.stages.place(loaded)
