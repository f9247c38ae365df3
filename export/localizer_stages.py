"""The localizer's files: for every encoder its last layer with gradient; for those that do not
decode their layers before it, too.

Each is compared with PyTorch's own autograd through the whole `ViT3D`, not with the graph's module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from .compile_graph import Precision, compile_graph
from .concept_encoder import TEXTS, TorchConcepts
from .golden import SEED
from .localizer import CONCEPTS, LocalizationSettings, Localizer, Trunk, last_block
from .localizer_parts import Localization, LocalizerPart
from .manifest_writer import encoder_entry, tensor_entry
from .parity import Arrays, compare_graph
from .shared_weights import fold_repeats, share_weights
from .stages import StageReports
from .torch_chain import TorchChain
from .torch_tokens import cube_tokens
from .vit3d import ViT3D

Float = NDArray[np.float32]


def autograd_relevance(
    encoder: ViT3D, hidden: Float, concept: Float, settings: LocalizationSettings
) -> tuple[Float, float]:
    """Relevance (N,) and similarity by autograd through the module as it stands.

    Parameters
    ----------
    hidden : (1, N+1, D) float32
    concept : (E,) float32
    """
    last = last_block(encoder)
    tokens = torch.from_numpy(hidden).clone().requires_grad_(True)
    seen: dict[str, torch.Tensor] = {"output": tokens}

    def keep(layer: nn.Module, given: tuple[torch.Tensor, ...], normed: torch.Tensor) -> None:
        seen["normed"] = normed

    watch = last.norm1.register_forward_hook(keep)
    with torch.enable_grad():
        clip = encoder.f_wc(encoder.norm(last(tokens)[:, 0]))[0]
        watch.remove()
        target = torch.from_numpy(concept)
        similarity = F.cosine_similarity(clip, target, dim=0)
        score = similarity if settings.score == "cosine" else clip @ (target / target.norm())
        (gradient,) = torch.autograd.grad(score, seen[settings.layer])
    cubes, gradient = seen[settings.layer].detach()[0, 1:], gradient[0, 1:]
    if settings.baseline == "mean":
        config = encoder.config
        with torch.no_grad():
            mean = encoder.features(torch.zeros(1, config.num_cubes, config.token_size))[0]
            mean = last.norm1(mean) if settings.layer == "normed" else mean
        cubes = cubes - mean[0, 1:].half().float()
    weights = gradient.mean(0) if settings.cam == "gradcam" else gradient
    return (weights * cubes).sum(1).numpy(), float(similarity.detach())


def write_localizers(
    chain: TorchChain,
    localization: Localization,
    folder: Path,
    encoded: dict[str, Float],
    reports: StageReports,
    precision: Precision = "fp32",
) -> None:
    """localizer.onnx, and localizer_12.onnx, encoder_12.onnx, encoder_12.npz of a further encoder.

    Parameters
    ----------
    chain : TorchChain
    localization : Localization
    folder : Path
        The bundle being written; holds encoder.onnx and the golden volume.
    encoded : dict
        The encoder's outputs for the golden volume with `hidden`; gains the golden concept's
        vector, and relevance and similarity for each encoder.
    reports : StageReports
    precision : {"fp32", "fp16", "int8"}
        Of the further encoders. Localizers are small, and stay float32.
    """
    settings, concepts = localization.settings, TorchConcepts(chain.checkpoint.root)
    vectors = concepts.vectors(*TEXTS)
    encoded["concept"] = vectors[:1]
    entries: list[dict[str, Any]] = []
    stage = _LocalizerStage(folder, vectors, settings, reports)
    own = stage.write("", chain.encoder, encoded["hidden"], encoded)
    vars(chain).pop("encoder", None)
    image = nib.Nifti1Image.from_filename(folder / "golden" / "volume.nii.gz")
    for part in localization.others:
        encoder = part.load()
        tokens = cube_tokens(image, part.config, part.active, part.mean, part.inv_std)
        file = _write_trunk(part, encoder, tokens, folder, reports, precision)
        with torch.inference_mode():
            hidden = encoder.features(torch.from_numpy(tokens))[0].numpy()
        localizer = stage.write(part.suffix, encoder, hidden, encoded)
        outputs = {"hidden": tensor_entry([1, *hidden.shape[1:]], "penultimate layer")}
        entries.append(
            encoder_entry(part.config, "localize", file, outputs) | {"localizer": localizer}
        )
    reports.localization |= {
        "score": settings.score,
        "cam": settings.cam,
        "layer": settings.layer,
        "baseline": settings.baseline,
        "relu": settings.relu,
        "scaling": settings.scaling,
        "fusion": settings.fusion,
        "threshold": settings.threshold,
    }
    reports.localizer, reports.localizing_encoders = own, entries


def _write_trunk(
    part: LocalizerPart,
    encoder: ViT3D,
    tokens: Float,
    folder: Path,
    reports: StageReports,
    precision: Precision,
) -> str:
    rng = np.random.default_rng(SEED)
    trials: list[tuple[Arrays, Arrays]] = []
    for given in (tokens, rng.standard_normal(tokens.shape, dtype=np.float32)):
        with torch.inference_mode():
            hidden = encoder.features(torch.from_numpy(given))[0].numpy()
        trials.append(({"tokens": given}, {"hidden": hidden}))
    path = folder / f"{part.name}.onnx"
    done = compile_graph(Trunk(encoder), ["hidden"], path, trials, precision)
    reports.compiled(part.name, path, done)
    np.savez_compressed(
        folder / f"{part.name}.npz",
        allow_pickle=False,
        active=part.active,
        mean=part.mean,
        inv_std=part.inv_std,
    )
    return path.name


class _LocalizerStage:
    def __init__(
        self,
        folder: Path,
        vectors: Float,
        settings: LocalizationSettings,
        reports: StageReports,
    ) -> None:
        self._folder = folder
        self._concepts = np.zeros((CONCEPTS, vectors.shape[1]), np.float32)
        self._concepts[: len(vectors)] = vectors
        self._count = len(vectors)
        self._settings = settings
        self._reports = reports

    def write(
        self, suffix: str, encoder: ViT3D, hidden: Float, golden: dict[str, Float]
    ) -> dict[str, Any]:
        """One localizer; returns its entry of the manifest."""
        rng = np.random.default_rng(SEED)
        spread = hidden.std() * rng.standard_normal(hidden.shape, dtype=np.float32)
        trials = [self._trial(encoder, given) for given in (hidden, hidden + 0.5 * spread)]
        first = [torch.from_numpy(array) for array in trials[0][0].values()]
        module = Localizer(encoder, self._settings).traced(*first)
        path = self._folder / f"localizer{suffix}.onnx"
        done = compile_graph(module, ["relevance", "similarity"], path, trials)
        fold_repeats(path)
        owner, data = self._folder / f"encoder{suffix}.onnx", f"encoder{suffix}_shared.data"
        if share_weights(owner, path, self._folder / data):
            self._reports.producer[data] = self._reports.producer.get(path.name, "")
            self._reports.precision[data] = done.precision
        parity = compare_graph(path, trials)
        self._reports.compiled(path.stem, path, done)
        self._reports.parity[path.stem] = parity
        for name in ("relevance", "similarity"):
            golden[f"{name}{suffix}"] = trials[0][1][name][:1]
        cubes, width = hidden.shape[1] - 1, self._concepts.shape[1]
        return {
            "file": path.name,
            "inputs": {
                "hidden": tensor_entry([1, *hidden.shape[1:]], "penultimate layer"),
                "concepts": tensor_entry([CONCEPTS, width], "CLIP text embedding"),
            },
            "outputs": {
                "relevance": tensor_entry([CONCEPTS, cubes], "score gradient times token"),
                "similarity": tensor_entry([CONCEPTS], "cosine"),
            },
        }

    def _trial(self, encoder: ViT3D, hidden: Float) -> tuple[Arrays, Arrays]:
        relevance = np.zeros((CONCEPTS, hidden.shape[1] - 1), np.float32)
        similarity = np.zeros(CONCEPTS, np.float32)
        for row in range(self._count):
            relevance[row], similarity[row] = autograd_relevance(
                encoder, hidden, self._concepts[row], self._settings
            )
        return (
            {"hidden": hidden, "concepts": self._concepts},
            {"relevance": relevance, "similarity": similarity},
        )
