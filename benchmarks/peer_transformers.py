"""Text from a brain prefix with transformers: `generate`, fed embeddings, prefix computed once."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM

from scanside.export.checkpoint import open_checkpoint

Floats = NDArray[np.float32]


class TransformersText:
    """A checkpoint's language model.

    Parameters
    ----------
    checkpoint : Path
    dtype : torch.dtype
        Of weights and arithmetic.
    """

    def __init__(self, checkpoint: Path, dtype: torch.dtype = torch.float32) -> None:
        self.dialogue = open_checkpoint(checkpoint).dialogue
        self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint / "llm")
        self.model: Any = LlamaForCausalLM.from_pretrained(checkpoint / "llm", dtype=dtype).eval()
        listed = self.model.generation_config.eos_token_id
        ends = listed if isinstance(listed, list) else [listed]
        self.ends = sorted({i for i in (*ends, self.tokenizer.eos_token_id) if i is not None})
        self._head: torch.Tensor | None = None
        self._cache: Any = None
        self.first_token_at = float("nan")
        """`time.perf_counter()` when the last answer had its first token."""

    @torch.inference_mode()
    def attend(self, prefix: Floats) -> None:
        """Compute keys and values of a volume's prefix, (M, d) float32, for all texts about it."""
        template = self.dialogue["template"]
        begin = [self.tokenizer.bos_token_id] if template["bos"] else []
        before = self._embed(begin + self._ids(template["before_prefix"]))
        rows = torch.from_numpy(prefix).to(self.model.dtype)
        self._head = torch.cat([before, rows])[None]
        self._cache = DynamicCache()
        self.model(inputs_embeds=self._head, past_key_values=self._cache, logits_to_keep=1)

    @torch.inference_mode()
    def answer(self, task: str, limit: int | None = None) -> list[int]:
        """Token ids of the greedy answer to a task's instruction, the end token included."""
        assert self._head is not None, "attend to a prefix first"
        template = self.dialogue["template"]
        asked = template["first_turn"].replace("{instruction}", self.dialogue["instructions"][task])
        after = self._embed(self._ids(template["after_prefix"] + asked))[None]
        prompt = torch.cat([self._head, after], dim=1)
        stamp = _FirstToken()
        ids = self.model.generate(
            inputs_embeds=prompt,
            attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
            past_key_values=copy.deepcopy(self._cache),
            do_sample=False,
            max_new_tokens=limit or self.dialogue["max_tokens"][task],
            pad_token_id=self.ends[0],
            eos_token_id=self.ends,
            streamer=stamp,
        )
        self.first_token_at = stamp.at
        return ids[0].tolist()

    def text(self, ids: list[int]) -> str:
        """The words of an answer."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in self.dialogue["template"]["stop"]:
            text = text.split(stop)[0]
        return text.strip()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def _embed(self, ids: list[int]) -> torch.Tensor:
        return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))


class _FirstToken:
    """Notes when `generate` has its first token; before that it is told the prompt's ids, none."""

    def __init__(self) -> None:
        self.at = float("nan")

    def put(self, ids: Any) -> None:
        if ids.numel() and np.isnan(self.at):
            self.at = time.perf_counter()

    def end(self) -> None:
        pass
