"""A concept's words to its vector in CLIP's space, the target of localization."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engines.engine import Engine
from ..errors import InputError
from ..manifest import LocalizationSpec
from ..prompt import load_tokenizer

Floats = NDArray[np.float32]

REMEMBERED = 256
"""Vectors that are kept; the one that was made first goes first."""


class ConceptEncoder:
    """Tokenizer and CLIP text model with projection.

    Parameters
    ----------
    engine : Engine
        input_ids (1, L) int64 -> concept (1, E) float32.
    tokenizer : Path
        A `tokenizers` JSON file.
    spec : LocalizationSpec
        Length and special tokens.
    """

    def __init__(self, engine: Engine, tokenizer: Path, spec: LocalizationSpec) -> None:
        self.engine = engine
        self._tokenizer = load_tokenizer(tokenizer)
        self._spec = spec
        self._known: dict[str, Floats] = {}

    def vectors(self, concepts: Sequence[str]) -> Floats:
        """Vectors of concepts, (K, E) float32, not normalised; those of known ones are remembered.

        Raises
        ------
        InputError
            No concept, an empty one, one that is not text, or one longer than the encoder takes.
        """
        if not concepts:
            raise InputError("no concept to locate; name one, for example 'red circle'")
        return np.stack([self._vector(concept) for concept in concepts])

    def check(self, concepts: Sequence[str]) -> None:
        """Raise what `vectors` would of one of them, without running the encoder."""
        for concept in concepts:
            self._ids(concept)

    def _vector(self, concept: str) -> Floats:
        row = self._ids(concept)
        text = concept.strip()
        if text not in self._known:
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[text] = self.engine.run({"input_ids": row})["concept"][0]
        return self._known[text]

    def _ids(self, concept: str) -> NDArray[np.int64]:
        text, spec = concept.strip(), self._spec
        if not text:
            raise InputError("'concept' is empty; name one, for example 'red circle'")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{text!r} is not valid UTF-8; type it in a UTF-8 terminal")
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        room = spec.length - 2
        if len(ids) > room:
            raise InputError(
                f"the concept has {len(ids)} tokens, the bundle's text encoder takes {room}; "
                "name it in fewer words"
            )
        row = np.full((1, spec.length), spec.pad_id, np.int64)
        row[0, : len(ids) + 2] = [spec.bos_id, *ids, spec.eos_id]
        return row
