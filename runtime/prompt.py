"""A prompt text to the keys and values that the U-Net attends to, the same at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engines.engine import Engine
from .errors import BundleError, MissingExtraError
from .manifest import DiffusionSpec


class PromptEncoder:
    """Tokenizer and text encoder of the diffusion model.

    Parameters
    ----------
    engine : Engine
        input_ids (1, L) int64 -> states (1, L, W) float32.
    tokenizer : Path
        A `tokenizers` JSON file.
    spec : DiffusionSpec
        Length and special tokens.
    """

    def __init__(self, engine: Engine, tokenizer: Path, spec: DiffusionSpec) -> None:
        self._engine = engine
        self._spec = spec
        self._tokenizer = load_tokenizer(tokenizer)
        self._last: tuple[str, NDArray[np.float32], int] | None = None
        self.empty, _ = self.encode("", remember=False)
        """(1, L, W) float32 of no text."""

    def encode(self, text: str, *, remember: bool = True) -> tuple[NDArray[np.float32], int]:
        """States of a text; those of the last one are remembered, for a constant prompt.

        Returns
        -------
        states : (1, L, W) float32
            Keys and values for every cross-attention of the U-Net, side by side.
        cut : int
            Tokens that did not fit and were left out.
        """
        if remember and self._last and self._last[0] == text:
            return self._last[1:]
        spec = self._spec
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        room = spec.prompt_length - 2
        row = np.full((1, spec.prompt_length), spec.pad_id, np.int64)
        kept = [spec.bos_id, *ids[:room], spec.eos_id]
        row[0, : len(kept)] = kept
        states = self._engine.run({"input_ids": row})["states"]
        cut = max(0, len(ids) - room)
        if remember:
            self._last = (text, states, cut)
        return states, cut


def load_tokenizer(path: Path) -> Any:
    """A `tokenizers` JSON file, without its own padding and truncation."""
    try:
        from tokenizers import Tokenizer
    except ImportError as exc:
        raise MissingExtraError("tokenizers is not installed; run pip install tokenizers") from exc
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # tokenizers raises plain Exception
        raise BundleError(f"{path} is not a tokenizer ({exc}); export the bundle again") from exc
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
