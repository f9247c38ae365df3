"""The embedding of time, taken out of the U-Net.

A schedule's timesteps are known at export, and what the U-Net makes of a timestep, sines and two
layers, depends on nothing else. So it becomes a table, and the U-Net's graph takes a row of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..runtime.errors import CheckpointError
from ..runtime.schedule import Schedule

Float = NDArray[np.float32]


@torch.inference_mode()
def time_table(unet: Any, schedules: Mapping[str, Float]) -> dict[str, Float]:
    """Embeddings of all timesteps of all schedules.

    Parameters
    ----------
    unet : UNet2DConditionModel
    schedules : mapping
        Packed tables of `schedules.schedule_tables`.

    Returns
    -------
    table : dict
        `times` (T,) float32, rising; `time_embeddings` (T, D) float32.

    Raises
    ------
    CheckpointError
        The U-Net conditions on time by more than an embedding.
    """
    if unet.time_embed_act is not None:
        raise CheckpointError(
            "diffusion/unet: time_embedding_act_fn is set, which no Stable unCLIP has; export "
            "expects the embedding of time and that of the class labels to be added alone"
        )
    times = np.unique(np.concatenate([Schedule.unpack(s).timesteps for s in schedules.values()]))
    waves = unet.time_proj(torch.from_numpy(times)).to(unet.dtype)
    return {"times": times, "time_embeddings": unet.time_embedding(waves).float().numpy()}


def take_time_embedding(unet: Any) -> None:
    """Change a U-Net, in place, so that it is called with an embedding (1, D) as its timestep."""

    def given(sample: Tensor, timestep: Tensor) -> Tensor:
        return timestep

    unet.get_time_embed = given
    unet.time_embedding = _Given()


class _Given(nn.Module):
    def forward(self, embedding: Tensor, condition: None = None) -> Tensor:
        """(1, D) float -> the same."""
        return embedding
