"""Log-probabilities that are worked out for several tokens at a time."""

import numpy as np
import pytest

from scanside.runtime.errors import InputError
from scanside.runtime.log_probs import LogProbs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64) - logits.max()
    return wide - np.log(np.exp(wide).sum())


@pytest.mark.parametrize("vocabulary", [5, 566, 1 << 13, 32000])
def test_they_are_those_of_each_token_by_itself_whenever_they_are_asked_for(vocabulary: int):
    rng = np.random.default_rng(0)
    found, wanted = LogProbs(vocabulary), []
    logits = np.full(vocabulary, np.nan, np.float32)  # one buffer, as llama.cpp has it
    for number in range(40):
        logits[:] = 10 * rng.normal(size=vocabulary)
        token = int(rng.integers(vocabulary))
        found.add(logits, int(logits.argmax()), token)
        wanted.append(log_softmax(logits)[token])
        if number % 7 == 0:
            assert len(found.values) == number + 1
    assert found.values == pytest.approx(wanted, abs=1e-4)  # of float32


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused_at_their_token(value: float):
    found, logits = LogProbs(8), np.zeros(8, np.float32)
    found.add(logits, 0, 0)
    logits[3] = value
    with pytest.raises(InputError, match="not finite; check the volume's units"):
        found.add(logits, int(logits.argmax()), 5)


def test_a_token_that_could_not_be_chosen_is_refused():
    found, logits = LogProbs(8), np.zeros(8, np.float32)
    logits[3] = -np.inf
    found.add(logits, 0, 3)
    with pytest.raises(InputError, match="not finite"):
        print(found.values)
    masked = LogProbs(8)
    masked.add(logits, 0, 0)  # a grammar rules tokens out in this way
    assert masked.values == pytest.approx([-np.log(7)])
