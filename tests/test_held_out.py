"""Held-out trials with their truth, and what an answer to them is worth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scanside.export.held_out import LEAST_TRIALS, common_words, read_trials
from scanside.runtime.errors import InputError


def folder_of(path: Path, rows: list[dict[str, str]]) -> Path:
    path.mkdir(exist_ok=True)
    for row in rows:
        for key in ("volume", "scene"):
            if key in row:
                (path / row[key]).touch()
    (path / "trials.json").write_text(json.dumps({"trials": rows}))
    return path


def rows_of(count: int = LEAST_TRIALS) -> list[dict[str, str]]:
    return [
        {"volume": f"{i}.nii.gz", "scene": f"{i}.png", "caption": "a red ring"}
        for i in range(count)
    ]


def test_trials_are_read_with_what_is_known_of_them(tmp_path: Path):
    trials = read_trials(folder_of(tmp_path, rows_of()))
    assert len(trials) == LEAST_TRIALS
    assert trials[3].volume == tmp_path / "3.nii.gz"
    assert trials[3].scene == tmp_path / "3.png"
    texts = [{k: v for k, v in row.items() if k != "scene"} for row in rows_of()]
    assert read_trials(folder_of(tmp_path, texts))[0].scene is None


def test_trials_that_tell_nothing_are_refused_with_the_reason(tmp_path: Path):
    with pytest.raises(InputError, match="must be a folder with trials.json"):
        read_trials(tmp_path / "nowhere")
    with pytest.raises(InputError, match="must be a folder with trials.json.*KeyError: 'volume'"):
        read_trials(folder_of(tmp_path, [{"caption": "a ring"}]))
    with pytest.raises(InputError, match="at least 20 trials.* has 3"):
        read_trials(folder_of(tmp_path, rows_of(3)))
    some = rows_of()
    del some[4]["caption"]
    with pytest.raises(InputError, match="a caption for all trials or for none.* has 19 of 20"):
        read_trials(folder_of(tmp_path, some))
    with pytest.raises(InputError, match="a scene or a caption"):
        read_trials(folder_of(tmp_path, [{"volume": row["volume"]} for row in rows_of()]))
    folder_of(tmp_path, rows_of())
    (tmp_path / "7.png").unlink()
    with pytest.raises(InputError, match="names .*7.png, which is not there"):
        read_trials(tmp_path)


def test_common_words_are_rouge_l():
    from pycocoevalcap.rouge.rouge import Rouge

    assert common_words("a red ring", "a red ring") == 1.0
    assert common_words("", "a ring") == 0.0
    rng, words = np.random.default_rng(0), np.array(list("abcdef"))
    rouge = Rouge()
    rouge.beta = 1.0  # the library weighs recall more; here both count alike
    for _ in range(50):
        said, true = (" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(2))
        assert common_words(said, true) == pytest.approx(rouge.calc_score([said], [true]))
