"""The scores of dialogues: the metrics, the blind guesser, and a small run of the whole thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scanside.export.reference import dialogue_scores
from scanside.export.reference.dialogue_scores import (
    blind_answers,
    carry,
    metrics,
    plain_words,
    score_dialogues,
    share_right,
)
from scanside.runtime import InputError

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "export/reference/checkpoint"
KINDS = {"caption", "describe", "prompt", "attribute", "relation", "count", "dialogue", "locate"}


def test_metrics_of_true_texts_are_full_marks() -> None:
    texts = ["a small red circle at the top left", "two large blue rings on a grey background"]
    shown = [text.capitalize() + "." for text in texts]
    assert metrics(shown, texts) == {"bleu_4": 100, "rouge_l": 100, "cider": 1000}


def test_metrics_are_those_of_the_papers() -> None:
    """Four of five words: n-gram precisions 4/5, 3/4, 2/3, 1/2; LCS of 4."""
    found = metrics(["one two three four six"] * 2, ["one two three four five", "seven eight"])
    first = metrics(["one two three four six"], ["one two three four five"])
    assert first["bleu_4"] == pytest.approx(100 * 0.2**0.25, abs=0.01)
    assert first["rouge_l"] == pytest.approx(80)
    assert found["rouge_l"] == pytest.approx(40)
    # words of one text out of two weigh log 2; by length of n-grams the cosines are as below
    parts = [4 / 5, 3 / 4, 2 / 3, 1 / 2]
    assert found["cider"] == pytest.approx(1000 * sum(parts) / 4 / 2, abs=0.01)


def test_punctuation_and_capitals_do_not_count() -> None:
    assert plain_words("A, b  C.\n") == "a b c"


def test_a_dialogue_is_right_when_all_its_turns_are() -> None:
    true = [["yes", "at the top"], ["no"]]
    assert share_right([["yes", "at the left"], ["no"]], true) == 0.5
    assert share_right([["yes"], []], true) == 0
    assert share_right(true, true) == 1


def test_the_blind_guesser_gives_the_most_frequent_answer() -> None:
    known = blind_answers()
    assert known["Is there a circle?",] == ["no"]
    assert known["Is there a circle?", "Where is it?"][0] == "yes"
    assert known['Locating the concept of "red circle"',] == ["Locating the concept: red circle"]
    assert known["What colour is the background?",][0] in ("grey", "brown", "slate", "olive")


def test_every_kind_is_scored_for_every_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue_scores, "CONDITIONS", (("one subject", ("S1",), 1),))
    scores = score_dialogues(ROOT / "runtime/reference/bundle", CHECKPOINT, 6, ("f16", "q4_k_m"))
    rows: dict[tuple[str, str], dict[str, Any]] = {
        (row["quantization"], row["kind"]): row for row in scores["rows"]
    }
    assert {kind for _, kind in rows} >= KINDS
    for (_, kind), row in rows.items():
        assert 0 <= row["right"] <= 1
        assert ("cider" in row) == (kind in dialogue_scores.TEXTS)
    assert rows["f16", "caption"]["asked"] == 6
    # the models have learnt at least how texts sound, and to repeat a concept
    assert rows["f16", "describe"]["bleu_4"] > rows["f16", "describe"]["chance_bleu_4"]
    assert rows["f16", "locate"]["right"] == rows["f16", "locate"]["chance"] == 1
    full, small = scores["models"]
    assert small["bytes"] < full["bytes"] / 2
    assert min(full["tokens_per_s"], small["tokens_per_s"]) > 0
    json.dumps(scores)


def test_scores_are_carried_beside_others(tmp_path: Path) -> None:
    carry(tmp_path, {"trials": 1})
    (tmp_path / "quality.json").write_text('{"scores": 5, "dialogue": 6}')
    carry(tmp_path, {"trials": 2})
    kept = json.loads((tmp_path / "quality.json").read_text())
    assert kept == {"scores": 5, "dialogue": {"trials": 2}}


def test_a_bundle_of_another_training_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="was not exported from .* as it is; export it again"):
        score_dialogues(tiny_bundle, CHECKPOINT, 1)
