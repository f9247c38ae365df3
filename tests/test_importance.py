"""The importance matrix: what it holds, and what it does to the rounding."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from scanside.export.checkpoint import open_checkpoint
from scanside.export.importance import Importance, importance
from scanside.export.quantize import quantised_gguf, quantize
from scanside.export.streamed_llm import open_streamed
from scanside.export.to_gguf import to_gguf
from scanside.export.torch_language import TorchLanguage
from scanside.runtime.errors import ScansideError
from scanside.runtime.llama import LlamaModel

ANSWERS = ({"caption": [40, 41], "describe": [42, 43, 44]}, {})


@pytest.fixture(scope="module")
def language(tiny_checkpoint: Path) -> TorchLanguage:
    return TorchLanguage(tiny_checkpoint, open_checkpoint(tiny_checkpoint).dialogue)


@pytest.fixture(scope="module")
def prefix() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 12, 256), np.float32)


@pytest.fixture(scope="module")
def seen(language: TorchLanguage, prefix: np.ndarray) -> Importance:
    return importance(language, prefix, ANSWERS)


@pytest.fixture(scope="module")
def lossless(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_gguf(tiny_checkpoint / "llm", tmp_path_factory.mktemp("gguf") / "m.gguf")


def matrices(path: Path) -> dict[str, np.ndarray]:
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in tensors if len(t.shape) == 2}


@torch.inference_mode()
def conversation_rows(language: TorchLanguage, prefix: np.ndarray) -> list[torch.Tensor]:
    """Input embeddings of both conversations, written out by hand."""
    embed = language.llm.get_input_embeddings()
    template, asked = language.dialogue["template"], language.dialogue["instructions"]
    rows = []
    for row, answers in zip(prefix, ANSWERS, strict=True):
        before, ids = language.segments(asked["caption"])
        ids = ids + answers.get("caption", [])
        for task in ("describe", "prompt"):
            ids += language.token_ids(template["next_turn"].format(instruction=asked[task]))
            ids += answers.get(task, [])
        parts = [embed(torch.tensor(before)), torch.from_numpy(row), embed(torch.tensor(ids))]
        rows.append(torch.cat(parts))
    return rows


def test_every_matrix_is_seen_on_every_position_of_the_conversations(
    language: TorchLanguage, prefix: np.ndarray, seen: Importance, lossless: Path
) -> None:
    rows = torch.cat(conversation_rows(language, prefix))
    assert seen.tokens == len(rows)
    assert {n: v.shape for n, v in seen.columns.items()} == {
        n: (values.shape[1],) for n, values in matrices(lossless).items()
    }
    # the first layer's queries are multiplied with the normalised embeddings
    normal = rows.double() / rows.double().square().mean(-1, keepdim=True).add(1e-6).sqrt()
    want = normal.square().mean(0).numpy()
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        np.testing.assert_allclose(seen.columns[name], want, rtol=1e-4)


def test_it_is_the_brain_that_is_seen(
    language: TorchLanguage, prefix: np.ndarray, seen: Importance
) -> None:
    other = importance(language, 3 * prefix[:, ::-1].copy(), ANSWERS)
    name = "blk.1.ffn_down.weight"
    assert not np.allclose(other.columns[name], seen.columns[name], rtol=0.01)


def test_a_streamed_model_is_seen_alike(
    language: TorchLanguage, prefix: np.ndarray, seen: Importance
) -> None:
    streamed = TorchLanguage(language.root, language.dialogue)
    vars(streamed)["llm"] = open_streamed(language.root / "llm")
    found = importance(streamed, prefix, ANSWERS)
    assert found.tokens == seen.tokens
    assert found.columns.keys() == seen.columns.keys()
    for name, values in seen.columns.items():
        np.testing.assert_allclose(found.columns[name], values, rtol=1e-5)


@pytest.mark.parametrize("name", ["q6_k", "q5_k_m", "q4_k_m"])
def test_columns_that_matter_are_rounded_better(name: str, lossless: Path, tmp_path: Path) -> None:
    exact = matrices(lossless)
    rng = np.random.default_rng(0)
    columns = {
        n: np.exp(2 * rng.standard_normal(w.shape[1])).astype(np.float32) for n, w in exact.items()
    }
    quantize(lossless, tmp_path / "alike.gguf", name)
    quantize(lossless, tmp_path / "steered.gguf", name, columns=columns)
    alike, steered = matrices(tmp_path / "alike.gguf"), matrices(tmp_path / "steered.gguf")
    for n, weights in exact.items():
        error = [(np.square(got[n] - weights) * columns[n]).sum() for got in (alike, steered)]
        assert error[1] < 0.8 * error[0], n


def test_the_file_says_how_much_was_seen_and_others_are_not_watched(
    tiny_checkpoint: Path, seen: Importance, tmp_path: Path
) -> None:
    calls: list[str] = []

    def watched() -> Importance:
        calls.append("")
        return seen

    for name, said in (("q4_k_m", str(seen.tokens)), ("q8_0", None), ("f16", None)):
        path = tmp_path / f"{name}.gguf"
        quantised_gguf(tiny_checkpoint / "llm", path, name, {}, watched=watched)
        with closing(LlamaModel(path)) as model:
            assert model.metadata("scanside.importance_tokens") == said
    assert len(calls) == 1


def test_an_importance_that_is_not_finite_is_refused(lossless: Path, tmp_path: Path) -> None:
    columns = {"blk.0.attn_q.weight": np.full(256, np.nan, np.float32)}
    with pytest.raises(ScansideError, match="the importance of blk.0.attn_q.weight is not finite"):
        quantize(lossless, tmp_path / "m.gguf", "q4_k_m", columns=columns)


def test_columns_of_another_width_are_refused(lossless: Path, tmp_path: Path) -> None:
    columns: dict[str, Any] = {"blk.0.attn_q.weight": np.ones(255, np.float32)}
    with pytest.raises(ScansideError, match="could not quantise m.gguf to q4_k_m: .*255"):
        quantize(lossless, tmp_path / "q.gguf", "q4_k_m", columns=columns)
