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
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SAVE_EVERY_S = 120.0
"""Seconds between saved states."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""What AdamW and Muon remember of a parameter."""


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
    muon_rate: float | None = None
    """Rate of the layers' matrices under Muon, which needs about half the steps here; None leaves
    everything to AdamW.
    """


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
    optimisers = _optimisers(model, parameters, recipe)
    first = _resume(state, model, parameters, optimisers)
    model.train()
    meter = Progress(name, recipe.steps, first)
    saved = time.monotonic()
    for step in range(first, recipe.steps):
        with PlainAttention():
            value = loss(step)
        model.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters.values(), recipe.clip_norm)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * _rate(step, recipe)
            optimiser.step()
        meter(step + 1, float(value.detach()))
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(state, step + 1, model, parameters, optimisers)
            saved = time.monotonic()
    model.eval()


def half_precision() -> torch.autocast:
    """bfloat16 for matrix products where the processor has it, which makes a step of the larger
    models nearly twice as fast; plain float32 elsewhere.
    """
    return torch.autocast(
        "cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PlainAttention(TorchFunctionMode):
    """Attention as two products and a softmax while this is entered: the gradient of torch's fused
    operator takes eight times as long on a CPU, which was half of a step.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Every call of a torch function while the mode is entered."""
        fused = func is F.scaled_dot_product_attention
        return (_attention if fused else func)(*args, **(kwargs or {}))


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    assert dropout_p == 0, "no model of the reference checkpoint drops attention"
    score = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    if is_causal:
        attn_mask = torch.ones(score.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        score = score.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        score = score + attn_mask
    return score.float().softmax(-1).to(v.dtype) @ v


def _optimisers(
    model: nn.Module, parameters: dict[str, nn.Parameter], recipe: Recipe
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of the model's layers where the recipe gives it a rate."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    matrices = {p for m in lists for p in m.parameters() if p.ndim == 2}
    in_layers = [p for p in parameters.values() if p in matrices and recipe.muon_rate is not None]
    rest = [p for p in parameters.values() if all(p is not q for q in in_layers)]
    decay = recipe.weight_decay
    out: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=decay)
    ]
    if recipe.muon_rate is not None:
        out.append(
            torch.optim.Muon(
                in_layers, recipe.muon_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    for optimiser in out:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return out


def _rate(step: int, recipe: Recipe) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup)
    return warm * (0.5 + 0.5 * math.cos(math.pi * step / recipe.steps))


def _save(
    state: Path,
    step: int,
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    optimisers: list[torch.optim.Optimizer],
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for key, parameter in parameters.items():
        for optimiser in optimisers:
            for moment, value in optimiser.state.get(parameter, {}).items():
                tensors[f"{moment}.{key}"] = value
    state.parent.mkdir(parents=True, exist_ok=True)
    partial = state.with_suffix(".partial")
    # Clones in the plain layout, since safetensors refuses tensors that share memory (tied
    # embeddings) and those with their channels innermost.
    plain = torch.contiguous_format
    save_file(
        {k: v.detach().clone(memory_format=plain) for k, v in tensors.items()},
        partial,
        {"step": json.dumps(step)},
    )
    partial.replace(state)


def _resume(
    state: Path,
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    optimisers: list[torch.optim.Optimizer],
) -> int:
    if not state.exists():
        return 0
    from safetensors import safe_open

    with safe_open(state, "pt") as file:
        step = int(json.loads(file.metadata()["step"]))
    tensors = load_file(state)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for optimiser in optimisers:
        mine = {p for group in optimiser.param_groups for p in group["params"]}
        for key, parameter in parameters.items():
            if parameter in mine:
                optimiser.state[parameter] = {
                    moment: tensors[f"{moment}.{key}"]
                    for moment in MOMENTS
                    if f"{moment}.{key}" in tensors
                }
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
