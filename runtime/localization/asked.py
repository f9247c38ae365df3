"""The concept of a sentence like 'Locating the concept of "red circle"', as the language model has
it.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..language import LanguageModel

_QUOTED = re.compile(r"[\"'“‘](.+?)[\"'”’]")


def is_sentence(text: str, instruction: str | None) -> bool:
    """Whether a text is the bundle's instruction of localization rather than a concept.

    Parameters
    ----------
    text : str
    instruction : str or None
        With {concept} where the concept stands.

    Examples
    --------
    >>> instruction = 'Locating the concept of "{concept}"'
    >>> is_sentence("locating the concept of a red circle", instruction)
    True
    >>> is_sentence("red circle", instruction)
    False
    """
    head = _head(instruction or "")
    return bool(head) and text.strip().casefold().startswith(head)


def ask_concept(language: LanguageModel, prefix: NDArray[np.float32], sentence: str) -> str:
    """Let the language model say which concept a sentence asks for.

    Parameters
    ----------
    language : LanguageModel
    prefix : (M, d) float32
        The volume's.
    sentence : str

    Raises
    ------
    InputError
        Its answer names none.
    """
    language.attend(prefix)
    answer = language.answer(sentence.strip(), task="locate").read()
    concept = concept_in(answer, language.spec.instructions.get("locate"))
    if not concept:
        raise InputError(
            f"the language model named no concept for {sentence.strip()!r}: it answered "
            f"{answer!r}; name the concept itself, for example 'red circle'"
        )
    return concept


def concept_in(answer: str, instruction: str | None) -> str:
    """The concept that an answer names: behind its colon, in its quotes, or what is left of it.

    Examples
    --------
    >>> concept_in("Locating the concept: red circle", 'Locating the concept of "{concept}"')
    'red circle'
    >>> concept_in('Locating the concept of "dog".', 'Locating the concept of "{concept}"')
    'dog'
    >>> concept_in("Locating the concept...", 'Locating the concept of "{concept}"')
    ''
    """
    _, colon, behind = answer.rpartition(":")
    quoted = _QUOTED.search(answer)
    if colon:
        found = behind
    elif quoted:
        found = quoted[1]
    else:
        text, head = answer.strip(), _head(instruction or "").removesuffix(" of")
        found = text[len(head) :] if head and text.casefold().startswith(head) else text
        found = found.strip().removeprefix("of ")
    return found.strip(" \t\n\"'.“”‘’")


def _head(instruction: str) -> str:
    """The words before the concept, in lower case: 'locating the concept of'."""
    return instruction.partition("{concept}")[0].strip(" \"'“‘").casefold()
