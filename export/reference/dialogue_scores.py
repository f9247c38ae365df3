"""How well every quantization of the reference language model answers every kind of dialogue.

Held-out trials go through the decoder's front door as NIfTI images; each is talked about once with
each quantization. An answer is right when it is the true one, word for word; a dialogue when all of
its turns are. Texts also get the metrics of the paper's Table 1 from the library in which they are
defined, pycocoevalcap; its own tokenizer needs Java, and all that it does to this world's texts is
to take capitals and punctuation away, as `plain_words` does.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime import Chat, Decoder, Reply
from ...runtime.bundle import Bundle
from ...runtime.errors import InputError
from ...runtime.language import LanguageModel
from ...runtime.manifest import LanguageSpec
from ...runtime.volume import load_volume
from ..golden import encode_golden, golden_volume
from ..importance import TASKS, Importance, importance
from ..quantize import quantised_gguf
from ..stages import projector_sha256
from ..torch_chain import TorchChain
from .scenes import Scene, draw_scenes
from .scores import CONDITIONS, volumes
from .texts import Turn, caption, description, prompt, questions
from .trials import to_nifti
from .world import Subject

TRIALS = 240
QUANTIZATIONS = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
"""f16 holds the checkpoint without loss."""
TEXTS = ("caption", "describe", "prompt", "reasoning")
"""Kinds whose answers are long enough for n-grams of four words."""
BLIND_SCENES = 20_000
Json = dict[str, Any]


def score_dialogues(
    bundle: Path,
    checkpoint: Path,
    trials: int = TRIALS,
    quantizations: Sequence[str] = QUANTIZATIONS,
) -> Json:
    """All dialogue scores, as `benchmarks/results/` holds them.

    The quantization that the bundle ships is asked in all `CONDITIONS`, the others in the first.

    Parameters
    ----------
    bundle, checkpoint : Path
        The compiled chain, and what it was compiled from.
    trials : int
        For each of `CONDITIONS`.
    quantizations : sequence of str
        Of `--quantize`.

    Returns
    -------
    scores : dict
        `trials`; `models`: bytes and tokens per second of each quantization; `rows`: for each
        quantization, condition and kind how many were asked, the share that is right, and its
        chance: of giving the most frequent answer to that question in the training scenes, without
        looking. Of `TEXTS` also BLEU-4, ROUGE-L and CIDEr times 100, with the chance of another
        scene's text.

    Raises
    ------
    InputError
        Bundle and checkpoint are not of the same training.
    """
    chain = TorchChain.open(checkpoint)
    spec = Bundle.open(bundle).manifest.language
    if spec is None or projector_sha256(chain) != spec.projector_sha256:
        raise InputError(f"{bundle} was not exported from {checkpoint} as it is; export it again")
    asked = list(_asked(bundle, trials))
    models: list[Json] = []
    rows: list[Json] = []
    with TemporaryDirectory() as folder:
        for language, about in _languages(chain, spec, quantizations, Path(folder)):
            shipped = about["quantization"] == spec.quantization
            given = [trial for trial in asked if shipped or trial.condition == CONDITIONS[0][0]]
            told = [_talk(language, trial) for trial in given]
            models.append(about | {"tokens_per_s": _speed(told)})
            rows += _rows(about["quantization"], given, told)
    return {"trials": trials, "models": models, "rows": rows}


def carry(checkpoint: Path, scores: Json) -> None:
    """Put the scores into `quality.json`, which later exports carry in their manifest."""
    path = checkpoint / "quality.json"
    known: Json = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {"dialogue": scores}, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class _Trial:
    """One volume's prefix and what is asked about it."""

    condition: str
    prefix: NDArray[np.float32]
    dialogues: list[list[Turn]]


@dataclass(slots=True)
class _Told:
    """The answers to one trial's dialogues."""

    texts: list[list[str]] = field(default_factory=list[list[str]])
    tokens: int = 0
    """Behind the first of each answer."""
    seconds: float = 0.0
    """That they took."""


def _asked(bundle: Path, trials: int) -> Iterator[_Trial]:
    """Every trial with its prefix, made by the bundle's own front end."""
    with Decoder.open(bundle, threads=1, warm=False) as decoder:
        for number, (condition, subjects, repeats) in enumerate(CONDITIONS):
            scenes = draw_scenes(trials, np.random.default_rng([94, number]), held_out=True)
            rng = np.random.default_rng([95, number])
            dialogues = [_dialogues(scenes.named(i), rng) for i in range(trials)]
            for i, subject, volume in volumes(scenes, subjects, repeats, 900 + number):
                loaded = load_volume(to_nifti(volume, Subject(subject)))
                tokens = decoder.stages.preprocessor.tokens(loaded)
                prefix = decoder.stages.encode(tokens)["prefix"][0]
                yield _Trial(condition, prefix, dialogues[i])


def _dialogues(scene: Scene, rng: np.random.Generator) -> list[list[Turn]]:
    """The tasks that a bundle has instructions for, then questions about the scene."""
    written = {"caption": caption(scene), "describe": description(scene), "prompt": prompt(scene)}
    return [[Turn(task, task, text)] for task, text in written.items()] + questions(scene, rng)


def _languages(
    chain: TorchChain, spec: LanguageSpec, quantizations: Sequence[str], folder: Path
) -> Iterator[tuple[LanguageModel, Json]]:
    """The checkpoint's language model in each quantization, made and opened as an export does."""

    @cache
    def watched() -> Importance:
        golden = golden_volume(chain.checkpoint, folder / "golden.nii.gz")
        prefix = encode_golden(chain, golden)["prefix"]
        return importance(chain.language, prefix, chain.language.answers(prefix, TASKS))

    for name in quantizations:
        path = folder / f"{name}.gguf"
        known: dict[str, str | int] = {"projector_sha256": spec.projector_sha256}
        quantised_gguf(chain.checkpoint.root / "llm", path, name, known, watched=watched)
        chosen = replace(spec, file=path.name, quantization=name)
        with closing(LanguageModel(path, chosen, threads=1)) as language:
            yield language, {"quantization": name, "bytes": path.stat().st_size}


def _talk(language: LanguageModel, trial: _Trial) -> _Told:
    """Every dialogue is a conversation of its own."""
    told = _Told()
    with Chat(language, trial.prefix) as chat:
        for dialogue in trial.dialogues:
            chat.forget()
            replies = [_reply(chat, turn) for turn in dialogue]
            told.texts.append([reply.text for reply in replies])
            for reply in replies:
                told.tokens += len(reply.tokens) - 1
                told.seconds += (reply.latency_ms["total"] - reply.latency_ms["first_token"]) / 1e3
    return told


def _reply(chat: Chat, turn: Turn) -> Reply:
    return chat.write(turn.kind) if turn.kind in TASKS else chat.ask(turn.question)


def _speed(told: Sequence[_Told]) -> float:
    return round(sum(t.tokens for t in told) / sum(t.seconds for t in told), 1)


def _rows(quantization: str, asked: Sequence[_Trial], told: Sequence[_Told]) -> list[Json]:
    answered: dict[tuple[str, str], list[tuple[list[Turn], list[str]]]] = defaultdict(list)
    for trial, answers in zip(asked, told, strict=True):
        for dialogue, texts in zip(trial.dialogues, answers.texts, strict=True):
            answered[trial.condition, dialogue[0].kind].append((dialogue, texts))
    rows: list[Json] = []
    for (condition, kind), pairs in answered.items():
        true = [[turn.answer for turn in dialogue] for dialogue, _ in pairs]
        guessed = [blind_answers().get(_key(dialogue), []) for dialogue, _ in pairs]
        said = [texts for _, texts in pairs]
        rows.append(
            {
                "quantization": quantization,
                "condition": condition,
                "kind": kind,
                "asked": len(pairs),
                "right": share_right(said, true),
                "chance": share_right(guessed, true),
            }
        )
        if kind in TEXTS:
            rows[-1] |= _text_metrics([s[0] for s in said], [t[0] for t in true])
    return rows


def share_right(said: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> float:
    """Share of dialogues of which every answer is the true one."""
    return float(np.mean([list(s) == list(t) for s, t in zip(said, true, strict=True)]))


def _text_metrics(said: Sequence[str], true: Sequence[str]) -> Json:
    others = [*true[1:], true[0]]
    chance = {f"chance_{name}": value for name, value in metrics(others, true).items()}
    return metrics(said, true) | chance


def _key(dialogue: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(turn.question for turn in dialogue)


@cache
def blind_answers() -> Mapping[tuple[str, ...], list[str]]:
    """The most frequent answers to the questions of each dialogue in scenes of the training set."""
    rng = np.random.default_rng(96)
    scenes = draw_scenes(BLIND_SCENES, rng)
    counts: dict[tuple[str, ...], Counter[tuple[str, ...]]] = defaultdict(Counter)
    for i in range(len(scenes)):
        for dialogue in _dialogues(scenes.named(i), rng):
            counts[_key(dialogue)][tuple(turn.answer for turn in dialogue)] += 1
    return {key: list(count.most_common(1)[0][0]) for key, count in counts.items()}


def plain_words(text: str) -> str:
    """A text in lower case without punctuation, one space between words.

    >>> plain_words("A large Red circle, at the top left.")
    'a large red circle at the top left'
    """
    return " ".join(re.findall(r"\w+", text.lower()))


def metrics(said: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """BLEU-4, ROUGE-L and CIDEr of texts against one true text each, times 100 as papers have it.

    CIDEr weighs words by how few of the true texts have them, so it needs many.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    given, wanted = ({i: [plain_words(t)] for i, t in enumerate(texts)} for texts in (said, true))
    bleu: Any = Bleu(4).compute_score(wanted, given, verbose=0)[0]
    rouge: Any = Rouge().compute_score(wanted, given)[0]
    cider: Any = Cider().compute_score(wanted, given)[0]
    return {
        "bleu_4": round(100 * float(bleu[3]), 2),
        "rouge_l": round(100 * float(rouge), 2),
        "cider": round(100 * float(cider), 2),
    }
