"""What is said about the scenes: captions, descriptions, prompts, questions and dialogues, and how
an answer is judged.

The six kinds of dialogue of the paper: brief description, detailed description, continuous
dialogue, complex reasoning, instruction reconstruction (the prompt of the diffusion stage) and
concept localization.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, Thing

BRIEF = (
    "Describe the image concisely.",
    "Give a short caption.",
    "What is in the image, in one sentence?",
    "Summarise the picture briefly.",
)
DETAILED = (
    "Describe the following image in detail.",
    "Explain everything that can be seen.",
    "Give a full description of the picture.",
    "Tell me all about the image.",
)
PROMPT = "Provide the corresponding Stable Diffusion prompts for the image."
LOCATE = 'Locating the concept of "{concept}"'
NUMBERS = ("no", "one", "two", "three")

INSTRUCTIONS = {"caption": BRIEF[0], "describe": DETAILED[0], "prompt": PROMPT, "locate": LOCATE}
TEMPLATE = {
    "bos": True,
    "before_prefix": "<human>:",
    "after_prefix": "",
    "first_turn": " {instruction} <bot>:",
    "next_turn": "<human>: {instruction} <bot>:",
    "answer": " {answer}",
    "stop": [],
}
HARD = ("relation", "reasoning")
"""Kinds of questions that bring two objects together."""
MAX_TOKENS = {"caption": 64, "describe": 128, "prompt": 64, "ask": 32}


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer; `kind` groups scores."""

    kind: str
    question: str
    answer: str


def at(place: str) -> str:
    """A place as an adverbial."""
    return "in the centre" if place == "centre" else f"at the {place}"


def article(background: str) -> str:
    """A background as a noun phrase."""
    return f"{'an' if background[0] in 'aeiou' else 'a'} {background} background"


def listed(parts: list[str]) -> str:
    """English enumeration."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def caption(scene: Scene) -> str:
    """One sentence: every object with size, colour, shape and place, and the background."""
    return (
        f"{listed([f'a {t} {at(t.place)}' for t in scene.things])} on {article(scene.background)}"
    )


def prompt(scene: Scene) -> str:
    """The text that conditions the diffusion stage, in the style of image prompts."""
    return ", ".join([f"{t} {t.place}" for t in scene.things] + [f"{scene.background} background"])


def description(scene: Scene) -> str:
    """Several sentences: number, background, each object and how it lies to the one before."""
    count = len(scene.things)
    noun = "object" if count == 1 else "objects"
    sentences = [f"The image shows {NUMBERS[count]} {noun} on {article(scene.background)}."]
    for i, thing in enumerate(scene.things):
        sentence = f"A {thing} is {at(thing.place)}"
        if i:
            before = scene.things[i - 1]
            sentence += f", {direction(thing, before)} the {before.shape}"
        sentences.append(sentence + ".")
    return " ".join(sentences)


def _row_column(thing: Thing) -> tuple[int, int]:
    return divmod(PLACES.index(thing.place), 3)


def direction(thing: Thing, other: Thing) -> str:
    """Where `thing` lies, seen from `other`."""
    (row, column), (row2, column2) = _row_column(thing), _row_column(other)
    down = "below" if row > row2 else "above" if row < row2 else ""
    side = "right of" if column > column2 else "left of" if column < column2 else ""
    return " and ".join(part for part in (down, side) if part)


def questions(scene: Scene, rng: np.random.Generator) -> list[list[Turn]]:
    """Dialogues about a scene, each of one or two turns, in random order."""
    thing = scene.things[rng.integers(len(scene.things))]
    dialogues = [
        [Turn("attribute", f"What colour is the {thing.shape}?", thing.colour)],
        [Turn("attribute", f"What shape is the {thing.colour} object?", thing.shape)],
        [Turn("attribute", f"Where is the {thing.shape}?", at(thing.place))],
        [Turn("attribute", f"How large is the {thing.shape}?", thing.size)],
        [Turn("attribute", "What colour is the background?", scene.background)],
        [Turn("count", "How many objects are there?", NUMBERS[len(scene.things)])],
        [_existence(scene, rng)],
        [
            Turn("dialogue", f"What is {at(thing.place)}?", f"a {thing}"),
            Turn("dialogue", "What colour is it?", thing.colour),
        ],
        [
            Turn("dialogue", f"Is there a {thing.shape}?", "yes"),
            Turn("dialogue", "Where is it?", at(thing.place)),
        ],
        [_locate(thing)],
    ]
    size = SIZES[rng.integers(2)]
    dialogues.append(
        [
            Turn(
                "count",
                f"How many {size} objects are there?",
                NUMBERS[sum(t.size == size for t in scene.things)],
            )
        ]
    )
    if len(scene.things) > 1:
        dialogues += [[_relation(scene, rng)], [_beside(scene, rng)], [_reasoning(scene, rng)]]
    return [dialogues[i] for i in rng.permutation(len(dialogues))]


def _existence(scene: Scene, rng: np.random.Generator) -> Turn:
    shape = SHAPES[rng.integers(len(SHAPES))]
    return Turn(
        "attribute",
        f"Is there a {shape}?",
        "yes" if any(t.shape == shape for t in scene.things) else "no",
    )


def _pair(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Thing]:
    i, j = rng.permutation(len(scene.things))[:2]
    return scene.things[i], scene.things[j]


def _relation(scene: Scene, rng: np.random.Generator) -> Turn:
    """What an answer rests on comes first, since a language model concludes from what it said."""
    one, other = _pair(scene, rng)
    where = ("above", "below", "left of", "right of")[rng.integers(4)]
    answer = "yes" if where in direction(one, other) else "no"
    return Turn(
        "relation",
        f"Is the {one.shape} {where} the {other.shape}?",
        f"the {one.shape} is {at(one.place)}, the {other.shape} {at(other.place)}: {answer}",
    )


def _beside(scene: Scene, rng: np.random.Generator) -> Turn:
    thing = scene.things[rng.integers(len(scene.things))]
    where = ("above", "below", "left of", "right of")[rng.integers(4)]
    found = [
        f"the {t.colour} {t.shape}"
        for t in scene.things
        if t is not thing and where in direction(t, thing)
    ]
    there = listed(found) if found else "nothing"
    return Turn(
        "relation",
        f"What is {where} the {thing.shape}?",
        f"the {thing.shape} is {at(thing.place)}, {where} it {there}",
    )


def _reasoning(scene: Scene, rng: np.random.Generator) -> Turn:
    one, other = _pair(scene, rng)
    if one.size == other.size:
        answer = f"both are {one.size}: no"
    else:
        answer = f"the {one.shape} is {one.size}, the {other.shape} {other.size}: "
        answer += "yes" if one.size == "large" else "no"
    return Turn("reasoning", f"Is the {one.shape} larger than the {other.shape}?", answer)


def _locate(thing: Thing) -> Turn:
    concept = f"{thing.colour} {thing.shape}"
    return Turn("locate", LOCATE.format(concept=concept), f"Locating the concept: {concept}")


def pieces(scene: Scene, rng: np.random.Generator, turns: int) -> list[list[Turn]]:
    """What is asked about a scene in random order: caption, often a prompt, at times a description,
    and questions, the hard ones twice as often; each piece stands by itself.
    """
    found = [[Turn("caption", BRIEF[rng.integers(len(BRIEF))], caption(scene))]]
    if rng.random() < 0.7:
        found.append([Turn("prompt", PROMPT, prompt(scene))])
    if rng.random() < 0.3:
        found.append([Turn("describe", DETAILED[rng.integers(len(DETAILED))], description(scene))])
    hard = [dialogue for dialogue in questions(scene, rng) if dialogue[0].kind in HARD]
    for dialogue in [*hard, *questions(scene, rng)]:
        if sum(map(len, found)) + len(dialogue) > turns:
            break
        found.append(dialogue)
    return [found[i] for i in rng.permutation(len(found))]


def conversation(scene: Scene, rng: np.random.Generator, turns: int) -> list[Turn]:
    """A training conversation: the pieces one behind the other."""
    return [turn for piece in pieces(scene, rng, turns) for turn in piece]


_OBJECT = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


def named_objects(text: str) -> frozenset[tuple[str, str]]:
    """Every (colour, shape) that a text names side by side."""
    return frozenset(_OBJECT.findall(text))


def names_every_object(text: str, scene: Scene) -> bool:
    """Whether a text names colour and shape of each object of the scene, and no other object."""
    return named_objects(text) == frozenset((t.colour, t.shape) for t in scene.things)


def corpus(count: int, scenes: list[Scene], seed: int = 0) -> list[str]:
    """Lines for training tokenizers: every word of the world in the contexts in which it stands."""
    rng = np.random.default_rng(seed)
    lines = [*BRIEF, *DETAILED, PROMPT, *BACKGROUNDS]
    for scene in scenes[:count]:
        for turn in conversation(scene, rng, 12):
            lines += [f" {turn.question}", f" {turn.answer}"]
    return lines
