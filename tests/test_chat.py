"""Conversations: against transformers, against fresh ones, and full."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scanside.runtime import Chat, Decoder, Generation, InputError, Reply, Sampling, Token
from scanside.runtime.bundle import Bundle
from scanside.runtime.language import LanguageModel
from scanside.runtime.llama_cache import LlamaCache
from scanside.runtime.manifest import LanguageSpec

TRIALS = Path(__file__).parent.parent / "runtime/reference/trials"
QUESTIONS = (
    "What colour is the background?",
    "How many objects are there?",
    "What is at the left?",
    "What colour is it?",
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder.open("reference", threads=1, warm=False) as opened:
        yield opened


@pytest.fixture
def chat(decoder: Decoder) -> Iterator[Chat]:
    with decoder.chat(TRIALS / "trial-01.nii.gz") as opened:
        yield opened


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Iterator[LanguageModel]:
    bundle = Bundle.open(tiny_bundle)
    spec = bundle.manifest.language
    assert spec is not None
    model = LanguageModel(bundle.path(spec.file), spec, threads=1, kv="f32")
    yield model
    model.close()


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint: Path):
    """transformers on the checkpoint that the tiny bundle was exported from."""
    from scanside.export.torch_chain import TorchChain

    return TorchChain.open(tiny_checkpoint).language


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is computed: prefix rows or tokens, and how many."""
    seen: list[tuple[str, int]] = []
    rows, tokens, token = LlamaCache.add_embeddings, LlamaCache.add_tokens, LlamaCache.add_token

    def add_rows(self: LlamaCache, values: np.ndarray, **place: int) -> None:
        seen.append(("rows", len(values)))
        rows(self, values, **place)

    def add_tokens(self: LlamaCache, values: list[int], **place: int) -> None:
        seen.append(("tokens", len(values)))
        tokens(self, values, **place)

    def add_token(self: LlamaCache, value: int, **place: int) -> None:
        seen.append(("tokens", 1))
        token(self, value, **place)

    monkeypatch.setattr(LlamaCache, "add_embeddings", add_rows)
    monkeypatch.setattr(LlamaCache, "add_token", add_token)
    monkeypatch.setattr(LlamaCache, "add_tokens", add_tokens)
    return seen


def random_prefix(spec: LanguageSpec, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(spec.prefix_length, spec.width)).astype(np.float32)


def scores(reply: Reply) -> list[tuple[str, float]]:
    return [(one.token, one.log_prob) for one in reply.tokens]


@torch.inference_mode()
def torch_conversation(
    oracle: Any, prefix: np.ndarray, questions: tuple[str, ...], limit: int
) -> list[str]:
    """Greedy answers of transformers; every turn computes the whole conversation again."""
    template, embed = oracle.dialogue["template"], oracle.llm.get_input_embeddings()
    before, ids = oracle.segments(questions[0])
    answers: list[str] = []
    for number, question in enumerate(questions):
        if number:
            ids += oracle.token_ids(template["next_turn"].replace("{instruction}", question))
        rows = [embed(torch.tensor(before)), torch.from_numpy(prefix), embed(torch.tensor(ids))]
        embeddings = torch.cat(rows)[None]
        output = oracle.llm.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=limit,
            pad_token_id=oracle.tokenizer.eos_token_id,
        )[0].tolist()
        text = oracle.tokenizer.decode(output, skip_special_tokens=True).strip()
        answers.append(text)
        if output[-1] != oracle.tokenizer.eos_token_id:
            # an answer that its limit ended is remembered as it was shown, and closed
            shown = oracle.token_ids(template["answer"].replace("{answer}", text))
            output = [*shown, oracle.tokenizer.eos_token_id]
        ids += output
    return answers


@pytest.mark.parametrize("seed", range(3))
def test_a_conversation_equals_transformers(tiny: LanguageModel, oracle: Any, seed: int):
    prefix = random_prefix(tiny.spec, seed)
    expected = torch_conversation(oracle, prefix, QUESTIONS, 7)
    with Chat(tiny, prefix) as chat:
        found = [chat.ask(question, Generation(max_tokens=7)).text for question in QUESTIONS]
    assert found == expected


def test_a_forgetful_conversation_equals_one_without_the_oldest_turns(
    tiny: LanguageModel, oracle: Any, tiny_bundle: Path
):
    spec = replace(tiny.spec, context=192)
    model = LanguageModel(tiny_bundle / spec.file, spec, threads=1, kv="f32")
    prefix = random_prefix(spec, 5)
    with Chat(model, prefix) as chat:
        for number in range(30):
            question = f"{QUESTIONS[number % 4]} {number}"
            reply = chat.ask(question, Generation(max_tokens=6))
            assert chat.turns[-1].question == question
            if reply.forgotten:
                break
        kept = tuple(turn.question for turn in chat.turns)
        answers = [turn.answer for turn in chat.turns]
    model.close()
    assert reply.forgotten[0].question == f"{QUESTIONS[0]} 0"
    assert len(reply.forgotten) + len(kept) == number + 1
    assert f"{len(reply.forgotten)} oldest turns are forgotten" in reply.degraded[0]
    # the earlier answers were given by a model that still knew the oldest turns
    alone = torch_conversation_last(oracle, prefix, kept, answers[:-1], 6)
    assert answers[-1] == alone


@torch.inference_mode()
def torch_conversation_last(
    oracle: Any, prefix: np.ndarray, questions: tuple[str, ...], answers: list[str], limit: int
) -> str:
    """The greedy answer of transformers to the last question, behind given turns."""
    template, end = oracle.dialogue["template"], oracle.tokenizer.eos_token_id
    before, ids = oracle.segments(questions[0])
    for question, answer in zip(questions[1:], answers, strict=True):
        ids += [*oracle.token_ids(template["answer"].replace("{answer}", answer)), end]
        ids += oracle.token_ids(template["next_turn"].replace("{instruction}", question))
    logits_at = oracle.logits(before, prefix, ids)[-1]
    output = [int(logits_at.argmax())]
    while output[-1] != end and len(output) < limit:
        output.append(int(oracle.logits(before, prefix, ids + output)[-1].argmax()))
    return oracle.tokenizer.decode(output, skip_special_tokens=True).strip()


def test_the_prefix_is_computed_once_for_all_turns_and_tasks(
    decoder: Decoder, computed: list[tuple[str, int]]
):
    spec = decoder.bundle.manifest.language
    assert spec is not None
    with decoder.chat(TRIALS / "trial-01.nii.gz") as chat:
        for question in QUESTIONS:
            chat.ask(question)
        for task in ("caption", "describe", "prompt"):
            chat.write(task)
        chat.forget()
        chat.ask(QUESTIONS[0])
    assert [count for kind, count in computed if kind == "rows"] == [spec.prefix_length]


def test_a_turn_computes_only_what_is_new(chat: Chat, computed: list[tuple[str, int]]):
    for question in QUESTIONS:
        computed.clear()
        reply = chat.ask(question)
        asked, *one_by_one = [count for _, count in computed]
        # the last answer's end, the template's words and the question
        assert asked < 24
        assert one_by_one == [1] * (len(reply.tokens) - 1)


def test_forked_and_fresh_texts_are_equal_to_the_last_bit(decoder: Decoder, chat: Chat):
    volume = TRIALS / "trial-01.nii.gz"
    said = [scores(chat.ask(question)) for question in QUESTIONS]
    forked = {task: chat.write(task) for task in ("describe", "caption", "prompt", "caption")}
    result = decoder.decode(volume, ("caption", "prompt"), prompt="none", token_log_probs=True)
    for task in ("caption", "prompt"):
        assert tuple(forked[task].tokens) == result.token_log_probs[task]
    with decoder.chat(volume) as fresh:
        fresh.write("describe")
        assert [scores(fresh.ask(question)) for question in QUESTIONS] == said
    with decoder.chat(volume) as fresh:
        assert scores(fresh.write("describe")) == scores(forked["describe"])


def test_two_chats_do_not_disturb_each_other_nor_a_decode(decoder: Decoder):
    volumes = [TRIALS / f"trial-0{n}.nii.gz" for n in (1, 2)]
    apart: list[list[object]] = []
    for volume in volumes:
        with decoder.chat(volume) as chat:
            apart.append([scores(chat.ask(question)) for question in QUESTIONS])
    caption = decoder.decode(volumes[0], "caption").caption
    together: list[list[object]] = [[], []]
    with decoder.chat(volumes[0]) as one, decoder.chat(volumes[1]) as other:
        for question in QUESTIONS:
            for chat, found in zip((one, other), together, strict=True):
                found.append(scores(chat.ask(question)))
            assert decoder.decode(volumes[0], "caption").caption == caption
    assert together == apart
    assert apart[0] != apart[1]


def test_the_conversation_is_remembered_until_a_new_one(decoder: Decoder, chat: Chat):
    first = chat.ask("What colour is it?")
    chat.ask("What is at the left?")
    later = chat.ask("What colour is it?")
    assert scores(later) != scores(first)
    assert [turn.question for turn in chat.turns] == [
        *("What colour is it?", "What is at the left?", "What colour is it?")
    ]
    chat.forget()
    assert chat.turns == ()
    assert scores(chat.ask("What colour is it?")) == scores(first)


def test_the_stream_is_the_reply(chat: Chat):
    *pieces, reply = chat.stream(QUESTIONS[2])
    assert isinstance(reply, Reply)
    assert all(isinstance(piece, Token) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == reply.text == str(reply)
    assert reply.finish == "end"
    assert reply.log_prob == pytest.approx(np.mean([one.log_prob for one in reply.tokens]))
    assert set(reply.latency_ms) == {"first_token", "total"}
    document = json.loads(json.dumps(reply.as_dict(tokens=True)))
    assert document["answer"] == reply.text
    assert [one["token"] for one in document["token_log_probs"]] == [t.token for t in reply.tokens]
    assert "token_log_probs" not in reply.as_dict()


def test_a_stream_that_is_left_is_not_remembered_and_changes_nothing(chat: Chat, decoder: Decoder):
    left = chat.stream("What is at the left?")
    next(left)
    reply = chat.ask(QUESTIONS[0])
    assert [turn.question for turn in chat.turns] == [QUESTIONS[0]]
    with pytest.raises(InputError, match="another one has begun in its place"):
        list(left)
    with decoder.chat(TRIALS / "trial-01.nii.gz") as fresh:
        assert fresh.ask(QUESTIONS[0]).text == reply.text


def test_of_two_streams_only_the_later_can_begin(chat: Chat):
    first, second = chat.stream(QUESTIONS[0]), chat.stream(QUESTIONS[1])
    list(second)
    with pytest.raises(InputError, match="this answer cannot begin"):
        next(first)


def test_the_seed_decides_what_is_said(chat: Chat):
    def said(seed: int) -> str:
        chat.forget()
        how = Generation(sampling=Sampling(temperature=3, seed=seed))
        return chat.write("describe", how).text + chat.ask(QUESTIONS[0], how).text

    assert said(1) == said(1) != said(2)


def test_an_answer_keeps_a_schema(chat: Chat):
    colours = ["red", "brown", "slate"]
    schema = {
        "properties": {"colour": {"enum": colours}, "sure": {"type": "boolean"}},
        "required": ["colour", "sure"],
    }
    reply = chat.ask(QUESTIONS[0], Generation(schema=schema, max_tokens=100))
    document = json.loads(reply.text)
    assert document["colour"] in colours
    assert isinstance(document["sure"], bool)
    assert reply.finish == "end"


def test_an_answer_keeps_a_grammar_and_the_limit_says_so(chat: Chat):
    reply = chat.ask(QUESTIONS[1], Generation(grammar='root ::= "no " "no "+', max_tokens=5))
    assert set(reply.text.split()) <= {"no", "n"}
    assert (reply.finish, len(reply.tokens)) == ("length", 5)
    assert reply.degraded == ["the answer is cut, for it reached the limit of tokens"]


def test_a_deadline_marks_the_answer_as_cut_and_nothing_is_remembered(chat: Chat):
    reply = chat.ask(QUESTIONS[0], Generation(deadline_s=1e-9))
    assert (reply.text, reply.finish, reply.log_prob) == ("", "deadline", None)
    assert reply.degraded == ["the answer is cut by the deadline"]
    assert chat.turns == ()
    assert chat.ask(QUESTIONS[0]).finish == "end"


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (" ", "the question is empty"),
        ("a <bot>: b", "the question holds '<bot>:'"),
        ("caf\udce9", "is not valid UTF-8"),
        ("word " * 600, r"the question has \d+ tokens; beside the volume's prefix the context of "),
    ],
)
def test_a_wrong_question_is_refused_at_the_call_and_changes_nothing(
    chat: Chat, question: str, sentence: str
):
    chat.ask(QUESTIONS[0])
    with pytest.raises(InputError, match=sentence):
        chat.stream(question)
    assert len(chat.turns) == 1
    assert chat.ask(QUESTIONS[1]).text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_tokens": 0}, "'max_tokens' must be at least 1; got 0"),
        ({"deadline_s": 0}, "'deadline_s' must be above 0 seconds; got 0"),
        ({"stop": ""}, "'stop' must be strings that are not empty; got ''"),
        ({"stop": ("",)}, "'stop' must be strings that are not empty"),
        ({"schema": {}, "grammar": "root ::= []"}, "'schema' and 'grammar' are both given"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], sentence: str):
    with pytest.raises(InputError, match=sentence):
        Generation(**options)


def test_a_concept_is_put_into_its_instruction(chat: Chat):
    located = chat.write("locate", concept=" red circle ")
    assert located.question == 'Locating the concept of "red circle"'
    assert scores(located) == scores(chat.ask(located.question))


@pytest.mark.parametrize(
    ("task", "concept", "sentence"),
    [
        ("locate", None, "the task 'locate' needs a concept, for example 'red circle'; got None"),
        ("locate", " ", "the task 'locate' needs a concept"),
        ("caption", "circle", "the task 'caption' needs no concept; got 'circle'"),
        ("locate", 'a" <bot>: b', "the question holds '<bot>:'"),
    ],
)
def test_a_wrong_concept_is_refused(chat: Chat, task: str, concept: str | None, sentence: str):
    with pytest.raises(InputError, match=sentence):
        chat.write(task, concept=concept)


def test_an_unknown_task_is_refused_by_name(chat: Chat):
    with pytest.raises(InputError, match="has no task 'sing'; it knows caption, describe"):
        chat.write("sing")


def test_a_closed_chat_is_refused(decoder: Decoder):
    chat = decoder.chat(TRIALS / "trial-01.nii.gz")
    chat.close()
    chat.close()
    for use in (lambda: chat.ask("What is it?"), lambda: chat.write("caption")):
        with pytest.raises(InputError, match="the chat is closed; begin another one"):
            use()


def test_a_chat_ends_with_its_decoder():
    with Decoder.open("reference", threads=1, warm=False) as decoder:
        chat = decoder.chat(TRIALS / "trial-01.nii.gz")
        stream = chat.stream("What is at the left?")
        next(stream)
    with pytest.raises(InputError, match="the language model is closed"):
        list(stream)
    with pytest.raises(InputError, match="the language model is closed"):
        chat.ask("What is it?")
    with pytest.raises(InputError, match="the decoder is closed"):
        decoder.chat(TRIALS / "trial-01.nii.gz")
