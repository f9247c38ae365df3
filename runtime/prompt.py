"""A prompt text to the keys and values that the U-Net attends to, the same at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Engine
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
        self._tokenizer = _load_tokenizer(tokenizer)
        self.empty, _ = self.encode("")
        """(1, L, W) float32 of no text."""

    def encode(self, text: str) -> tuple[NDArray[np.float32], int]:
        """States of a text.

        Returns
        -------
        states : (1, L, W) float32
            Keys and values for every cross-attention of the U-Net, side by side.
        cut : int
            Tokens that did not fit and were left out.
        """
        spec = self._spec
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        room = spec.prompt_length - 2
        row = np.full((1, spec.prompt_length), spec.pad_id, np.int64)
        kept = [spec.bos_id, *ids[:room], spec.eos_id]
        row[0, : len(kept)] = kept
        return self._engine.run({"input_ids": row})["states"], max(0, len(ids) - room)


def _load_tokenizer(path: Path) -> Any:
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
