"""What one decode gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .localization.location import Location

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question that was asked about the volume, and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token of a text and how sure the model was of it."""

    token: str
    """Its text; part of a character is shown as U+FFFD, the end of the text as nothing."""
    log_prob: float
    """Natural logarithm of its probability, given all before it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several pictures of a volume."""

    seed: int
    similarity: float
    """Cosine between the picture's CLIP vector and the decoded one."""


@dataclass(slots=True, kw_only=True, eq=False)
class Result:
    """A decoded volume; what was not asked for is None."""

    caption: str | None = None
    description: str | None = None
    prompt: str | None = None
    """The prompt that the language model wrote."""
    image_prompt: str | None = None
    """The text that conditioned the picture; None for none."""
    locations: list[Location] = field(default_factory=list["Location"])
    """Where concepts are that were asked for."""
    answers: list[AnsweredQuestion] = field(default_factory=list[AnsweredQuestion])
    image: Pixels | None = None
    """(H, W, 3) RGB."""
    preview: Pixels | None = None
    """(H, W, 3) RGB."""
    log_prob: dict[str, float] = field(default_factory=dict[str, float])
    """Mean natural log-probability of each text's tokens, by task; questions are ask_0, ask_1."""
    token_log_probs: dict[str, tuple[TokenScore, ...]] = field(
        default_factory=dict[str, tuple[TokenScore, ...]]
    )
    """Every token of each text, by the same names; empty unless asked for."""
    latency_ms: dict[str, float] = field(default_factory=dict[str, float])
    """Wall time of each stage; until_* and total count from the volume's arrival. On a GPU a
    picture may be made beside a text, and diffusion and vae are times of the GPU."""
    clip_norm: float | None = None
    """Length of the decoded CLIP vector: the less an encoder knows, the shorter."""
    placement: dict[str, str] = field(default_factory=dict[str, str])
    """What executed each stage."""
    device: str
    steps: int | None = None
    """Denoising steps taken; None without a picture."""
    planned_steps: int | None = None
    """Steps of the schedule that was begun; more than `steps` for a picture that was stopped."""
    schedule: str | None = None
    beta: float | None = None
    """Share of noise in the picture's start."""
    seed: int
    image_seed: int | None = None
    """Seed of the picture's noise: `seed`, or that of the best candidate."""
    candidates: list[Candidate] = field(default_factory=list[Candidate])
    """In the order in which they were made, where several were asked for."""
    degraded: list[str] = field(default_factory=list[str])
    """What was shortened or left out, a sentence each."""
    bundle: str
    """SHA-256 of the bundle's manifest."""

    def provenance(self, kind: str) -> dict[str, object]:
        """What a picture was made from, for its metadata.

        Parameters
        ----------
        kind : {"image", "preview"}
        """
        found: dict[str, object] = {"kind": kind, "bundle": self.bundle}
        if kind == "image":
            found |= {"seed": self.image_seed, "steps": self.steps, "schedule": self.schedule}
            found |= {"schedule_steps": self.planned_steps, "beta": self.beta}
            found["prompt"] = self.image_prompt or ""
        return found

    def as_dict(self, files: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The result as `decode --json` prints it; what was not asked for is left out.

        Parameters
        ----------
        files : mapping, optional
            Paths of the pictures as they were written, by "image" and "preview".
        """
        document: dict[str, Any] = {
            "caption": self.caption,
            "description": self.description,
            "prompt": self.prompt,
            "answers": [{"question": a.question, "answer": a.answer} for a in self.answers] or None,
            "located": [
                {"concept": one.concept, "similarity": round(one.similarity, 4)}
                for one in self.locations
            ]
            or None,
            "log_prob": {name: rounded(mean) for name, mean in self.log_prob.items()} or None,
            "token_log_probs": {
                name: scores_as_dicts(scores) for name, scores in self.token_log_probs.items()
            }
            or None,
            **(files or {}),
            "latency_ms": {stage: round(ms, 3) for stage, ms in self.latency_ms.items()},
            "placement": self.placement,
            "device": self.device,
            "steps": self.steps,
            "seed": self.seed,
            "candidates": [
                {"seed": one.seed, "similarity": round(one.similarity, 4)}
                for one in self.candidates
            ]
            or None,
            "degraded": self.degraded,
            "bundle": self.bundle,
        }
        return {key: value for key, value in document.items() if value is not None}


def scores_as_dicts(scores: Iterable[TokenScore]) -> list[dict[str, Any]]:
    """Tokens and log-probabilities as JSON holds them."""
    return [{"token": one.token, "log_prob": rounded(one.log_prob)} for one in scores]


def rounded(log_prob: float) -> float:
    """Four decimals, and no minus before a zero."""
    return round(log_prob, 4) + 0.0
