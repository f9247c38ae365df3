"""The language model in PyTorch: greedy answers from a brain prefix by transformers' `generate`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.errors import CheckpointError
from . import parts

Float = NDArray[np.float32]
Json = dict[str, Any]


class TorchLanguage:
    """A Llama checkpoint with its dialogue template; weights are loaded on first use.

    Parameters
    ----------
    root : Path
        The checkpoint directory.
    dialogue : dict
        Template, instructions and token limits (`llm/dialogue.json`).
    """

    def __init__(self, root: Path, dialogue: Json) -> None:
        self.root = root
        self.dialogue = dialogue

    @cached_property
    def llm(self) -> Any:
        """The model, `LlamaForCausalLM` in float32."""
        return parts.load_llm(self.root)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return parts.load_llm_tokenizer(self.root)

    @cached_property
    def ends(self) -> set[int]:
        """Ids that end an answer; chat models have more than the tokenizer's own."""
        ends = self.llm.generation_config.eos_token_id
        listed = ends if isinstance(ends, list) else [ends]
        return {int(i) for i in (*listed, self.tokenizer.eos_token_id) if i is not None}

    def check_specials(self) -> None:
        """Refuse a tokenizer without the special tokens that the template needs.

        Raises
        ------
        CheckpointError
            The first that is missing.
        """
        template = self.dialogue["template"]
        added = self.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        missing = [repr(text) for text in template.get("specials", []) if text not in special]
        if template["bos"] and self.tokenizer.bos_token_id is None:
            missing.append("that begins a text")
        if self.tokenizer.eos_token_id is None:
            missing.append("that ends a text")
        if missing:
            raise CheckpointError(
                f"llm's tokenizer has no special token {missing[0]}, but the dialogue template "
                "needs one; name the template that the model was trained on in llm/dialogue.json"
            )

    def text(
        self,
        prefix: Float,
        task: str,
        *,
        question: str | None = None,
        max_tokens: int | None = None,
    ) -> list[str]:
        """Greedy answers to one instruction.

        Parameters
        ----------
        prefix : (B, M, d) float32
            The encoder's.
        task : str
            A key of the instructions ("caption", "describe", "prompt"), or "ask" with a `question`.
        question : str, optional
            Replaces the instruction.
        max_tokens : int, optional
            Instead of the dialogue's limit for the task.

        Returns
        -------
        answers : list of B str
            Without outer space, specials and stop strings.
        """
        ids = self.generate(prefix, task, question=question, max_tokens=max_tokens)
        return [self.plain(row) for row in ids]

    @torch.inference_mode()
    def generate(
        self,
        prefix: Float,
        task: str,
        *,
        question: str | None = None,
        max_tokens: int | None = None,
    ) -> list[list[int]]:
        """Token ids of greedy answers, the end token included if it came; parameters of `text`."""
        instruction = question if question is not None else self.dialogue["instructions"][task]
        embeddings = self.prompt_embeddings(prefix, instruction)
        output = self.llm.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_tokens or self.dialogue["max_tokens"][task],
            pad_token_id=min(self.ends),
            eos_token_id=sorted(self.ends),
        )
        return [self._until_end(row) for row in output.tolist()]

    def answers(self, prefix: Float, tasks: Iterable[str]) -> list[dict[str, list[int]]]:
        """Greedy answers to several tasks, as far as there are instructions for them.

        Returns
        -------
        answers : list of B dict
            Task -> token ids of `generate`; empty for a model that is read anew for every token.
        """
        if parts.is_streamed(self.root):
            return [{} for _ in prefix]
        known = [task for task in tasks if task in self.dialogue["instructions"]]
        written = {task: self.generate(prefix, task) for task in known}
        return [{task: rows[i] for task, rows in written.items()} for i in range(len(prefix))]

    @torch.inference_mode()
    def logits(self, before: list[int], prefix: Float, after: list[int]) -> Float:
        """Logits at every token behind the prefix.

        Parameters
        ----------
        before, after : list of int
            Token ids on either side.
        prefix : (M, d) float32

        Returns
        -------
        logits : (len(after), vocabulary) float32
        """
        embed = self.llm.get_input_embeddings()
        rows = [embed(torch.tensor(before)), torch.from_numpy(prefix), embed(torch.tensor(after))]
        logits = self.llm(inputs_embeds=torch.cat(rows)[None], logits_to_keep=len(after)).logits
        return logits[0].numpy()

    def prompt_embeddings(self, prefix: Float, instruction: str) -> Tensor:
        """Input embeddings of a first turn, the prefix at the image slot.

        Returns
        -------
        embeddings : (B, T, d) float32
        """
        embed = self.llm.get_input_embeddings()
        before, after = (
            embed(torch.tensor([ids])).expand(len(prefix), -1, -1)
            for ids in self.segments(instruction)
        )
        return torch.cat([before, torch.from_numpy(prefix), after], dim=1)

    def segments(self, instruction: str) -> tuple[list[int], list[int]]:
        """Token ids of a first turn before and behind the prefix; every piece is tokenised
        alone."""
        template = self.dialogue["template"]
        asked = template["first_turn"].replace("{instruction}", instruction)
        begin = [int(self.tokenizer.bos_token_id)] if template["bos"] else []
        before = begin + self.token_ids(template["before_prefix"])
        return before, self.token_ids(template["after_prefix"] + asked)

    def token_ids(self, text: str) -> list[int]:
        """Token ids of one piece of text; nothing is added to it."""
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def _until_end(self, ids: list[int]) -> list[int]:
        stops = [i for i, token in enumerate(ids) if token in self.ends]
        return ids[: stops[0] + 1] if stops else ids

    def plain(self, ids: list[int]) -> str:
        """The text of generated ids, as `text` gives it."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in self.dialogue["template"]["stop"]:
            text = text.split(stop)[0]
        return text.strip()
