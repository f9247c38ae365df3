"""Stage `scores`: the compiled bundle and the PyTorch models on held-out trials, beside the
oracle, chance and the mean picture.

Unseen scenes always; subjects of the training set and two that were never seen apart; one trial,
and the mean of three. Volumes go through the decoder's front door as int16 NIfTI images.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...runtime import Decoder
from ..torch_chain import TorchChain
from ..torch_tokens import volume_tokens
from .noise import Brain
from .oracle import Oracle
from .scenes import IMAGE_SIZE, Scenes, draw_scenes, render
from .targets import FrozenEncoders
from .texts import caption, names_every_object
from .training import Progress
from .trials import Session, to_nifti
from .world import SEEN, UNSEEN, Subject

TRIALS = 500
CONDITIONS = (
    ("seen, mean of three", SEEN, 3),
    ("seen, single trial", SEEN, 1),
    ("unseen, mean of three", UNSEEN, 3),
    ("unseen, single trial", UNSEEN, 1),
)
DECODERS = ("compiled", "pytorch", "oracle", "chance", "mean image")
Pictures = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]


@dataclass(slots=True)
class Decoded:
    """What one decoder made of the trials of a condition, in order."""

    texts: list[str] = field(default_factory=list[str])
    images: list[Pictures] = field(default_factory=list[Pictures])
    previews: list[Pictures] = field(default_factory=list[Pictures])


def pixel_correlation(one: Pictures, other: Pictures) -> float:
    """Mean over pictures (B, H, W, 3) of Pearson's correlation over pixels and channels."""
    a, b = (
        x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(1, keepdims=True) for x in (one, other)
    )
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norm, 1e-12)).mean())


def two_way_identification(decoded: NDArray[np.float32], true: NDArray[np.float32]) -> float:
    """Share of pairs in which a decoded vector correlates more with its own true vector than with
    another's; (B, D) each.
    """
    a, b = (x - x.mean(1, keepdims=True) for x in (decoded, true))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    similarity = a @ b.T
    wins = np.diag(similarity)[:, None] > similarity
    return float(wins.sum() / (len(a) * (len(a) - 1)))


def volumes(
    scenes: Scenes, subjects: tuple[str, ...], repeats: int, seed: int
) -> Iterator[tuple[int, str, NDArray[np.float32]]]:
    """Trial volumes (X, Y, Z): index of the scene, subject, volume. Subjects take turns; each sees
    its scenes once, then again.
    """
    for s, subject in enumerate(subjects):
        index = np.arange(s, len(scenes), len(subjects))
        session = Session(_brain(subject), seed)
        total = np.zeros((len(index), *Subject(subject).shape), np.float32)
        for _ in range(repeats):
            for i, volume in enumerate(session.trials(scenes[index])):
                total[i] += volume
        for i, volume in zip(index, total / repeats, strict=True):
            yield int(i), subject, volume


@cache
def _brain(subject: str) -> Brain:
    return Brain(Subject(subject))


@cache
def _oracle(subject: str) -> Oracle:
    return Oracle(_brain(subject))


def score(
    bundle: Path, checkpoint: Path, trials: int = TRIALS, processes: int = 1
) -> dict[str, Any]:
    """All scores, as `manifest.json` and `benchmarks/results/` hold them.

    Parameters
    ----------
    bundle, checkpoint : Path
        The compiled chain, and what it was compiled from.
    trials : int
        For each of `CONDITIONS`.
    processes : int
        Conditions that are decoded side by side, on one thread each.

    Returns
    -------
    scores : dict
        `trials`, `same_text` (share of trials in which both chains wrote the same caption), and
        `rows`: what, condition, and one number for each of compiled, pytorch, oracle, chance,
        mean_image (null where it has no meaning).
    """
    work = [(bundle, checkpoint, trials, c) for c in range(len(CONDITIONS))]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        scored = list(pool.map(_score_condition, work))
    return {
        "trials": trials,
        "same_text": float(np.mean([same for _, same in scored])),
        "rows": [row for rows, _ in scored for row in rows],
    }


def _score_condition(work: tuple[Path, Path, int, int]) -> tuple[list[dict[str, Any]], float]:
    """Rows of one condition, and the share of captions on which both chains agree."""
    bundle, checkpoint, trials, c = work
    torch.set_num_threads(1)
    condition, subjects, repeats = CONDITIONS[c]
    scenes = draw_scenes(trials, np.random.default_rng([91, c // 2]), held_out=True)
    meter = Progress(condition, trials)
    with Decoder.open(bundle, threads=1) as decoder:
        chain = TorchChain.open(checkpoint)
        results = _decode_all(decoder, chain, scenes, subjects, repeats, meter)
    texts = zip(results["compiled"].texts, results["pytorch"].texts, strict=True)
    rows = _rows(condition, scenes, results, FrozenEncoders(checkpoint))
    return rows, float(np.mean([a == b for a, b in texts]))


def _decode_all(
    decoder: Decoder,
    chain: TorchChain,
    scenes: Scenes,
    subjects: tuple[str, ...],
    repeats: int,
    meter: Progress,
) -> dict[str, Decoded]:
    results = {
        name: Decoded(
            [""] * len(scenes), *([np.empty(0, np.float32)] * len(scenes) for _ in range(2))
        )
        for name in DECODERS
    }
    seed = 100 + repeats
    pending: list[tuple[int, NDArray[np.float32]]] = []
    for i, subject, volume in volumes(scenes, subjects, repeats, seed):
        seen = _oracle(subject).decode(volume[None])
        _put(results["oracle"], i, caption(seen.named(0)), render(seen)[0])
        image = to_nifti(volume, Subject(subject))
        result = decoder.decode(image, tasks=("preview", "caption", "image"), seed=i)
        assert result.caption is not None
        assert result.image is not None
        assert result.preview is not None
        _put(results["compiled"], i, result.caption, result.image / 255, result.preview / 255)
        pending.append((i, volume_tokens(image, chain.checkpoint)[0]))
        if len(pending) == 25:
            _decode_in_torch(chain, pending, results["pytorch"])
            pending = []
        meter(meter.done + 1, 0.0)
    if pending:
        _decode_in_torch(chain, pending, results["pytorch"])
    guess = draw_scenes(len(scenes), np.random.default_rng(92))
    drawn = render(guess)
    mean = render(draw_scenes(2000, np.random.default_rng(93))).mean(0)
    for i in range(len(scenes)):
        _put(results["chance"], i, caption(guess.named(i)), drawn[i])
        _put(results["mean image"], i, "", mean)
    return results


def _put(decoded: Decoded, i: int, text: str, image: Floats, preview: Floats | None = None) -> None:
    decoded.texts[i], decoded.images[i] = text, image.astype(np.float32)
    decoded.previews[i] = (image if preview is None else preview).astype(np.float32)


def _decode_in_torch(
    chain: TorchChain, pending: list[tuple[int, NDArray[np.float32]]], out: Decoded
) -> None:
    clip, latent, prefix = chain.encode(np.stack([tokens for _, tokens in pending]))
    texts, prompts = (chain.text(prefix, task) for task in ("caption", "prompt"))
    previews = _pictures(chain.decode(latent))
    for row, (i, _) in enumerate(pending):
        one = slice(row, row + 1)
        _, image = chain.image(clip[one], latent[one], [prompts[row]], seed=i)
        _put(out, i, texts[row], _pictures(image)[0], previews[row])


def _pictures(images: Floats) -> Floats:
    return np.round(np.clip(images.transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1) * 255) / 255


def _rows(
    condition: str, scenes: Scenes, results: Mapping[str, Decoded], frozen: FrozenEncoders
) -> list[dict[str, Any]]:
    named = [scenes.named(i) for i in range(len(scenes))]
    true = render(scenes)
    true_clip = clip_vectors(frozen, true)
    table: dict[str, dict[str, float | None]] = {
        what: {}
        for what in (
            "caption names every colour and shape",
            "two-way identification",
            "PixCorr image",
            "PixCorr preview",
        )
    }
    for name, decoded in results.items():
        images, previews = np.stack(decoded.images), np.stack(decoded.previews)
        right = [names_every_object(t, s) for t, s in zip(decoded.texts, named, strict=True)]
        table["caption names every colour and shape"][name] = (
            None if name == "mean image" else float(np.mean(right))
        )
        table["two-way identification"][name] = (
            0.5
            if name == "mean image"
            else two_way_identification(clip_vectors(frozen, images), true_clip)
        )
        table["PixCorr image"][name] = pixel_correlation(images, true)
        table["PixCorr preview"][name] = pixel_correlation(previews, true)
    return [
        {
            "what": what,
            "condition": condition,
            **{k.replace(" ", "_"): v for k, v in values.items()},
        }
        for what, values in table.items()
    ]


@torch.no_grad()
def clip_vectors(frozen: FrozenEncoders, pictures: Pictures) -> NDArray[np.float32]:
    """CLIP image vectors (B, 128) of pictures (B, 64, 64, 3) in 0..1."""
    pixels = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2) * 2 - 1
    assert pixels.shape[-1] == IMAGE_SIZE
    return frozen.image(pixels).image_embeds.numpy()


def write_scores(checkpoint: Path, work: Path, trials: int = TRIALS) -> None:
    """Export to a temporary bundle, score it and the PyTorch models, and write quality.json, which
    later exports carry.
    """
    from ..bundle_writer import export_bundle

    del work
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(checkpoint, Path(folder) / "bundle")
        scores = score(bundle, checkpoint, trials, processes=os.cpu_count() or 1)
    (checkpoint / "quality.json").write_text(json.dumps({"scores": scores}, indent=2) + "\n")
    for row in scores["rows"]:
        print(json.dumps(row), file=sys.stderr)
