"""The files of a bundle, stage by stage: write, compare with PyTorch, release the PyTorch part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .compile_graph import Compiled, Precision, compile_graph
from .golden import SEED, encode_golden, golden_entry, golden_volume, picture_golden
from .importance import TASKS, importance
from .language_parity import compare_language
from .localizer import EncoderWithHidden
from .parity import Arrays, Parity
from .quantize import quantised_gguf
from .settings import DiffusionSettings
from .torch_chain import TorchChain

Float = NDArray[np.float32]

_COMPARED_TOKENS = 16
"""Of the golden caption, whose logits are compared with PyTorch's."""


@dataclass(slots=True)
class StageReports:
    """What the manifest needs to know about the stages."""

    parity: dict[str, Parity] = field(default_factory=dict[str, Parity])
    producer: dict[str, str] = field(default_factory=dict[str, str])
    """File name -> what wrote it."""
    precision: dict[str, str] = field(default_factory=dict[str, str])
    language: dict[str, Any] = field(default_factory=dict[str, Any])
    prompt: dict[str, Any] = field(default_factory=dict[str, Any])
    image_size: tuple[int, int] = (0, 0)
    pictures: dict[str, str] = field(default_factory=dict[str, str])
    """Optional graphs of the picture stage: what each is, and its file."""
    ranges: dict[str, Any] = field(default_factory=dict[str, Any])
    """For every half-precision graph, what stayed float32 and why."""
    fused: dict[str, Any] = field(default_factory=dict[str, Any])
    """For every graph with parts that were made one operator, what became of them."""
    golden: dict[str, Any] = field(default_factory=dict[str, Any])
    kernels: dict[str, Any] = field(default_factory=dict[str, Any])
    localization: dict[str, Any] = field(default_factory=dict[str, Any])
    """The manifest's section of that name; empty without a concept encoder."""
    localizer: dict[str, Any] = field(default_factory=dict[str, Any])
    """Entry of the localizer behind the encoder that decodes."""
    localizing_encoders: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Entries of the encoders that only localize."""

    def compiled(self, stage: str, path: Path, done: Compiled) -> None:
        """Note one ONNX file."""
        self.parity[stage] = done.parity
        if done.ranges:
            self.ranges[stage] = done.ranges
        for file in (path.name, f"{path.name}.data"):
            self.producer[file] = f"torch {torch.__version__}"
            self.precision[file] = done.precision


def write_encoder(
    chain: TorchChain,
    folder: Path,
    reports: StageReports,
    precision: Precision = "fp32",
    *,
    hidden: bool = False,
) -> dict[str, Float]:
    """encoder.onnx, encoder.npz and the golden volume.

    Parameters
    ----------
    hidden : bool
        Whether the graph also gives its penultimate layer, which a localizer takes.

    Returns
    -------
    encoded : dict
        tokens, clip, latent, prefix, and hidden if asked for, of the golden volume, batch of one.
    """
    checkpoint = chain.checkpoint
    (folder / "golden").mkdir()
    encoded = encode_golden(chain, golden_volume(checkpoint, folder / "golden" / "volume.nii.gz"))
    tokens = encoded["tokens"]
    outputs = ("clip", "latent", "prefix", *(("hidden",) if hidden else ()))
    encode = chain.encode_with_hidden if hidden else chain.encode
    module = EncoderWithHidden(chain.encoder) if hidden else chain.encoder
    rng = np.random.default_rng(SEED)
    others = [rng.standard_normal(tokens.shape, dtype=np.float32) for _ in range(3)]
    trials: list[tuple[Arrays, Arrays]] = [
        ({"tokens": t}, dict(zip(outputs, encode(t), strict=True))) for t in [tokens, *others]
    ]
    path = folder / "encoder.onnx"
    done = compile_graph(module, outputs, path, trials, precision)
    reports.compiled("encoder", path, done)
    reports.language["projector_sha256"] = projector_sha256(chain)
    _save_arrays(
        folder / "encoder.npz",
        {"active": checkpoint.active, "mean": checkpoint.mean, "inv_std": checkpoint.inv_std},
    )
    vars(chain).pop("encoder", None)
    return {"tokens": tokens, **trials[0][1]}


def _save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    np.savez_compressed(path, allow_pickle=False, **dict(arrays))


def projector_sha256(chain: TorchChain) -> str:
    """Identity of f_t, the projector that the language model was trained with."""
    digest = hashlib.sha256()
    for _, tensor in sorted(chain.encoder.f_t.state_dict().items()):
        digest.update(np.ascontiguousarray(tensor.float().numpy(), "<f4").tobytes())
    return digest.hexdigest()


def write_language(
    chain: TorchChain, folder: Path, prefix: Float, quantization: str, reports: StageReports
) -> dict[str, str]:
    """language.gguf, and PyTorch's greedy texts about the golden volume.

    Returns
    -------
    texts : dict
        "caption" and "prompt"; empty for a model that is too large for memory.
    """
    checkpoint = chain.checkpoint
    path = folder / "language.gguf"
    metadata: dict[str, str | int] = {
        "projector_sha256": reports.language["projector_sha256"],
        "prefix_length": prefix.shape[1],
        "width": prefix.shape[2],
    }
    language = chain.language
    language.check_specials()
    answers = language.answers(prefix, TASKS)
    quantised_gguf(
        checkpoint.root / "llm",
        path,
        quantization,
        metadata,
        watched=lambda: importance(language, prefix, answers),
    )
    texts = {
        task: language.plain(answers[0][task])
        for task in ("caption", "prompt")
        if task in answers[0]
    }
    behind = [row.get("caption", [])[:_COMPARED_TOKENS] for row in answers]
    found = compare_language(path, language, prefix, quantization, behind)
    reports.parity["language"] = found
    vars(language).pop("llm", None)
    reports.language |= {
        "quantization": quantization,
        "context": _context_length(checkpoint.llm["max_position_embeddings"], prefix.shape[1]),
        "prefix_length": prefix.shape[1],
        "width": prefix.shape[2],
    }
    reports.producer[path.name], reports.precision[path.name] = "gguf, llama.cpp", quantization
    return texts


def _context_length(trained: int, prefix: int) -> int:
    """Room for the prefix and a dialogue; no more than was trained, since the KV cache costs
    memory."""
    return min(trained, -(-(prefix + 1024) // 256) * 256)


def write_golden(
    chain: TorchChain,
    folder: Path,
    encoded: dict[str, Float],
    texts: dict[str, str],
    settings: DiffusionSettings,
    reports: StageReports,
    precision: Precision = "fp32",
) -> None:
    """golden/outputs.npz; leaves text encoder and VAE loaded."""
    pictures = picture_golden(chain, encoded, settings.steps, settings.schedule)
    _save_arrays(folder / "golden" / "outputs.npz", encoded | pictures)
    height, width = pictures["image"].shape[2:]
    reports.image_size = (height, width)
    reports.golden = golden_entry(texts, settings.steps, settings.schedule, precision, encoded)
