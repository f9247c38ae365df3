"""The training loop: a stopped run goes on as if it had not been stopped."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scanside.export.reference import training
from scanside.export.reference.training import Recipe, train

RECIPE = Recipe(steps=12, batch=4, learning_rate=1e-2, warmup=2)


MUON = Recipe(steps=12, batch=4, learning_rate=1e-2, warmup=2, muon_rate=1e-2)


class _Layered(nn.Module):
    """One layer in a list, as transformers keep theirs, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(3, 3)])
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layers[0](x)))


def _loss(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return (model(x) - x[:, :2]).square().mean()


@pytest.mark.parametrize("recipe", [RECIPE, MUON], ids=["adamw", "muon"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    whole, halves = _Layered(), _Layered()
    train("whole", whole, lambda step: _loss(whole, step), recipe, tmp_path / "whole")

    def interrupted(step: int) -> torch.Tensor:
        if step == 7:
            raise KeyboardInterrupt
        return _loss(halves, step)

    with pytest.raises(KeyboardInterrupt):
        train("halves", halves, interrupted, recipe, tmp_path / "halves")
    halves = _Layered()
    train("halves", halves, lambda step: _loss(halves, step), recipe, tmp_path / "halves")
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float"])
def test_plain_attention_is_the_fused_operator_with_its_gradient(kind):
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0)).unbind()
    seen = torch.ones(9, 9, dtype=torch.bool).tril(2)
    added = torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    options = {
        "none": {},
        "causal": {"is_causal": True, "scale": 0.3},
        "bool": {"attn_mask": seen},
        "float": {"attn_mask": added},
    }[kind]

    def attend() -> tuple[torch.Tensor, ...]:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = F.scaled_dot_product_attention(*inputs, **options)
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    fused = attend()
    with training.PlainAttention():
        plain = attend()
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other)
