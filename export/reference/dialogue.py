"""Conversations as token ids, and the tokenizer that they are written in."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from ..tokenizer_training import train_llama_tokenizer
from .scenes import draw_scenes
from .texts import TEMPLATE, Turn, corpus

IGNORED = -100


def _segment(name: str) -> str:
    text = TEMPLATE[name]
    assert isinstance(text, str)
    return text


def _number(token: object) -> int:
    """A special token's id, which transformers types as anything."""
    assert isinstance(token, int)
    return token


class Dialogue:
    """Conversations as token ids with the answers marked, each segment tokenised by itself as the
    runtime does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        # questions and most answers come again and again
        self._known = lru_cache(1 << 16)(self._tokenised)
        self.start, self.end = _number(tokenizer.bos_token_id), _number(tokenizer.eos_token_id)
        self.before = [self.start, *self.ids(_segment("before_prefix"))]

    def ids(self, text: str) -> list[int]:
        """Token ids of a segment, without an automatic start token."""
        return list(self._known(text))

    def _tokenised(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def encode(self, turns: list[Turn], longest: int) -> tuple[list[int], list[int]]:
        """Token ids after the prefix, and the same with `IGNORED` wherever no loss is taken; turns
        that would make it longer than `longest` are left out.
        """
        ids: list[int] = []
        labels: list[int] = []
        for i, turn in enumerate(turns):
            template = _segment("next_turn" if i else "first_turn")
            asked = self.ids(template.format(instruction=turn.question))
            answer = [
                *self.ids(_segment("answer").format(answer=turn.answer)),
                self.end,
            ]
            if len(ids) + len(asked) + len(answer) > longest:
                break
            ids += asked + answer
            labels += [IGNORED] * len(asked) + answer
        return ids, labels


def make_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the world is one token."""
    rng = np.random.default_rng(61)
    scenes = draw_scenes(600, rng)
    lines = [
        _segment(k).format(instruction="") for k in ("before_prefix", "first_turn", "next_turn")
    ] * 50
    return train_llama_tokenizer(
        lines + corpus(600, [scenes.named(i) for i in range(600)], 61), folder, 1024
    )
