"""The choice of the next token, against transformers' own warpers."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from scanside.runtime.bundle import REFERENCE
from scanside.runtime.errors import InputError, ScansideError
from scanside.runtime.llama import LlamaModel
from scanside.runtime.sampling import Sampling, TokenChooser


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaModel]:
    opened = LlamaModel(REFERENCE / "language.gguf")
    yield opened
    opened.close()


@pytest.fixture
def logits(model: LlamaModel) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, model.vocabulary_size).astype(np.float32)


def test_the_likeliest_token_is_taken_by_default(model: LlamaModel, logits: np.ndarray):
    assert TokenChooser(model, Sampling()).choose(logits) == logits.argmax()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.5, 0, 0.6), (2.0, 12, 0.8)]
)
def test_tokens_are_drawn_as_transformers_would(
    model: LlamaModel, logits: np.ndarray, temperature: float, top_k: int, top_p: float
):
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits.copy())[None])
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = scores[0].softmax(-1).numpy()
    chooser = TokenChooser(model, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    draws = 4000
    counts = Counter(chooser.choose(logits) for _ in range(draws))
    found = np.array([counts[token] / draws for token in range(len(logits))])
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    # 5 standard deviations of a share of 4000 draws
    assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / draws)


def test_the_seed_decides(model: LlamaModel, logits: np.ndarray):
    def draws(seed: int) -> list[int]:
        chooser = TokenChooser(model, Sampling(temperature=1, seed=seed))
        return [chooser.choose(logits) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_only_what_the_grammar_allows_is_chosen(
    model: LlamaModel, logits: np.ndarray, temperature: float
):
    grammar = 'root ::= "a " ("red" | "blue") " ring"'
    chooser = TokenChooser(model, Sampling(temperature=temperature), grammar)
    written = b""
    while not model.ends(token := chooser.choose(logits)):
        written += model.piece(token)
    assert written in (b"a red ring", b"a blue ring")


@pytest.mark.parametrize(
    ("grammar", "sentence"),
    [
        ("", "'grammar' is empty"),
        ('root ::= "a', "unexpected end of input"),
        ("root ::= other", "Undefined rule identifier 'other'"),
        ('other ::= "a"', "it has no rule 'root', or one that begins with itself"),
        ('root ::= root "a"', "it has no rule 'root', or one that begins with itself"),
    ],
)
def test_a_wrong_grammar_is_one_sentence_and_nothing_on_stderr(
    model: LlamaModel, capfd: pytest.CaptureFixture[str], grammar: str, sentence: str
):
    with pytest.raises(InputError) as caught:
        TokenChooser(model, Sampling(), grammar)
    assert sentence in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_grammar_that_nothing_can_continue_is_an_error(
    model: LlamaModel, logits: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    """llama.cpp would end the process when it is told of a token that it did not allow."""
    chooser = TokenChooser(model, Sampling(), 'root ::= "a"')
    only = np.full_like(logits, -np.inf)
    with pytest.raises(ScansideError, match="no token of this language model can go on"):
        chooser.choose(only)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1}, "'temperature' must be at least 0; got -1"),
        ({"temperature": float("nan")}, "'temperature' must be at least 0"),
        ({"top_k": -1}, "'top_k' must be at least 0; got -1"),
        ({"top_p": 0}, "'top_p' must be above 0 and at most 1; got 0"),
        ({"seed": 2**32 - 1}, "'seed' must be 0 to 4294967294; got 4294967295"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], sentence: str):
    with pytest.raises(InputError, match=sentence):
        Sampling(**options)
