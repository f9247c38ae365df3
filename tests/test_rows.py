"""Texts behind a prefix: forks in one row are texts apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanside.export.reference.dialogue import IGNORED, Dialogue, make_tokenizer
from scanside.export.reference.language import build
from scanside.export.reference.rows import TEXT_LENGTH, Rows, answer_loss
from scanside.export.reference.scenes import draw_scenes
from scanside.export.reference.training import half_precision

PREFIX = 3


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory: pytest.TempPathFactory) -> Dialogue:
    return Dialogue(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def rows(dialogue: Dialogue) -> Rows:
    scenes = draw_scenes(6, np.random.default_rng(0))
    return Rows(dialogue, [scenes.named(i) for i in range(6)], np.random.default_rng(1))


def test_a_token_sees_the_prefix_and_what_came_before_it_in_its_fork(rows: Rows):
    mask = rows.mask(PREFIX)[:, 0]  # (B, T, T)
    assert rows.fork.max() >= 3
    for row, fork in zip(mask, rows.fork, strict=True):
        for at in (0, 20, 77, TEXT_LENGTH - 1):
            seen = row[PREFIX + at]
            assert seen[:PREFIX].all()
            wanted = (fork == fork[at]) & (torch.arange(TEXT_LENGTH) <= at)
            assert torch.equal(seen[PREFIX:], wanted)


def test_positions_of_every_fork_begin_behind_the_prefix(rows: Rows):
    for fork, position in zip(rows.fork, rows.position, strict=True):
        for number in range(int(fork.max()) + 1):
            count = int((fork == number).sum())
            assert position[fork == number].tolist() == list(range(count))


def test_loss_is_taken_on_answers_and_nothing_else(rows: Rows):
    taken = rows.labels != IGNORED
    assert torch.equal(rows.labels[taken], rows.ids[taken])
    assert not taken[rows.fork < 0].any()
    assert 0.2 < taken.float().mean() < 0.9


def test_a_fork_among_others_has_the_loss_that_it_has_alone(rows: Rows, dialogue: Dialogue):
    torch.manual_seed(0)
    llama = build(1024, 1, 2).eval()
    prefix = torch.randn(1, PREFIX, 256, generator=torch.Generator().manual_seed(2))
    row = next(i for i in range(6) if rows.fork[i].max() >= 3)
    losses, weights = [], []
    for number in (*range(int(rows.fork[row].max()) + 1), None):
        one = _only(rows, row, number)
        with torch.no_grad():
            losses.append(float(answer_loss(llama, dialogue.before, prefix, one)))
        weights.append(float(one.weight.sum()))
    *alone, together = losses
    assert together == pytest.approx(np.average(alone, weights=weights[:-1]), rel=1e-4)


def _only(rows: Rows, row: int, number: int | None) -> Rows:
    """One row of a batch, moved to its beginning if only one fork of it is kept."""
    out = Rows.__new__(Rows)
    kept = rows.fork[row] >= 0 if number is None else rows.fork[row] == number
    for name, empty in (
        ("ids", 0),
        ("labels", IGNORED),
        ("fork", -1),
        ("position", 0),
        ("weight", 0.0),
    ):
        values = torch.full((1, TEXT_LENGTH), empty)
        values[0, : int(kept.sum())] = getattr(rows, name)[row][kept]
        setattr(out, name, values)
    return out


def test_a_longer_answer_weighs_more_by_the_root_of_its_length(rows: Rows):
    for row in range(6):
        for number in range(int(rows.fork[row].max()) + 1):
            at = rows.fork[row] == number
            answered = rows.labels[row][at] != IGNORED
            weight = rows.weight[row][at]
            assert (weight[~answered] == 0).all()
            # n neighbouring answered tokens weigh n / sqrt(n) together.
            runs = "".join("x" if a else " " for a in answered.tolist()).split()
            assert float(weight.sum()) == pytest.approx(sum(len(r) ** 0.5 for r in runs), rel=1e-5)


def test_half_precision_is_left_to_processors_that_have_it():
    with half_precision():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert product.dtype == (torch.bfloat16 if native else torch.float32)
