"""GGUF files against transformers and tokenizers: tensors, types, token ids, logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from scanside.export.language_parity import SAMPLES, llama_logits
from scanside.export.quantize import QUANTIZATIONS, quantised_gguf
from scanside.export.random_checkpoint import corpus
from scanside.export.random_weights import random_tensors, save_sharded
from scanside.export.streamed_llm import float32_bytes, open_streamed
from scanside.export.to_gguf import rope_factors, source_dtype, to_gguf
from scanside.export.tokenizer_training import train_llama_tokenizer
from scanside.runtime.errors import CheckpointError, InputError
from scanside.runtime.llama import LlamaModel
from scanside.runtime.llama_cache import LlamaCache

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "llama3-rope": {"rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0},
    "linear-rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "wide-heads": {"head_dim": 128, "attention_bias": True},
}


@cache
def small_tokenizer() -> transformers.PreTrainedTokenizerFast:
    with TemporaryDirectory() as folder:
        return train_llama_tokenizer(corpus(), Path(folder), 500)


def write_llama(
    folder: Path, *, dtype: torch.dtype = torch.float32, shard_bytes: int = 2**40, **changes: Any
) -> Path:
    """A random Llama with a trained Llama-3-style tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.LlamaConfig(**SMALL | changes)
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    config.save_pretrained(folder)
    save_sharded(random_tensors(model, 3, dtype), folder, "model", shard_bytes)
    return folder


def logits_of_both(folder: Path, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """llama.cpp's and transformers' logits over the same tokens, prefix rows and tokens."""
    rng = np.random.default_rng(0)
    prefix = rng.standard_normal((7, 256), np.float32) * 0.1
    before, after = [0, 40, 41], rng.integers(0, 500, 60).tolist()
    with closing(LlamaModel(path)) as model:
        cache = LlamaCache(model, context=128, threads=1, kv="f32")
        got = llama_logits(cache, before, prefix, after)
    oracle = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        embed = oracle.get_input_embeddings()
        rows = [embed(torch.tensor(before)), torch.from_numpy(prefix), embed(torch.tensor(after))]
        want = oracle(inputs_embeds=torch.cat(rows)[None]).logits[0, -len(after) :].numpy()
    return got, want


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", **VARIANTS[variant])
    got, want = logits_of_both(folder, to_gguf(folder, tmp_path / "m.gguf", dtype="f32"))
    # both sum 256 products in float32, in another order
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    whole = write_llama(tmp_path / "whole")
    parts = write_llama(tmp_path / "parts", shard_bytes=700_000)
    assert len(list(parts.glob("model-*.safetensors"))) > 3
    a, b = (to_gguf(f, tmp_path / f"{f.name}.gguf", dtype="f32") for f in (whole, parts))
    tensors = [{t.name: t.data for t in gguf.GGUFReader(p).tensors} for p in (a, b)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.array_equal(tensors[0][k], tensors[1][k]) for k in tensors[0])


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")]
)
def test_the_lossless_type_is_recognised_and_keeps_every_bit(
    dtype: torch.dtype, name: str, tmp_path: Path
) -> None:
    folder = write_llama(tmp_path / "hf", dtype=dtype)
    assert source_dtype(folder) == name
    path = to_gguf(folder, tmp_path / "m.gguf", dtype=name)
    got = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    want = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    values = gguf.dequantize(got.data, got.tensor_type)
    np.testing.assert_array_equal(values, want.model.layers[1].mlp.up_proj.weight.detach().numpy())


def test_rope_factors_are_transformers_own() -> None:
    config = SMALL | {"rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0}
    scaled = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](
        transformers.LlamaConfig(**config), "cpu"
    )[0]
    plain = 1.0 / 500000.0 ** (np.arange(0, 64, 2) / 64)
    factors = rope_factors(config)
    assert factors is not None
    np.testing.assert_allclose(factors, plain / scaled.numpy(), rtol=1e-6)


MATRICES = {
    "f32": {"F32"},
    "f16": {"F16"},
    "bf16": {"BF16"},
    "q8_0": {"Q8_0"},
    "q6_k": {"Q6_K"},
    "q5_k_m": {"Q5_K", "Q6_K"},
    "q4_k_m": {"Q4_K", "Q6_K"},
}


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_every_tensor_has_the_type_that_is_claimed(name: str, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", dtype=torch.bfloat16)
    path = quantised_gguf(folder, tmp_path / "m.gguf", name, {"prefix_length": 7})
    assert [p.name for p in tmp_path.glob("*.gguf")] == ["m.gguf"]
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert len(types) == 2 * 9 + 3
    assert {t for n, t in types.items() if "norm" in n} == {"F32"}
    assert {t for n, t in types.items() if "norm" not in n} == MATRICES[name]
    # the mixtures keep more bits only where llama.cpp means to
    coarse = min(MATRICES[name])
    fine = {n.split(".")[-2] for n, t in types.items() if "norm" not in n and t != coarse}
    assert fine <= {"output", "attn_v", "ffn_down"}


def test_a_width_that_k_quants_do_not_fit_is_refused(tmp_path: Path) -> None:
    """llama.cpp would take another type for it, in silence."""
    folder = write_llama(tmp_path / "hf", intermediate_size=320)
    with pytest.raises(CheckpointError, match="rows of 320 became Q.*, which is not q4_k_m"):
        quantised_gguf(folder, tmp_path / "m.gguf", "q4_k_m", {})
    assert quantised_gguf(folder, tmp_path / "m.gguf", "q8_0", {}).is_file()


def test_a_checkpoint_of_mixed_types_is_kept_in_float32(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].half()
    save_file(tensors, folder / "model.safetensors")
    assert source_dtype(folder) == "f32"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="matrices in I8; supported are F32, F16, BF16"):
        source_dtype(folder)


@pytest.mark.parametrize("damage", ["gone", "cut", "lacking"])
def test_damaged_shards_are_refused(damage: str, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", shard_bytes=700_000)
    shard = max(folder.glob("model-*.safetensors"))
    if damage == "gone":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1000])
    else:
        save_file({"other": torch.zeros(1)}, shard)
    sentence = {"gone": "are not there", "cut": "cannot be read", "lacking": "lacks '.*promises"}
    with pytest.raises(CheckpointError, match=sentence[damage]):
        to_gguf(folder, tmp_path / "m.gguf")


def test_quantised_logits_stay_near(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    worst: list[float] = []
    for name in ("q8_0", "q6_k", "q5_k_m", "q4_k_m"):
        got, want = logits_of_both(folder, quantised_gguf(folder, tmp_path / name, name, {}))
        worst.append(float(np.abs(got - want).max() / np.abs(want).max()))
    assert worst == sorted(worst)
    assert worst[0] < 0.05
    assert worst[-1] < 0.6


def test_metadata_is_read_back(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    path = quantised_gguf(
        folder, tmp_path / "m.gguf", "q8_0", {"projector_sha256": "ab" * 32, "prefix_length": 96}
    )
    with closing(LlamaModel(path)) as model:
        assert model.metadata("scanside.projector_sha256") == "ab" * 32
        assert model.metadata("scanside.prefix_length") == "96"
        assert model.metadata("tokenizer.chat_template") == template
        assert model.begin == 0
        assert model.ends(1)


def sentencepiece_like(folder: Path) -> Tokenizer:
    """A tokenizer.json as Llama 2's is: SentencePiece's BPE with byte fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(vocab_size=500, special_tokens=specials + raw, show_progress=False),
    )
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [a for a in data["added_tokens"] if a["content"] in specials]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def sentencepiece(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Tokenizer, LlamaModel]]:
    folder = write_llama(tmp_path_factory.mktemp("spm") / "hf")
    oracle = sentencepiece_like(folder)
    path = to_gguf(folder, folder / "m.gguf", dtype="f16")
    with closing(LlamaModel(path)) as model:
        yield oracle, model


TEXTS = (*SAMPLES, "<human>:", " Describe the image concisely. <bot>:", "a", " ", "x  y", "▁")


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_ids_equal(text: str, sentencepiece: tuple[Tokenizer, LlamaModel]) -> None:
    oracle, model = sentencepiece
    assert model.tokenize(text) == oracle.encode(text, add_special_tokens=False).ids


def test_byte_level_ids_equal(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    with closing(LlamaModel(to_gguf(folder, tmp_path / "m.gguf"))) as model:
        for text in (*TEXTS, "a<|end_of_text|>b", *corpus()[:40]):
            assert model.tokenize(text) == oracle(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "qwen2"}, "model_type 'qwen2'; supported is 'llama'"),
        ("config.json", {"rope_scaling": {"rope_type": "yarn"}}, "rope scaling 'yarn'"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ("config.json", {"hidden_act": "gelu"}, "activation 'gelu'; a Llama has 'silu'"),
        ("config.json", {"vocab_size": 300}, r"tokens, the embedding matrix 300 rows"),
        ("tokenizer.json", {"pre_tokenizer": None}, "no Split pre-tokenizer"),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}, "changes a text by 'NFC' before"),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, "is a Unigram tokenizer"),
    ],
)
def test_what_llama_cpp_would_run_differently_is_refused(
    file: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_llama(tmp_path / "hf")
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | changes))
    with pytest.raises(CheckpointError, match=message):
        to_gguf(folder, tmp_path / "m.gguf")


def test_unknown_quantization_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="f32, f16, bf16, q8_0.*got 'q3'"):
        quantised_gguf(tmp_path, tmp_path / "m.gguf", "q3", {})


@pytest.mark.parametrize("tied", [True, False])
def test_a_streamed_model_computes_the_same(tied: bool, tmp_path: Path) -> None:
    """What compares an 8B model in little memory, against the model loaded whole."""
    folder = write_llama(tmp_path / "hf", tie_word_embeddings=tied, shard_bytes=700_000)
    whole = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    streamed = open_streamed(folder)
    assert float32_bytes(folder) == 4 * sum(p.numel() for p in whole.parameters())
    with torch.inference_mode():
        rows = whole.get_input_embeddings()(torch.arange(20)[None])
        for _ in range(2):  # weights come back after they were dropped
            got = streamed(inputs_embeds=rows, logits_to_keep=5).logits
            torch.testing.assert_close(got, whole(inputs_embeds=rows).logits[:, -5:])
    assert all(p.is_meta for p in streamed.model.layers.parameters())
