"""One training loop for every stage: seeded batches, cosine schedule, progress, and a state that a
stopped run goes on from.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SAVE_EVERY_S = 120.0
"""Seconds between saved states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How long and how fast a stage trains."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    """Steps of linear warm-up; a cosine to zero follows."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0


def train(
    name: str,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    recipe: Recipe,
    state: Path,
) -> None:
    """Train a model in place, going on from `state` when it exists.

    Parameters
    ----------
    name : str
        For the progress line.
    model : Module
        All of its parameters that require a gradient are trained.
    loss : callable
        Takes the step number, which seeds its batch, and returns a scalar.
    recipe : Recipe
        Steps and rates.
    state : Path
        A safetensors file, rewritten every two minutes and removed by the caller when the stage is
        saved.
    """
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        parameters.values(),
        recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    first = _resume(state, model, parameters, optimiser)
    model.train()
    meter = Progress(name, recipe.steps, first)
    saved = time.monotonic()
    for step in range(first, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _rate(step, recipe)
        value = loss(step)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters.values(), recipe.clip_norm)
        optimiser.step()
        meter(step + 1, float(value.detach()))
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(state, step + 1, model, parameters, optimiser)
            saved = time.monotonic()
    model.eval()


def _rate(step: int, recipe: Recipe) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup)
    return warm * (0.5 + 0.5 * math.cos(math.pi * step / recipe.steps))


def _save(
    state: Path,
    step: int,
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    for key, parameter in parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{key}"] = optimiser.state[parameter][moment]
    state.parent.mkdir(parents=True, exist_ok=True)
    partial = state.with_suffix(".partial")
    # Clones, since safetensors refuses tensors that share memory (tied embeddings).
    save_file(
        {k: v.detach().clone() for k, v in tensors.items()}, partial, {"step": json.dumps(step)}
    )
    partial.replace(state)


def _resume(
    state: Path,
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> int:
    if not state.exists():
        return 0
    from safetensors import safe_open

    with safe_open(state, "pt") as file:
        step = int(json.loads(file.metadata()["step"]))
    tensors = load_file(state)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for key, parameter in parameters.items():
        moments = {m: tensors[f"{m}.{key}"] for m in ("exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step


class Progress:
    """A line that is rewritten on a terminal, and one line for every twentieth of the way
    elsewhere.
    """

    def __init__(self, name: str, steps: int, first: int = 0) -> None:
        self._name, self._steps, self._first = name, steps, first
        self.done = first
        self._start = time.monotonic()
        self._average: float | None = None

    def __call__(self, step: int, loss: float) -> None:
        """Report that `step` steps are done and what the last loss was."""
        self.done = step
        self._average = loss if self._average is None else 0.98 * self._average + 0.02 * loss
        terminal = sys.stderr.isatty()
        if step != self._steps and step % (10 if terminal else max(1, self._steps // 40)):
            return
        elapsed = time.monotonic() - self._start
        left = elapsed / max(1, step - self._first) * (self._steps - step)
        where = f"{self._name}: step {step}/{self._steps}"
        text = f"{where}, loss {self._average:.4f}, {left / 60:.1f} min left"
        print(
            text,
            end="\r" if terminal and step != self._steps else "\n",
            file=sys.stderr,
            flush=True,
        )
