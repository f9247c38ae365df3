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

from ..runtime.schedule import Schedule
from .golden import PROMPT, SEED, encode_golden, golden_entry, golden_volume, picture_golden
from .language_parity import compare_language
from .parity import Arrays, Parity, compare_graph
from .parts import is_streamed
from .quantize import quantised_gguf
from .schedules import schedule_tables
from .settings import DiffusionSettings
from .to_onnx import PromptEncoder, UNetStep, VAEDecoder, export_graph
from .torch_chain import TorchChain
from .torch_diffusion import TorchDiffusion

Float = NDArray[np.float32]


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
    golden: dict[str, Any] = field(default_factory=dict[str, Any])
    kernels: dict[str, Any] = field(default_factory=dict[str, Any])

    def graph(self, stage: str, path: Path, parity: Parity) -> None:
        """Note one ONNX file."""
        self.parity[stage] = parity
        for file in (path.name, f"{path.name}.data"):
            self.producer[file], self.precision[file] = f"torch {torch.__version__}", "fp32"


def write_encoder(chain: TorchChain, folder: Path, reports: StageReports) -> dict[str, Float]:
    """encoder.onnx, encoder.npz and the golden volume.

    Returns
    -------
    encoded : dict
        tokens, clip, latent, prefix of the golden volume, batch of one.
    """
    checkpoint = chain.checkpoint
    (folder / "golden").mkdir()
    encoded = encode_golden(chain, golden_volume(checkpoint, folder / "golden" / "volume.nii.gz"))
    tokens = encoded["tokens"]
    outputs = ("clip", "latent", "prefix")
    path = export_graph(
        chain.encoder, {"tokens": torch.from_numpy(tokens)}, outputs, folder / "encoder.onnx"
    )
    rng = np.random.default_rng(SEED)
    others = [rng.standard_normal(tokens.shape, dtype=np.float32) for _ in range(3)]
    trials: list[tuple[Arrays, Arrays]] = [
        ({"tokens": t}, dict(zip(outputs, chain.encode(t), strict=True))) for t in [tokens, *others]
    ]
    reports.graph("encoder", path, compare_graph(path, trials))
    reports.language["projector_sha256"] = projector_sha256(chain)
    _save_arrays(
        folder / "encoder.npz",
        {"active": checkpoint.active, "mean": checkpoint.mean, "inv_std": checkpoint.inv_std},
    )
    vars(chain).pop("encoder", None)
    return encoded


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
    quantised_gguf(checkpoint.root / "llm", path, quantization, metadata)
    language = chain.language
    texts: dict[str, str] = {}
    answers: list[list[int]] = [[]]
    if not is_streamed(checkpoint.root):  # else each token would read the whole checkpoint
        texts = {task: language.text(prefix, task)[0] for task in ("caption", "prompt")}
        answers = language.generate(prefix, "caption", max_tokens=16)
    found = compare_language(path, language, prefix, quantization, answers)
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
) -> None:
    """golden/outputs.npz; leaves text encoder, U-Net and VAE loaded."""
    pictures = picture_golden(chain, encoded, settings.steps, settings.schedule)
    _save_arrays(folder / "golden" / "outputs.npz", encoded | pictures)
    height, width = pictures["image"].shape[2:]
    reports.image_size = (height, width)
    reports.golden = golden_entry(texts, settings.steps, settings.schedule)


def write_diffusion(
    chain: TorchChain,
    folder: Path,
    encoded: dict[str, Float],
    settings: DiffusionSettings,
    reports: StageReports,
) -> None:
    """prompt_encoder.onnx, unet.onnx, vae_decoder.onnx, diffusion.npz, prompt_tokenizer.json."""
    tables = schedule_tables(chain.checkpoint.scheduler, settings.skip)
    _save_arrays(folder / "diffusion.npz", chain.diffusion.conditioning | tables)
    _write_vae(chain.diffusion, folder, encoded["latent"], reports)
    _write_prompt_encoder(chain.diffusion, folder, reports)
    _write_unet(chain.diffusion, folder, encoded, tables, settings, reports)


def _write_vae(
    diffusion: TorchDiffusion, folder: Path, latent: Float, reports: StageReports
) -> None:
    path = export_graph(
        VAEDecoder(diffusion.vae),
        {"latent": torch.from_numpy(latent)},
        ["image"],
        folder / "vae_decoder.onnx",
    )
    noise = diffusion.noise(SEED)[0][None]
    trials: list[tuple[Arrays, Arrays]] = [
        ({"latent": x}, {"image": diffusion.decode(x)}) for x in (latent, noise)
    ]
    reports.graph("vae_decoder", path, compare_graph(path, trials))
    diffusion.release("vae")


def _write_unet(
    diffusion: TorchDiffusion,
    folder: Path,
    encoded: dict[str, Float],
    tables: dict[str, Float],
    settings: DiffusionSettings,
    reports: StageReports,
) -> None:
    """Compared at the first, a middle and the last timestep of the default schedule with the U-Net
    as diffusers calls it."""
    batch = 2 if settings.guidance > 1 else 1
    start, clip_noise, _ = diffusion.noise(SEED)
    mixed = diffusion.mixed(encoded["latent"], start)
    inputs: dict[str, Float] = {
        "sample": np.repeat(mixed, batch, 0),
        "timestep": np.zeros(1, np.float32),
        "states": np.repeat(diffusion.keys_values([PROMPT]), batch, 0),
        "class_labels": np.repeat(
            diffusion.class_labels(encoded["clip"], clip_noise[None]), batch, 0
        ),
    }
    times = Schedule.unpack(tables[f"{settings.schedule}_{settings.steps}"]).timesteps
    chosen = sorted({times[0], times[len(times) // 2], times[-1]})

    plain = np.repeat(diffusion.prompt_states([PROMPT]), batch, 0)
    trials: list[tuple[Arrays, Arrays]] = []
    for time in chosen:
        feed = inputs | {"timestep": np.array([time], np.float32)}
        with torch.inference_mode():
            out = diffusion.unet(
                torch.from_numpy(inputs["sample"]),
                torch.tensor(time),
                encoder_hidden_states=torch.from_numpy(plain),
                class_labels=torch.from_numpy(inputs["class_labels"]),
            ).sample
        trials.append((feed, {"out": out.numpy()}))
    diffusion.release("text_encoder")
    example = {name: torch.from_numpy(a) for name, a in inputs.items()}
    path = export_graph(UNetStep(diffusion.unet), example, ["out"], folder / "unet.onnx")
    reports.graph("unet", path, compare_graph(path, trials))
    diffusion.release("unet")


def _write_prompt_encoder(diffusion: TorchDiffusion, folder: Path, reports: StageReports) -> None:
    tokenizer = diffusion.tokenizer
    texts = ["", PROMPT, "A large GREEN star, left of 2 small rings!"]
    rows = [
        tokenizer([t], padding="max_length", truncation=True, return_tensors="np").input_ids
        for t in texts
    ]
    path = export_graph(
        PromptEncoder(diffusion.text_encoder, diffusion.unet),
        {"input_ids": torch.from_numpy(rows[0])},
        ["states"],
        folder / "prompt_encoder.onnx",
    )
    trials: list[tuple[Arrays, Arrays]] = [
        ({"input_ids": row}, {"states": diffusion.keys_values([text])})
        for row, text in zip(rows, texts, strict=True)
    ]
    reports.graph("prompt_encoder", path, compare_graph(path, trials))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.save(str(folder / "prompt_tokenizer.json"))
    reports.prompt = {
        "prompt_length": rows[0].shape[1],
        "pad_id": tokenizer.pad_token_id,
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.eos_token_id,
    }
