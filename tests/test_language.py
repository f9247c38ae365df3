"""Text from a brain prefix, against transformers with the same weights."""

import ctypes
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as gguf_format
import numpy as np
import pytest
import torch

from scanside.runtime.answer import Answer
from scanside.runtime.bundle import Bundle
from scanside.runtime.errors import BundleError, InputError, MissingExtraError, ScansideError
from scanside.runtime.generation import Generation
from scanside.runtime.language import LanguageModel
from scanside.runtime.llama import LlamaModel, llama_cpp, may_repack
from scanside.runtime.llama_cache import LlamaCache
from scanside.runtime.manifest import LanguageSpec
from scanside.runtime.token_rows import TokenRows

QUESTIONS = ("Describe the image concisely.", "What colour is the circle, and where is it?", "Why?")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def spec(bundle: Bundle) -> LanguageSpec:
    assert bundle.manifest.language is not None
    return bundle.manifest.language


@pytest.fixture(scope="module")
def gguf(bundle: Bundle, spec: LanguageSpec) -> Path:
    return bundle.path(spec.file)


@pytest.fixture(scope="module")
def language(gguf: Path, spec: LanguageSpec) -> Iterator[LanguageModel]:
    model = LanguageModel(gguf, spec, threads=1, kv="f32")
    yield model
    model.close()


@pytest.fixture(scope="module")
def reference() -> Iterator[LanguageModel]:
    """The shipped model, attending to the shipped golden volume."""
    bundle = Bundle.open("reference")
    spec, golden = bundle.manifest.language, bundle.manifest.golden
    assert spec is not None
    assert golden is not None
    model = LanguageModel(bundle.path(spec.file), spec, threads=1)
    model.attend(bundle.arrays(golden.outputs)["prefix"][0])
    yield model
    model.close()


def random_prefix(spec: LanguageSpec, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(spec.prefix_length, spec.width)).astype(np.float32)


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint: Path):
    """transformers on the checkpoint that the bundle was exported from."""
    from scanside.export.torch_chain import TorchChain

    return TorchChain.open(tiny_checkpoint).language


@torch.inference_mode()
def oracle_log_probs(oracle, prefix: np.ndarray, question: str, tokens: list[int]) -> np.ndarray:
    """Log-probability of each token of an answer, given all before it."""
    prompt = oracle.prompt_embeddings(prefix[None], question)
    answer = oracle.llm.get_input_embeddings()(torch.tensor([tokens[:-1]], dtype=torch.long))
    logits = oracle.llm(inputs_embeds=torch.cat([prompt, answer], dim=1)).logits[0]
    chosen = logits[-len(tokens) :].double().log_softmax(-1)
    return chosen[torch.arange(len(tokens)), tokens].numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_tokens_and_their_probabilities_equal_transformers(
    language: LanguageModel, spec: LanguageSpec, oracle, seed: int, question: str
):
    prefix = random_prefix(spec, seed)
    language.attend(prefix)
    answer = language.answer(question, limit=12)
    answer.read()
    expected = oracle.generate(prefix[None], "ask", question=question, max_tokens=12)[0]
    assert answer.tokens == expected
    # float32 on both sides, sums in another order
    assert answer.log_probs == pytest.approx(
        oracle_log_probs(oracle, prefix, question, answer.tokens), abs=1e-4
    )
    assert answer.mean_log_prob == pytest.approx(np.mean(answer.log_probs))


def test_the_golden_texts_are_reproduced(language: LanguageModel, bundle: Bundle):
    golden = bundle.manifest.golden
    assert golden is not None
    language.attend(bundle.arrays(golden.outputs)["prefix"][0])
    for task, text in golden.texts.items():
        assert language.answer(language.instruction(task), task=task).read() == text


def test_a_forked_answer_equals_a_fresh_one(
    language: LanguageModel, gguf: Path, spec: LanguageSpec
):
    prefix = random_prefix(spec, 7)
    language.attend(random_prefix(spec, 8))
    language.answer(QUESTIONS[1]).read()
    language.attend(prefix)
    language.answer(QUESTIONS[0], limit=20).read()
    forked = language.answer(QUESTIONS[1], limit=20)
    forked.read()
    model = LanguageModel(gguf, spec, threads=1, kv="f32")
    model.attend(prefix)
    fresh = model.answer(QUESTIONS[1], limit=20)
    fresh.read()
    model.close()
    assert forked.tokens == fresh.tokens
    assert forked.log_probs == fresh.log_probs


def test_the_prefix_is_computed_once_for_all_questions(
    language: LanguageModel, spec: LanguageSpec, monkeypatch: pytest.MonkeyPatch
):
    rows: list[int] = []
    truth = LlamaCache.add_embeddings

    def counted(self: LlamaCache, embeddings: np.ndarray, **place: int) -> None:
        rows.append(len(embeddings))
        truth(self, embeddings, **place)

    monkeypatch.setattr(LlamaCache, "add_embeddings", counted)
    language.attend(random_prefix(spec, 0))
    for question in QUESTIONS:
        language.answer(question, limit=3).read()
    assert rows == [spec.prefix_length]


def test_prefix_and_first_text_in_one_pass_give_what_two_passes_give(
    language: LanguageModel, spec: LanguageSpec
):
    """What a GPU does; on one thread of a CPU every row is computed alone, so to the last bit."""
    trunks = [language.open_trunk(joined=joined) for joined in (False, True)]
    seen: list[list[np.ndarray]] = [[], []]
    for seed in (0, 1):
        for trunk, logits in zip(trunks, seen, strict=True):
            trunk.attend(random_prefix(spec, seed))
            branch = trunk.branches[0]
            for question in (QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]):
                branch.begin(language.first_turn(question))
                for _ in range(3):
                    logits.append(branch.logits().copy())
                    branch.append(int(logits[-1].argmax()))
    for two, one in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, two)
    assert len({logits.tobytes() for logits in seen[1]}) == 12  # the third question is the first


def test_half_precision_keys_round_one_pass_in_other_places(gguf: Path, spec: LanguageSpec):
    model = LanguageModel(gguf, spec, threads=1)
    found: list[np.ndarray] = []
    for joined in (False, True):
        trunk = model.open_trunk(joined=joined)
        trunk.attend(random_prefix(spec, 0))
        trunk.branches[0].begin(model.first_turn(QUESTIONS[1]))
        found.append(trunk.branches[0].logits().copy())
    model.close()
    two, one = found
    assert np.abs(one - two).max() <= 2e-2 * np.abs(two).max()
    assert one.argmax() == two.argmax()


def test_several_texts_at_a_time_cannot_be_joined_to_a_prefix(language: LanguageModel):
    with pytest.raises(InputError, match="one branch can be joined to its prefix; got 2"):
        language.open_trunk(branches=2, joined=True)


def test_rows_that_llama_cpp_would_read_beyond_are_refused(
    language: LanguageModel, spec: LanguageSpec
):
    cache = language.open_trunk(joined=True).cache
    rows = np.zeros((4, spec.width), np.float32)
    place = {"source": 0, "sequence": 1, "position": len(language.template.head)}
    with pytest.raises(InputError, match="as wide as the language model"):
        cache.add_forked(rows[:, ::2], shared=2, **place)
    for shared in (0, 4):
        with pytest.raises(InputError, match=f"from 1 to 3 rows; got {shared}"):
            cache.add_forked(rows, shared=shared, **place)


def test_another_ggml_is_named_and_not_called(gguf: Path):
    with pytest.raises(MissingExtraError, match="has another ggml"):
        TokenRows(gguf, ctypes.CDLL(None))


def test_one_pass_is_one_call(
    language: LanguageModel, spec: LanguageSpec, monkeypatch: pytest.MonkeyPatch
):
    trunk = language.open_trunk(joined=True)
    sizes: list[int] = []
    truth = LlamaCache._decode

    def counted(self: LlamaCache, batch: Any) -> None:
        sizes.append(int(batch.n_tokens))
        truth(self, batch)

    monkeypatch.setattr(LlamaCache, "_decode", counted)
    trunk.attend(random_prefix(spec, 0))
    assert sizes == []
    first, second = (language.first_turn(question) for question in QUESTIONS[:2])
    trunk.branches[0].begin(first)
    trunk.branches[0].begin(second)
    assert sizes == [spec.prefix_length + len(first), len(second)]


def test_a_pass_that_fails_can_be_tried_again(
    language: LanguageModel, spec: LanguageSpec, monkeypatch: pytest.MonkeyPatch
):
    trunk = language.open_trunk(joined=True)
    trunk.attend(random_prefix(spec, 0))
    branch, question = trunk.branches[0], language.first_turn(QUESTIONS[0])
    with pytest.raises(InputError, match="do not fit"):
        branch.begin(question * 200)
    with monkeypatch.context() as patched:
        patched.setattr(language._model.api, "llama_decode", lambda *_: -3)
        with pytest.raises(ScansideError, match="code -3"):
            branch.begin(question)
    branch.begin(question)
    found = branch.logits().copy()
    language.attend(random_prefix(spec, 0))
    language.answer(QUESTIONS[0], limit=1).read()
    np.testing.assert_array_equal(found, language._trunk.branches[0].logits())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K"])
def test_rows_of_tokens_are_those_of_the_gguf_package(kind: str, tmp_path: Path):
    path, rng = tmp_path / "table.gguf", np.random.default_rng(0)
    table = rng.standard_normal((7, 512)).astype(np.float32)
    made = gguf_format.GGMLQuantizationType[kind]
    if kind in ("Q4_K", "Q6_K"):  # which the package reads and does not write
        raw = rng.integers(0, 60, (7, 2 * gguf_format.GGML_QUANT_SIZES[made][1]), np.uint8)
    else:
        raw = gguf_format.quantize(table, made)
    writer = gguf_format.GGUFWriter(path, "llama")
    writer.add_string("scanside.note", "before the table")
    writer.add_tensor("other", np.ones(33, np.float32))
    writer.add_tensor("token_embd.weight", raw, raw_dtype=made)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rows = TokenRows(path, llama_cpp()._lib)
    tokens = [6, 0, 3, 3]
    assert (rows.width, rows.of(tokens).dtype) == (512, np.float32)
    want = gguf_format.dequantize(raw, made)[tokens]
    np.testing.assert_allclose(rows.of(tokens), want, rtol=1e-6, atol=1e-7)
    assert rows.of([]).shape == (0, 512)


def test_a_gguf_without_embeddings_has_no_rows(tmp_path: Path):
    path = tmp_path / "bare.gguf"
    writer = gguf_format.GGUFWriter(path, "llama")
    writer.add_tensor("other", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BundleError, match=r"has no token_embd.weight; export"):
        TokenRows(path, llama_cpp()._lib)
    path.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(BundleError, match="cannot read its header"):
        TokenRows(path, llama_cpp()._lib)


def test_the_prefix_matters(language: LanguageModel, spec: LanguageSpec):
    first: list[float] = []
    for seed in (0, 1):
        language.attend(random_prefix(spec, seed))
        answer = language.answer(QUESTIONS[0], limit=1)
        answer.read()
        first += answer.log_probs
    assert first[0] != first[1]


def test_pieces_join_to_the_text_and_the_limit_holds(language: LanguageModel, spec: LanguageSpec):
    language.attend(random_prefix(spec, 0))
    answer = language.answer(QUESTIONS[0], limit=5)
    pieces = list(answer)
    assert "".join(pieces) == answer.text
    assert len(answer.tokens) == 5
    assert answer.finish == "length"
    assert 0 < answer.first_token_s <= answer.total_s


def test_a_stop_string_ends_the_answer(gguf: Path, spec: LanguageSpec):
    model = LanguageModel(gguf, spec, threads=1)
    model.attend(random_prefix(spec, 0))
    text = model.answer(QUESTIONS[0], limit=20).read()
    model.close()
    stop = text[6:9]
    template = replace(spec.template, stop=(stop,))
    model = LanguageModel(gguf, replace(spec, template=template), threads=1)
    model.attend(random_prefix(spec, 0))
    answer = model.answer(QUESTIONS[0], limit=20)
    assert answer.read() == text[: text.index(stop)].rstrip()
    assert answer.finish == "stop"
    model.close()


def test_a_stop_string_of_the_caller_ends_the_answer(language: LanguageModel, spec: LanguageSpec):
    language.attend(random_prefix(spec, 0))
    text = language.answer(QUESTIONS[0], limit=20).read()
    stop = text[6:9]
    answer = language.answer(QUESTIONS[0], limit=20, generation=Generation(stop=(stop,)))
    assert answer.read() == text[: text.index(stop)].rstrip()
    assert answer.finish == "stop"


def test_after_a_passed_deadline_nothing_is_computed(language: LanguageModel, spec: LanguageSpec):
    language.attend(random_prefix(spec, 0))
    answer = language.answer(QUESTIONS[0], deadline=0.0)
    assert answer.read() == ""
    assert answer.finish == "deadline"
    assert (answer.tokens, answer.mean_log_prob) == ([], None)


@pytest.mark.parametrize("tokens", range(1, 8))
def test_a_deadline_ends_the_text_at_a_word(
    reference: LanguageModel, monkeypatch: pytest.MonkeyPatch, tokens: int
):
    """The clock strikes after so many tokens; what was streamed is the text, cut behind a word."""
    whole = reference.answer(reference.instruction("describe"), task="describe").read()
    left = iter([0.0] * tokens + [1.0])
    answer = reference.answer(reference.instruction("describe"), task="describe", deadline=1.0)
    monkeypatch.setattr(answer, "_late", lambda: next(left) >= 1.0)
    pieces = list(answer)
    assert "".join(pieces) == answer.text
    assert answer.finish == "deadline"
    # each word of the shipped vocabulary is a token; the last one might have gone on
    assert answer.text.split() == whole.split()[: tokens - 1]


def test_a_full_context_ends_the_answer_and_not_the_process(gguf: Path, spec: LanguageSpec):
    model = LanguageModel(gguf, replace(spec, context=256), threads=1)
    model.attend(random_prefix(spec, 0))
    answer = model.answer("word " * 40, limit=10_000)
    answer.read()
    model.close()
    assert answer.finish in ("context", "end")


def test_a_question_longer_than_the_context_is_refused(language: LanguageModel, spec: LanguageSpec):
    language.attend(random_prefix(spec, 0))
    with pytest.raises(InputError, match=r"the question has \d+ tokens; .* leaves room for \d+"):
        language.answer("word " * spec.context)


def test_an_empty_question_is_refused(language: LanguageModel, spec: LanguageSpec):
    language.attend(random_prefix(spec, 0))
    with pytest.raises(InputError, match="the question is empty"):
        language.answer("  ")


def test_an_unknown_task_is_refused_by_name(language: LanguageModel):
    with pytest.raises(InputError, match="has no task 'sing'; it knows caption, describe"):
        language.instruction("sing")


@pytest.mark.parametrize("wrong", ["width", "length", "nan"])
def test_a_wrong_prefix_is_refused_and_nothing_can_be_asked(
    language: LanguageModel, spec: LanguageSpec, wrong: str
):
    prefix = random_prefix(spec, 0)
    shapes = {"width": prefix[:, 1:], "length": prefix[1:], "nan": prefix * np.nan}
    with pytest.raises(InputError, match=r"'prefix' must be finite and of shape \(12, 256\)"):
        language.attend(shapes[wrong])


def test_nothing_can_be_asked_before_a_volume(gguf: Path, spec: LanguageSpec):
    model = LanguageModel(gguf, spec, threads=1)
    with pytest.raises(InputError, match="no volume to talk about"):
        model.answer("What is it?")
    model.close()
    model.close()


def test_a_gguf_of_another_projector_is_refused(gguf: Path, spec: LanguageSpec):
    with pytest.raises(
        BundleError, match=r"made for the projector .*, the bundle's encoder has 000"
    ):
        LanguageModel(gguf, replace(spec, projector_sha256="0" * 64), threads=1)


def test_a_gguf_of_another_width_is_refused(gguf: Path, spec: LanguageSpec):
    with pytest.raises(BundleError, match="takes embeddings of width 256, the encoder gives 512"):
        LanguageModel(gguf, replace(spec, width=512), threads=1)


def test_a_context_without_room_for_a_question_is_refused(gguf: Path, spec: LanguageSpec):
    with pytest.raises(BundleError, match="context of 16 tokens has no room beside the prefix"):
        LanguageModel(gguf, replace(spec, context=16), threads=1)


def test_a_context_that_no_memory_holds_is_refused(gguf: Path, spec: LanguageSpec):
    with pytest.raises(BundleError, match="is more than llama.cpp can count"):
        LanguageModel(gguf, replace(spec, context=2**40), threads=1)


def test_a_gguf_of_another_architecture_is_refused(gguf: Path, spec: LanguageSpec, tmp_path: Path):
    path = as_qwen2(gguf, tmp_path / "qwen2.gguf")
    with pytest.raises(BundleError, match=r"architecture 'qwen2'; supported is 'llama' \(Llama 2,"):
        LanguageModel(path, spec, threads=1)


def as_qwen2(source: Path, path: Path) -> Path:
    """A Llama's weights as a Qwen 2, which differs in nothing but biases, here zero."""
    reader = gguf_format.GGUFReader(source)
    writer = gguf_format.GGUFWriter(path, "qwen2")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            name = field.name.replace("llama.", "qwen2.", 1)
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name or ".attn_v." in tensor.name:
            bias = np.zeros(tensor.data.shape[0], np.float32)
            writer.add_tensor(tensor.name.replace("weight", "bias"), bias)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, spec: LanguageSpec):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(BundleError, match="llama.cpp cannot load it"):
        LanguageModel(tmp_path / "a.gguf", spec, threads=1)


def test_a_truncated_gguf_is_refused(tmp_path: Path, gguf: Path, spec: LanguageSpec):
    shutil.copy(gguf, tmp_path / "a.gguf")
    with (tmp_path / "a.gguf").open("r+b") as file:
        file.truncate(gguf.stat().st_size // 2)
    with pytest.raises(BundleError, match="llama.cpp cannot load it"):
        LanguageModel(tmp_path / "a.gguf", spec, threads=1)


def test_no_model_stays_open_when_it_does_not_fit(
    gguf: Path, spec: LanguageSpec, monkeypatch: pytest.MonkeyPatch
):
    closed: list[LlamaModel] = []
    truth = LlamaModel.close
    monkeypatch.setattr(LlamaModel, "close", lambda self: (closed.append(self), truth(self)))
    # the head alone is longer than llama.cpp's batch: found while it is computed
    template = replace(spec.template, before_prefix="word " * 600)
    for wrong in (replace(spec, width=512), replace(spec, template=template, prefix_length=1)):
        with pytest.raises(BundleError):
            LanguageModel(gguf, wrong, threads=1)
        with pytest.raises(InputError, match="the language model is closed"):
            closed.pop().tokenize("a")


def test_everything_that_would_end_the_process_is_an_error(gguf: Path, spec: LanguageSpec):
    model = LlamaModel(gguf)
    cache = LlamaCache(model, context=64, threads=1)
    rows = np.zeros((65, spec.width), np.float32)
    with pytest.raises(ScansideError, match="has no logits; add tokens before reading them"):
        cache.logits()
    with pytest.raises(InputError, match="65 tokens at position 0 do not fit"):
        cache.add_embeddings(rows, sequence=0, position=0)
    with pytest.raises(InputError, match=r"must be \(n, 256\), as wide as the language model"):
        cache.add_embeddings(rows[:4, 1:], sequence=0, position=0)
    with pytest.raises(InputError, match="2 tokens at position 63 do not fit"):
        cache.add_tokens([5, 6], sequence=0, position=63)
    with pytest.raises(InputError, match="1 tokens at position 64 do not fit"):
        cache.add_token(5, sequence=0, position=64)
    with pytest.raises(ScansideError, match="llama.cpp failed with code -1"):
        cache.add_tokens([10**6], sequence=0, position=0)
    cache.add_embeddings(rows[:4], sequence=0, position=0)
    with pytest.raises(ScansideError, match="has no logits"):
        cache.logits()
    model.close()
    for use in (
        cache.logits,
        lambda: cache.add_token(5, sequence=0, position=4),
        lambda: cache.truncate(0, 0),
        lambda: model.tokenize("a"),
    ):
        with pytest.raises(InputError, match="the language model is closed"):
            use()


def test_an_answer_ends_when_the_next_one_begins(language: LanguageModel, spec: LanguageSpec):
    language.attend(random_prefix(spec, 0))
    pieces = iter(language.answer(QUESTIONS[0]))
    next(pieces)
    language.answer(QUESTIONS[1], limit=1).read()
    with pytest.raises(InputError, match="another one has begun in its place"):
        list(pieces)


def test_llama_cpp_prints_nothing(
    gguf: Path, spec: LanguageSpec, capfd: pytest.CaptureFixture[str]
):
    model = LanguageModel(gguf, spec, threads=1)
    model.attend(random_prefix(spec, 0))
    model.answer(QUESTIONS[0], limit=3).read()
    model.close()
    assert capfd.readouterr() == ("", "")


def test_half_precision_cache_moves_probabilities_little(
    gguf: Path, spec: LanguageSpec, language: LanguageModel
):
    half = LanguageModel(gguf, spec, threads=1, kv="f16")
    answers: list[Answer] = []
    for model in (half, language):
        model.attend(random_prefix(spec, 3))
        answers.append(model.answer(QUESTIONS[0], limit=1))
        answers[-1].read()
    half.close()
    assert answers[0].log_probs == pytest.approx(answers[1].log_probs, abs=0.05)


def test_weights_are_not_laid_out_for_amx_which_ends_the_process():
    assert not may_repack(b"CPU : AVX512 = 1 | AMX_INT8 = 1 | REPACK = 1 | ")
    assert may_repack(b"CPU : AVX512 = 1 | REPACK = 1 | ")
