"""Holds a GGUF file, run by llama.cpp, against transformers: token ids, then logits.

llama.cpp is driven by the runtime's own code, so what is compared is what will run; only the KV
cache is float32 here, since a half-precision cache alone moves logits by 1e-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.llama import LlamaModel
from .parity import Parity, ParityError, accept
from .torch_language import TorchLanguage

Float = NDArray[np.float32]

# Of the largest logit. llama.cpp multiplies f16 matrices with activations rounded to f16. Random or
# small models lose most to few bits, hence the wide limit: it only catches a file that is wrong.
TOLERANCE = {"f32": 1e-4, "f16": 1e-2, "bf16": 3e-2, "q8_0": 0.1}
_COARSE = 0.6

SAMPLES = (
    "A red circle left of a small blue square.",
    " It's 3.14159 or 1,000,000;\n\n\tisn't it?   (Yes!)",
    "Čeština, ελληνικά, русский, العربية, हिन्दी, 漢字かな, 한국어, 🧠👩‍🔬",
)


def llama_logits(model: LlamaModel, before: list[int], prefix: Float, after: list[int]) -> Float:
    """Logits of llama.cpp at every token behind the prefix.

    Parameters
    ----------
    model : LlamaModel
        Its sequence 0 is overwritten.
    before, after : list of int
        Token ids on either side of the prefix.
    prefix : (M, d) float32

    Returns
    -------
    logits : (len(after), vocabulary) float32
    """
    model.truncate(0, 0)
    position = len(before)
    if before:
        model.add_tokens(before, sequence=0, position=0)
    model.add_embeddings(prefix, sequence=0, position=position)
    position += len(prefix)
    rows: list[Float] = []
    for i, token in enumerate(after):
        model.add_tokens([token], sequence=0, position=position + i)
        rows.append(model.logits().copy())
    return np.stack(rows)


def compare_tokens(model: LlamaModel, language: TorchLanguage) -> None:
    """Hold llama.cpp's token ids against the tokenizer's, on the dialogue's texts and `SAMPLES`.

    Raises
    ------
    ParityError
        A text has other ids, or another token ends it.
    """
    dialogue = language.dialogue
    for text in (
        *SAMPLES,
        dialogue["template"]["before_prefix"],
        *dialogue["instructions"].values(),
    ):
        want, got = language.token_ids(text), model.tokenize(text)
        if want != got:
            raise ParityError(
                f"llama.cpp tokenises {text!r} as {got[:12]}, "
                f"the checkpoint's own tokenizer as {want[:12]}"
            )
    for token in sorted(language.ends):
        if not model.ends(token):
            raise ParityError(f"llama.cpp does not end a text at token {token}, transformers does")


def compare_language(
    path: Path,
    language: TorchLanguage,
    prefix: Float,
    quantization: str,
    answers: Sequence[list[int]],
) -> Parity:
    """Compare the logits over an instruction and an answer to it.

    Parameters
    ----------
    path : Path
        The GGUF file.
    language : TorchLanguage
        Of the same checkpoint.
    prefix : (B, M, d) float32
        Real prefixes; each is one trial.
    quantization : str
        Decides the tolerance.
    answers : sequence of B list of int
        Token ids that follow the caption instruction.

    Raises
    ------
    ParityError
        Token ids differ, or the logits are too far apart.
    """
    absolute = relative = 0.0
    before, turn = language.segments(language.dialogue["instructions"]["caption"])
    longest = len(before) + prefix.shape[1] + len(turn) + max(map(len, answers))
    with closing(LlamaModel(path, context=longest, threads=1, kv="f32")) as model:
        compare_tokens(model, language)
        for row, answer in zip(prefix, answers, strict=True):
            want = language.logits(before, row, turn + answer)
            worst = float(np.abs(llama_logits(model, before, row, turn + answer) - want).max())
            absolute = max(absolute, worst)
            relative = max(relative, worst / float(np.abs(want).max()))
    found = Parity(max_abs=absolute, relative=relative, trials=len(prefix))
    return accept(path.name, found, TOLERANCE.get(quantization, _COARSE))
