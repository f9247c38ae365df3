"""How much each input of a language model's matrices matters, seen on brain prompts.

A k-quant chooses scales that keep a block's weighted error small. The weight of a column is the
mean square of what is multiplied with it (llama.cpp calls the table an importance matrix). Text
alone would say little about the prefix rows, which no token looks like, so it is taken over whole
conversations about volumes: prefix, instructions and the model's own answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .torch_language import TorchLanguage

Float = NDArray[np.float32]
TASKS = ("caption", "describe", "prompt")
"""What the conversation asks for, as far as the checkpoint has instructions for it."""


@dataclass(slots=True)
class Importance:
    """Mean square of every input of every matrix that multiplies."""

    tokens: int = 0
    """Positions that were seen, prefix rows included."""
    columns: dict[str, Float] = field(default_factory=dict[str, Float])
    """GGUF tensor name -> (inputs,) float32."""


def importance(
    language: TorchLanguage, prefix: Float, answers: Sequence[Mapping[str, list[int]]]
) -> Importance:
    """Run one conversation for each volume and watch the inputs of all matrices.

    Parameters
    ----------
    language : TorchLanguage
        The model that will be quantised.
    prefix : (B, M, d) float32
        The encoder's, of real volumes.
    answers : sequence of B mappings
        Task -> token ids of the model's answer, its end included; a task without an answer is asked
        all the same.

    Returns
    -------
    found : Importance
    """
    found, seen = Importance(), _Seen()
    handles = [
        module.register_forward_pre_hook(seen.watch(name))
        for name, module in _matrices(language.llm).items()
    ]
    try:
        for row, answered in zip(prefix, answers, strict=True):
            before, after = _conversation(language, answered)
            language.logits(before, row, after)
            found.tokens += len(before) + len(row) + len(after)
    finally:
        for handle in handles:
            handle.remove()
    found.columns = seen.means()
    return found


class _Seen:
    """Sums of squares, by GGUF tensor name."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}

    def watch(self, name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].detach().flatten(0, -2)
            self._sums[name] = self._sums.get(name, 0) + rows.double().square().sum(0)
            self._rows[name] = self._rows.get(name, 0) + len(rows)

        return add

    def means(self) -> dict[str, Float]:
        means = {name: total / self._rows[name] for name, total in self._sums.items()}
        return {name: mean.float().numpy() for name, mean in means.items()}


def _matrices(llm: Any) -> dict[str, nn.Module]:
    """Every matrix by its name in the GGUF file. A tied head multiplies with the embeddings."""
    config = llm.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    matrices: dict[str, nn.Module] = {}
    for name, module in llm.named_modules():
        if name == "lm_head" and config.tie_word_embeddings:
            matrices["token_embd.weight"] = module
        elif isinstance(module, nn.Linear):
            target = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
            assert target is not None, name
            matrices[target] = module
    return matrices


def _conversation(
    language: TorchLanguage, answers: Mapping[str, list[int]]
) -> tuple[list[int], list[int]]:
    """Token ids before and behind the prefix: every instruction, one behind the other."""
    instructions, template = language.dialogue["instructions"], language.dialogue["template"]
    tasks = [task for task in TASKS if task in instructions]
    before, after = language.segments(instructions[tasks[0]])
    for i, task in enumerate(tasks):
        if i:
            asked = template["next_turn"].replace("{instruction}", instructions[task])
            after = after + language.token_ids(asked)
        after = after + answers.get(task, [])
    return before, after
