"""The training loop: a stopped run goes on as if it had not been stopped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
