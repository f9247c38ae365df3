"""The training loop: a stopped run goes on as if it had not been stopped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scanside.export.reference import training
from scanside.export.reference.training import Recipe, train

RECIPE = Recipe(steps=12, batch=4, learning_rate=1e-2, warmup=2)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def _loss(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return (model(x) - x[:, :2]).square().mean()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    whole, halves = _model(), _model()
    train("whole", whole, lambda step: _loss(whole, step), RECIPE, tmp_path / "whole")

    def interrupted(step: int) -> torch.Tensor:
        if step == 7:
            raise KeyboardInterrupt
        return _loss(halves, step)

    with pytest.raises(KeyboardInterrupt):
        train("halves", halves, interrupted, RECIPE, tmp_path / "halves")
    halves = _model()
    train("halves", halves, lambda step: _loss(halves, step), RECIPE, tmp_path / "halves")
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a, b)
