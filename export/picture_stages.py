"""The picture stage's files: tables, prompt encoder, U-Net, VAE decoder, and where the checkpoint
has them a tiny decoder for previews and the image encoder that ranks candidates.

Each part is written, compared with PyTorch and released before the next one is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..runtime.errors import CheckpointError
from ..runtime.schedule import Schedule
from .compile_graph import Precision, compile_graph
from .golden import PROMPT, SEED
from .parity import Arrays
from .schedules import schedule_tables
from .settings import DiffusionSettings
from .stages import StageReports
from .time_table import time_table
from .to_onnx import PromptEncoder, UNetStep, VAEDecoder
from .torch_chain import TorchChain
from .torch_diffusion import TorchDiffusion

Float = NDArray[np.float32]
Trials = list[tuple[Arrays, Arrays]]


def write_diffusion(
    chain: TorchChain,
    folder: Path,
    encoded: dict[str, Float],
    settings: DiffusionSettings,
    reports: StageReports,
    precision: Precision = "fp32",
) -> None:
    """All files of the picture stage.

    Parameters
    ----------
    chain : TorchChain
    folder : Path
        The bundle being written.
    encoded : dict
        The encoder's outputs for the golden volume, batch of one: clip and latent.
    settings : DiffusionSettings
    reports : StageReports
        Told what was written, and how far it is from PyTorch.
    precision : {"fp32", "fp16", "int8"}
        Of the U-Net, the VAE decoder and the tiny decoder. The prompt encoder and the image encoder
        run once a picture at most and stay float32.
    """
    tables = schedule_tables(chain.checkpoint.scheduler, settings.skip)
    stage = _PictureStages(chain.diffusion, folder, encoded, settings, reports, precision)
    pictures = stage.write_vae()
    stage.write_preview_decoder()
    stage.write_image_encoder(pictures)
    stage.write_prompt_encoder()
    times = stage.write_unet(tables)
    arrays: dict[str, NDArray[Any]] = chain.diffusion.conditioning | tables | times
    np.savez_compressed(folder / "diffusion.npz", allow_pickle=False, **arrays)


class _PictureStages:
    def __init__(
        self,
        diffusion: TorchDiffusion,
        folder: Path,
        encoded: dict[str, Float],
        settings: DiffusionSettings,
        reports: StageReports,
        precision: Precision,
    ) -> None:
        self._diffusion = diffusion
        self._folder = folder
        self._encoded = encoded
        self._settings = settings
        self._reports = reports
        self._precision: Precision = precision

    def _write(
        self,
        stage: str,
        module: nn.Module,
        output: str,
        trials: Trials,
        precision: Precision = "fp32",
    ) -> None:
        path = self._folder / f"{stage}.onnx"
        done = compile_graph(module, [output], path, trials, precision)
        self._reports.compiled(stage, path, done)

    def write_vae(self) -> list[Float]:
        """vae_decoder.onnx; returns the pictures that it was compared on."""
        diffusion = self._diffusion
        trials = [({"latent": x}, {"image": diffusion.decode(x)}) for x in self._latents()]
        self._write(
            "vae_decoder", VAEDecoder(diffusion.vae), "image", list(trials), self._precision
        )
        diffusion.release("vae")
        return [expected["image"] for _, expected in trials]

    def _latents(self) -> list[Float]:
        return [self._encoded["latent"], self._diffusion.noise(SEED)[0][None]]

    def write_preview_decoder(self) -> None:
        """preview_decoder.onnx, where the checkpoint has one."""
        decoder = self._diffusion.tiny_decoder()
        if decoder is None:
            return
        trials: Trials = []
        for latent in self._latents():
            with torch.inference_mode():
                image = decoder(torch.from_numpy(latent)).numpy()
            if image.shape[2:] != self._reports.image_size:
                raise CheckpointError(
                    f"diffusion/preview_decoder gives pictures of {image.shape[2:]}, the VAE of "
                    f"{self._reports.image_size}; they must be of one size"
                )
            trials.append(({"latent": latent}, {"image": image}))
        self._write("preview_decoder", decoder, "image", trials, self._precision)
        self._reports.pictures["preview_decoder"] = "preview_decoder.onnx"
        self._diffusion.release("preview_decoder")

    def write_image_encoder(self, pictures: list[Float]) -> None:
        """image_encoder.onnx, where the checkpoint has its weights."""
        module = self._diffusion.picture_encoder(self._reports.image_size)
        if module is None:
            return
        trials: Trials = []
        for image in pictures:
            with torch.inference_mode():
                clip = module(torch.from_numpy(image)).numpy()
            trials.append(({"image": image}, {"clip": clip}))
        self._write("image_encoder", module, "clip", trials)
        self._reports.pictures["image_encoder"] = "image_encoder.onnx"
        self._diffusion.release("image_encoder")

    def write_unet(self, tables: dict[str, Float]) -> dict[str, Float]:
        """unet.onnx, compared at the first, a middle and the last timestep of the default schedule
        with the U-Net as diffusers calls it; returns its `time_table`.
        """
        diffusion, settings = self._diffusion, self._settings
        batch = 2 if settings.guidance > 1 else 1
        start, clip_noise, _ = diffusion.noise(SEED)
        labels = diffusion.class_labels(self._encoded["clip"], clip_noise[None])
        table = time_table(diffusion.unet, tables)
        inputs: dict[str, Float] = {
            "sample": np.repeat(diffusion.mixed(self._encoded["latent"], start), batch, 0),
            "time": table["time_embeddings"][:1],
            "states": np.repeat(diffusion.keys_values([PROMPT]), batch, 0),
            "class_labels": np.repeat(labels, batch, 0),
        }
        times = Schedule.unpack(tables[f"{settings.schedule}_{settings.steps}"]).timesteps
        plain = torch.from_numpy(np.repeat(diffusion.prompt_states([PROMPT]), batch, 0))
        trials: Trials = []
        for time in sorted({times[0], times[len(times) // 2], times[-1]}):
            with torch.inference_mode():
                out = diffusion.unet(
                    torch.from_numpy(inputs["sample"]),
                    torch.tensor(time),
                    encoder_hidden_states=plain,
                    class_labels=torch.from_numpy(inputs["class_labels"]),
                ).sample
            row = np.flatnonzero(table["times"] == time)
            feed = inputs | {"time": table["time_embeddings"][row]}
            trials.append((feed, {"out": out.numpy()}))
        diffusion.release("text_encoder")
        self._write("unet", UNetStep(diffusion.unet), "out", trials, self._precision)
        diffusion.release("unet")
        return table

    def write_prompt_encoder(self) -> None:
        """prompt_encoder.onnx and prompt_tokenizer.json."""
        diffusion, tokenizer = self._diffusion, self._diffusion.tokenizer
        texts = ["", PROMPT, "A large GREEN star, left of 2 small rings!"]
        trials: Trials = []
        for text in texts:
            ids = tokenizer([text], padding="max_length", truncation=True, return_tensors="np")
            expected = {"states": diffusion.keys_values([text])}
            trials.append(({"input_ids": ids.input_ids}, expected))
        module = PromptEncoder(diffusion.text_encoder, diffusion.unet)
        self._write("prompt_encoder", module, "states", trials)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.save(str(self._folder / "prompt_tokenizer.json"))
        self._reports.prompt = {
            "prompt_length": trials[0][0]["input_ids"].shape[1],
            "pad_id": tokenizer.pad_token_id,
            "bos_id": tokenizer.bos_token_id,
            "eos_id": tokenizer.eos_token_id,
        }
