"""The opened localizer of a bundle: one to three encoders, each with the graph behind it.

An encoder runs once a volume, whatever the number of concepts; so do the resampling and cutting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..clock import Costs
from ..engines.engine import Engine, check_contract, warm
from ..errors import InputError
from ..manifest import LocalizationSpec, TensorSpec
from ..preprocess import Preprocessor
from ..volume import Volume
from .concepts import ConceptEncoder
from .heat import CubeMap, fuse, scale, to_image, to_volume
from .location import Location

Floats = NDArray[np.float32]
OpenEngine = Callable[[str, str], Engine]
"""Opens the graph of a stage from a file of the bundle."""

NONE = (
    "this bundle has no localizer, so it cannot show where a concept is; export a checkpoint with "
    "concept/, a CLIP text model with projection and its tokenizer"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One encoder with the graph behind it."""

    localizer: Engine
    cubes: CubeMap
    preprocessor: Preprocessor
    encoder: Engine | None
    """None for the encoder that decodes, whose penultimate layer is given."""

    def hidden(self, volume: Volume) -> Floats:
        """Penultimate layer (1, N+1, D) of a volume."""
        assert self.encoder is not None, "the decoding encoder's is given"
        tokens = self.preprocessor.tokens(volume)
        return self.encoder.run({"tokens": tokens[None]})["hidden"]

    def relevance(self, hidden: Floats, vectors: Floats) -> tuple[Floats, Floats]:
        """Relevance (K, N) and similarity (K,) of any number of concepts."""
        rows, width = self.localizer.inputs["concepts"].shape
        found: list[dict[str, Floats]] = []
        for first in range(0, len(vectors), rows):
            batch = np.zeros((rows, width), np.float32)
            part = vectors[first : first + rows]
            batch[: len(part)] = part
            given = self.localizer.run({"hidden": hidden, "concepts": batch})
            found.append({name: values[: len(part)] for name, values in given.items()})
        relevance, similarity = (
            np.concatenate([one[name] for one in found]) for name in ("relevance", "similarity")
        )
        if not (np.isfinite(relevance).all() and np.isfinite(similarity).all()):
            raise InputError("relevance is not finite for this volume; check the volume's units")
        return relevance, similarity


class Localizer:
    """Places concepts in volumes.

    Parameters
    ----------
    members : sequence of Member
        The one that decodes first.
    concepts : ConceptEncoder
    spec : LocalizationSpec
        ReLU, scaling, fusion, threshold.
    threads : int
    """

    def __init__(
        self,
        members: Sequence[Member],
        concepts: ConceptEncoder,
        spec: LocalizationSpec,
        threads: int,
    ) -> None:
        self.members = tuple(members)
        self.concepts = concepts
        self.spec = spec
        self._threads = threads

    def locate(self, volume: Volume, hidden: Floats, names: Sequence[str]) -> list[Location]:
        """Places of concepts in one volume.

        Parameters
        ----------
        volume : Volume
        hidden : (1, N+1, D) float32
            Penultimate layer of the encoder that decodes, for that volume.
        names : sequence of str

        Raises
        ------
        InputError
            As `ConceptEncoder.vectors`; a volume that an encoder cannot read.
        """
        vectors = self.concepts.vectors(names)
        layers = [hidden, *(member.hidden(volume) for member in self.members[1:])]
        told = [
            member.relevance(layer, vectors)
            for member, layer in zip(self.members, layers, strict=True)
        ]
        matrix = self.members[0].preprocessor.model_to_source(volume)
        carry = partial(_carry, volume=volume, matrix=matrix, threads=self._threads)
        found: list[Location] = []
        for k, name in enumerate(names):
            rows = tuple(relevance[k] for relevance, _ in told)
            found.append(
                Location(
                    concept=name.strip(),
                    similarity=float(np.mean([similarity[k] for _, similarity in told])),
                    relevance=rows,
                    _draw=partial(self.fused, rows),
                    _carry=partial(carry, concept=name.strip()),
                )
            )
        return found

    def fused(self, rows: Sequence[Floats]) -> Floats:
        """One concept's finished map on the model grid, of each encoder's relevance (N,)."""
        if self.spec.relu:
            rows = [np.maximum(row, 0) for row in rows]
        maps = [member.cubes.grid(row) for member, row in zip(self.members, rows, strict=True)]
        return scale(fuse(maps, self.spec.fusion), self.spec.scaling)

    def warm_up(self, costs: Costs) -> None:
        """Run every graph once on zeros."""
        with costs.measured("locate"):
            warm(self.concepts.engine)
            for member in self.members:
                if member.encoder:
                    warm(member.encoder)
                warm(member.localizer)
        # a map is drawn when it is looked at, from tables that the first one makes
        self.fused([np.zeros(len(one.cubes.geometry.active), np.float32) for one in self.members])

    def close(self) -> None:
        """Free what the further encoders hold on a GPU; may be called twice."""
        for member in self.members[1:]:
            member.preprocessor.close()


def _carry(
    grid: Floats, *, volume: Volume, matrix: NDArray[np.float64], threads: int, concept: str
) -> object:
    heat = to_volume(grid, matrix, volume.data.shape, threads)
    return to_image(heat, volume.affine, concept)


def open_localizer(
    bundle: Bundle,
    preprocessor: Preprocessor,
    open_preprocessor: Callable[..., Preprocessor],
    open_engine: OpenEngine,
    placement: dict[str, str],
    threads: int,
) -> Localizer | None:
    """Open all that localization needs, and note where it runs in `placement`.

    Parameters
    ----------
    preprocessor : Preprocessor
        Of the encoder that decodes.
    open_preprocessor : callable
        Opens that of another EncoderSpec.
    open_engine : callable
        Opens the graph of a stage.

    Returns
    -------
    localizer : Localizer or None
        None for a bundle without one.
    """
    manifest, spec = bundle.manifest, bundle.manifest.localization
    if spec is None:
        return None
    clip = manifest.encoder.outputs["clip"].shape[-1]
    text = open_engine("concept_encoder", spec.concept_encoder)
    check_contract(
        text,
        {"input_ids": TensorSpec(shape=(1, spec.length), dtype="int64")},
        {"concept": TensorSpec(shape=(1, clip), dtype="float32")},
    )
    placement["concept_encoder"] = text.provider
    concepts = ConceptEncoder(text, bundle.path(spec.tokenizer), spec)
    members: list[Member] = []
    for encoder in manifest.localizing:
        assert encoder.localizer is not None
        decodes = encoder is manifest.encoder
        graph = open_engine("localizer", encoder.localizer.file)
        check_contract(graph, encoder.localizer.inputs, encoder.localizer.outputs)
        own = preprocessor if decodes else open_preprocessor(encoder)
        engine = None if decodes else open_engine("localizer", encoder.file)
        if engine:
            check_contract(engine, encoder.inputs, encoder.outputs)
        cubes = CubeMap(own.geometry, own.live, threads)
        members.append(Member(localizer=graph, cubes=cubes, preprocessor=own, encoder=engine))
    placement["localizer"] = members[0].localizer.provider
    return Localizer(members, concepts, spec, threads)


def golden_numbers(
    localizer: Localizer, volume: Volume, wanted: Mapping[str, Floats]
) -> Iterator[tuple[str, Floats]]:
    """Each output of localization by its golden name, from golden inputs."""
    vectors = wanted["concept"].reshape(1, -1)
    for member in localizer.members:
        cube = member.cubes.geometry.cube
        suffix = "" if member.encoder is None else f"_{cube}"
        hidden = wanted["hidden"] if member.encoder is None else member.hidden(volume)
        relevance, similarity = member.relevance(hidden, vectors)
        yield f"relevance{suffix}", relevance
        yield f"similarity{suffix}", similarity
