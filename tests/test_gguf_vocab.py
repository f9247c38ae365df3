"""Tokenizers as GGUF metadata: what llama.cpp makes of texts, against the libraries' own ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers

from scanside.export.gguf_vocab import read_vocabulary
from scanside.export.language_parity import SAMPLES, llama_logits
from scanside.export.random_checkpoint import corpus
from scanside.export.random_weights import random_tensors, save_sharded
from scanside.export.to_gguf import to_gguf
from scanside.export.tokenizer_training import train_llama_tokenizer
from scanside.runtime.errors import CheckpointError
from scanside.runtime.llama import LlamaModel
from scanside.runtime.llama_cache import LlamaCache

TEXTS = (*SAMPLES, "<human>:", " Describe the image concisely. <bot>:", "a", " ", "x  y", "3.14159")
LLAMA2: dict[str, Any] = {
    "model_type": "bpe",
    "vocab_size": 520,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "pad_id": -1,
}
"""How Llama 2's tokenizer was trained, but for its size."""


def train_sentencepiece(folder: Path, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*corpus(), *SAMPLES] * 3),
            model_writer=file,
            minloglevel=2,
            **LLAMA2 | changes,
        )
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "bos_token": "<s>"}
    text = json.dumps(config | {"eos_token": "</s>", "unk_token": "<unk>"})
    (folder / "tokenizer_config.json").write_text(text)


def write_llama(folder: Path, family: str) -> Path:
    """A random Llama with a tokenizer of its family, trained here."""
    if family == "llama3":
        tokenizer = train_llama_tokenizer([*corpus(), *SAMPLES], folder, 520)
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    else:
        train_sentencepiece(folder)
        ids = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.LlamaConfig(
        vocab_size=528,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2 if family == "llama3" else 4,
        intermediate_size=512,
        **ids,
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    save_sharded(random_tensors(model, 3, torch.float32), folder, "model")
    return folder


@dataclass(frozen=True)
class Pair:
    """llama.cpp and transformers on one checkpoint."""

    folder: Path
    model: LlamaModel
    tokenizer: Any


@pytest.fixture(scope="module", params=["llama2", "llama3"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder = write_llama(tmp_path_factory.mktemp("vocab") / request.param, request.param)
    with closing(LlamaModel(to_gguf(folder, folder / "m.gguf", dtype="f32"))) as model:
        yield Pair(folder, model, transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_libraries_own(pair: Pair, text: str) -> None:
    ids = pair.model.tokenize(text)
    assert ids == pair.tokenizer(text, add_special_tokens=False).input_ids
    if (pair.folder / "tokenizer.model").is_file():
        processor = sentencepiece.SentencePieceProcessor(str(pair.folder / "tokenizer.model"))
        assert ids == processor.encode(text)


def test_pieces_join_to_the_text(pair: Pair) -> None:
    for text in SAMPLES:
        joined = b"".join(map(pair.model.piece, pair.model.tokenize(text))).decode()
        # SentencePiece begins every text with a space
        assert joined == (f" {text}" if pair.folder.name == "llama2" else text)


@torch.inference_mode()
def test_logits_behind_a_prefix_and_a_multilingual_text_are_transformers(pair: Pair) -> None:
    rows = 0.1 * np.random.default_rng(0).standard_normal((7, 256), np.float32)
    before = [pair.model.begin]
    after = [token for text in SAMPLES for token in pair.model.tokenize(text)]
    cache = LlamaCache(pair.model, context=len(after) + 8, threads=1, kv="f32")
    got = llama_logits(cache, before, rows, after)
    oracle = transformers.LlamaForCausalLM.from_pretrained(pair.folder, dtype=torch.float32).eval()
    embed = oracle.get_input_embeddings()
    ids = [torch.tensor(before), torch.tensor(after)]
    inputs = torch.cat([embed(ids[0]), torch.from_numpy(rows), embed(ids[1])])
    want = oracle(inputs_embeds=inputs[None]).logits[0, -len(after) :].numpy()
    assert np.abs(want).max() > 0.5
    assert np.abs(got - want).max() <= 1e-3


def test_the_fast_tokenizer_of_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    """Llama 2 ships both tokenizer.model and tokenizer.json; Vicuna the first alone."""
    train_sentencepiece(tmp_path / "model")
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    fast.save_pretrained(tmp_path / "json")
    (tmp_path / "json/tokenizer.model").unlink(missing_ok=True)
    one, other = (read_vocabulary(tmp_path / name, 528) for name in ("model", "json"))
    assert (one.model, one.tokens, one.types) == (other.model, other.tokens, other.types)
    assert one.add_space_prefix
    assert other.add_space_prefix


def test_tokens_beside_the_model_are_kept(tmp_path: Path) -> None:
    train_sentencepiece(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": 520, "<pad>": 522}))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"522": {"content": "<pad>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = read_vocabulary(tmp_path, 524)
    assert vocabulary.tokens[520:] == ["<image>", "[PAD521]", "<pad>", "[PAD523]"]
    assert vocabulary.types[520:] == [4, 5, 3, 5]
    assert len(vocabulary.scores) == 524


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "unigram"}, r"cuts by probability \(unigram\), not by merges"),
        ({"normalization_rule_name": "nmt_nfkc"}, r"normalises text \(nmt_nfkc\)"),
        ({"remove_extra_whitespaces": True}, "drops repeated spaces"),
        ({"byte_fallback": False}, "does not fall back to bytes"),
    ],
)
def test_a_model_that_llama_cpp_would_run_differently_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    train_sentencepiece(tmp_path, **{"vocab_size": 380} | changes)
    with pytest.raises(CheckpointError, match=sentence):
        read_vocabulary(tmp_path, 528)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer.json and no tokenizer.model"):
        read_vocabulary(tmp_path, 100)
