"""The text encoder of concept localization: a concept's words to a vector in CLIP's space.

A CLIP text model with projection (`concept/`). Often it is the diffusion model's text encoder with
a projection behind it; then the two graphs share their weights, and their tokenizers a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from .compile_graph import compile_graph
from .parity import Arrays, compare_graph
from .parts import loading
from .shared_weights import share_weights
from .stages import StageReports

Float = NDArray[np.float32]

STAGE = "concept_encoder"
TEXTS = ("red circle", "a dog", "A large GREEN star, left of 2 small rings!")
"""What the graph is compared on; the first is the golden concept."""


class ConceptEncoder(nn.Module):
    """The projected vector of one text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """(1, L) int64 -> (1, E) float32."""
        text = self.model.text_model
        hidden = text(input_ids).last_hidden_state
        # CLIP's first tokenizers end with their largest id, and their configuration says 2
        is_end = input_ids if text.eos_token_id == 2 else input_ids == text.eos_token_id
        # of float32, for ONNX Runtime has no ArgMax of integers on a GPU
        end = is_end.to(torch.float32).argmax(dim=-1)
        return self.model.text_projection(hidden[torch.arange(len(end)), end])


@dataclass(frozen=True)
class TorchConcepts:
    """Concepts to vectors in PyTorch: what the compiled encoder is compared with."""

    root: Path
    """The checkpoint."""

    @cached_property
    def model(self) -> Any:
        """CLIPTextModelWithProjection, float32."""
        with loading("concept"):
            return transformers.CLIPTextModelWithProjection.from_pretrained(
                self.root / "concept", dtype=torch.float32, use_safetensors=True,
                local_files_only=True,
            ).eval()  # fmt: skip

    @cached_property
    def tokenizer(self) -> Any:
        """CLIPTokenizerFast."""
        with loading("concept"):
            return transformers.CLIPTokenizerFast.from_pretrained(
                self.root / "concept", local_files_only=True
            )

    @property
    def length(self) -> int:
        """Tokens of a text, its begin and end included."""
        return int(self.model.config.max_position_embeddings)

    def ids(self, text: str) -> NDArray[np.int64]:
        """(1, L) padded token ids."""
        row = self.tokenizer(
            [text],
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="np",
        )
        return row.input_ids.astype(np.int64)

    @torch.inference_mode()
    def vectors(self, *texts: str) -> Float:
        """(K, E) float32, not normalised."""
        rows = np.concatenate([self.ids(text) for text in texts])
        return self.model(torch.from_numpy(rows)).text_embeds.numpy()


def write_concept_encoder(concepts: TorchConcepts, folder: Path, reports: StageReports) -> None:
    """concept_encoder.onnx and its tokenizer; call it when the prompt encoder is written.

    Parameters
    ----------
    concepts : TorchConcepts
    folder : Path
        The bundle being written.
    reports : StageReports
        Told what was written; its `localization` becomes complete.
    """
    trials: list[tuple[Arrays, Arrays]] = [
        ({"input_ids": concepts.ids(text)}, {"concept": concepts.vectors(text)}) for text in TEXTS
    ]
    path, prompt = folder / f"{STAGE}.onnx", folder / "prompt_encoder.onnx"
    done = compile_graph(ConceptEncoder(concepts.model), ["concept"], path, trials)
    reports.compiled(STAGE, path, done)
    if share_weights(prompt, path, folder / "text_shared.data"):
        compare_graph(path, trials)
        reports.producer["text_shared.data"] = reports.producer[path.name]
        reports.precision["text_shared.data"] = done.precision
    reports.golden["concept"] = TEXTS[0]
    tokenizer = concepts.tokenizer
    reports.localization |= {
        "concept_encoder": path.name,
        "tokenizer": _write_tokenizer(tokenizer, folder),
        "length": concepts.length,
        "pad_id": tokenizer.pad_token_id,
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.eos_token_id,
    }


def _write_tokenizer(tokenizer: Any, folder: Path) -> str:
    """Its file's name; the prompt encoder's where they are the same."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    prompt, own = folder / "prompt_tokenizer.json", folder / "concept_tokenizer.json"
    backend.save(str(own))
    if prompt.is_file() and prompt.read_bytes() == own.read_bytes():
        own.unlink()
        return prompt.name
    return own.name
