"""The part of the decoder that says where concepts are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, overload

import numpy as np

from ..clock import Clock
from ..errors import InputError
from ..request import task_list
from ..result import Result
from ..stages import Stages
from ..volume import Volume, VolumeSource, load_volume
from .ablation import Subject, check_threshold
from .ablation import ablate as run_ablation
from .location import Ablation, Image, Location


class Locating(ABC):
    """Methods of the decoder for concept localization."""

    stages: Stages

    @property
    @abstractmethod
    def _decoding(self) -> Callable[..., Result]:
        """The decoder's `decode`."""

    def locations(
        self, volume: VolumeSource, concepts: str | Sequence[str], *, index: int | None = None
    ) -> list[Location]:
        """Find where concepts are in one volume, all in one pass of the encoders.

        Parameters
        ----------
        volume : path, nibabel image, or (array, affine)
            A beta volume.
        concepts : str or sequence of str
            Each a few words, or the bundle's own sentence ('Locating the concept of "dog"'), which
            the language model reads.
        index : int, optional
            Which volume of a 4-D source, from 0.

        Returns
        -------
        locations : list of Location
            Heat map on the volume's own grid, similarity, relevance of every cube.

        Raises
        ------
        InputError
            An empty concept, one longer than the text encoder takes, a volume that cannot be used,
            or a bundle without a localizer.
        """
        named = (concepts,) if isinstance(concepts, str) else tuple(concepts)
        if not named:
            raise InputError("no concept to locate; name one, for example 'red circle'")
        return self._decoding(volume, (), index=index, locate=named).locations

    @overload
    def locate(self, volume: VolumeSource, concept: str, *, index: int | None = None) -> Image: ...
    @overload
    def locate(
        self,
        volume: VolumeSource,
        concept: str,
        *,
        index: int | None = None,
        ablate: Literal[True],
        threshold: float | None = None,
        tasks: str | Iterable[str] = ("caption", "image"),
        seed: int = 0,
    ) -> Ablation: ...
    def locate(
        self,
        volume: VolumeSource,
        concept: str,
        *,
        index: int | None = None,
        ablate: bool = False,
        threshold: float | None = None,
        tasks: str | Iterable[str] = ("caption", "image"),
        seed: int = 0,
    ) -> Image | Ablation:
        """Find where a concept is in one volume.

        Parameters
        ----------
        volume, concept, index
            As in `locations`.
        ablate : bool
            Take the located voxels away and decode again.
        threshold : float, optional
            With `ablate`: from which value of the map on, 0 to 1, a voxel is taken away; by default
            the bundle's.
        tasks, seed
            With `ablate`: what is decoded, as in `decode`. The seed also draws the random voxels.

        Returns
        -------
        heat : nibabel image
            On the volume's own grid and affine.
        ablation : Ablation
            With `ablate`: both decodings, and how far the similarity to the concept fell.

        Raises
        ------
        InputError
            As in `locations`; a threshold outside 0 to 1.
        """
        if not ablate:
            return self.locations(volume, concept, index=index)[0].heat
        localizer = self.stages.need_localizer()
        limit = check_threshold(localizer.spec.threshold if threshold is None else threshold)
        whole = placed(volume, index, Clock(None))
        (location,) = self.locations(whole, concept)
        names = task_list(tasks)
        subject = Subject(
            tokens=self.stages.preprocessor.tokens(whole),
            live=self.stages.preprocessor.live,
            vector=localizer.concepts.vectors([location.concept])[0],
            clip=lambda tokens: self.stages.encode(tokens)["clip"][0],
            decode=lambda tokens: self._decoding(tokens, names, seed=seed),
        )
        return run_ablation(localizer, location, subject, limit, seed)


def placed(volume: VolumeSource, index: int | None, clock: Clock) -> Volume:
    """A volume with its grid, which tokens no longer have."""
    if isinstance(volume, np.ndarray):
        raise InputError(
            "'locate' needs the volume itself, for tokens do not say on which grid it lies; pass a "
            "path, a nibabel image or a pair (array, affine)"
        )
    with clock.stage("load"):
        return load_volume(volume, index)
