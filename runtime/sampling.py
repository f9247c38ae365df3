"""How the next token is chosen: the likeliest, or a seeded draw, within a grammar if wanted."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, ScansideError
from .llama import LlamaModel

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama.cpp's llama_token_data."""
_RANDOM_SEED = 2**32 - 1
"""LLAMA_DEFAULT_SEED, with which llama.cpp draws a seed of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What the next token is drawn from; by default the likeliest is taken."""

    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token, and the rest is not used."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this much probability together."""
    seed: int = 0
    """Same seed, same text."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"'temperature' must be at least 0; got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"'top_k' must be at least 0; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"'top_p' must be above 0 and at most 1; got {self.top_p}")
        if not 0 <= self.seed < _RANDOM_SEED:
            raise InputError(f"'seed' must be 0 to {_RANDOM_SEED - 1}; got {self.seed}")


class TokenChooser:
    """Chooses the tokens of one text.

    Parameters
    ----------
    model : LlamaModel
        Its vocabulary.
    sampling : Sampling
    grammar : str, optional
        In GBNF with a rule `root`; only text that it allows is written.

    Raises
    ------
    InputError
        A grammar that llama.cpp does not understand.
    """

    def __init__(self, model: LlamaModel, sampling: Sampling, grammar: str | None = None) -> None:
        self._api = model.api
        self._candidates = np.empty(model.vocabulary_size, _CANDIDATE)
        self._draw = None if sampling.temperature == 0 else self._drawing(sampling)
        self._grammar = None if grammar is None else self._parsed(model, grammar)

    def choose(self, logits: NDArray[np.float32], likeliest: int | None = None) -> int:
        """The next token.

        Parameters
        ----------
        logits : (vocabulary,) float32
            Of what stands so far.
        likeliest : int, optional
            Where the largest of them is, if that is known already.
        """
        token = int(logits.argmax()) if likeliest is None else likeliest
        if self._grammar and not (self._draw is None and self._allowed(token)):
            logits = self._masked(logits)
            token = int(logits.argmax())
        if self._draw is not None:
            token = self._drawn(logits)
        if self._grammar:
            self._api.llama_sampler_accept(self._grammar, token)
        return token

    def _drawing(self, sampling: Sampling) -> Any:
        """Temperature first, as transformers has it: top-p looks at the tempered probabilities."""
        api = self._api
        chain = self._owned(api.llama_sampler_chain_init(api.llama_sampler_chain_default_params()))
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_temp(sampling.temperature))
        if sampling.top_k:
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_p(sampling.top_p, 1))
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(sampling.seed))
        return chain

    def _parsed(self, model: LlamaModel, grammar: str) -> Any:
        if not grammar.strip():
            raise InputError("'grammar' is empty")
        with _stderr_kept() as said:
            sampler = self._api.llama_sampler_init_grammar(
                model.vocabulary, grammar.encode(errors="replace"), b"root"
            )
        if not sampler:
            reason = said[0].rpartition("grammar: ")[2]
            reason = reason or "it has no rule 'root', or one that begins with itself"
            raise InputError(f"llama.cpp cannot use the grammar: {reason}")
        return self._owned(sampler)

    def _owned(self, sampler: Any) -> Any:
        weakref.finalize(self, self._api.llama_sampler_free, sampler).atexit = False
        return sampler

    def _allowed(self, token: int) -> bool:
        """Whether the grammar allows a token here; much cheaper than asking for all of them."""
        one = np.array([(token, 0.0, 0.0)], _CANDIDATE)
        self._apply(self._grammar, one)
        return bool(np.isfinite(one["logit"][0]))

    def _masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits with minus infinity for every token that the grammar does not allow here."""
        candidates = self._filled(logits)
        self._apply(self._grammar, candidates)
        masked = candidates["logit"].copy()
        # llama.cpp ends the process on a token that its grammar did not allow
        if not np.isfinite(masked).any():
            raise ScansideError(
                "no token of this language model can go on as the grammar wants; use a wider one"
            )
        return masked

    def _drawn(self, logits: NDArray[np.float32]) -> int:
        kept = self._filled(logits)
        kept = kept[np.isfinite(kept["logit"])]
        drawn = self._apply(self._draw, kept)
        return int(drawn.data[drawn.selected].id)

    def _filled(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        self._candidates["id"] = np.arange(len(logits))
        self._candidates["logit"] = logits
        self._candidates["p"] = 0
        return self._candidates

    def _apply(self, sampler: Any, candidates: NDArray[Any]) -> Any:
        data = self._api.llama_token_data_array(
            data=candidates.ctypes.data_as(ctypes.POINTER(self._api.llama_token_data)),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        self._api.llama_sampler_apply(sampler, ctypes.byref(data))
        return data


@contextmanager
def _stderr_kept() -> Generator[list[str]]:
    """Keep what C code prints on stderr: llama.cpp's grammar parser has no other way to say."""
    lines: list[str] = []
    sys.stderr.flush()
    real = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield lines
            finally:
                os.dup2(real, 2)
                file.seek(0)
                lines.append(file.read().decode(errors="replace").partition("\n")[0])
    finally:
        os.close(real)
