"""Warm decodes: several variants in turn, timed from the volume's arrival to each answer.

A volume arrives as a file, which is read and decompressed, or as voxels that are in memory already.
In every round each variant decodes the same volume with the same seed, in an order drawn anew; one
variant takes part twice, for that shows how large a difference without any cause is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..decoder import Decoder
from ..errors import BundleError
from ..events import Done, Image, Preview, Token
from ..result import Result
from ..volume import VolumeSource, load_volume
from .device_memory import DeviceMemory
from .engines import EngineClock, timed_engines
from .load import Neighbours
from .plan import Plan

AGAIN = " again"
"""Ends the name of the variant that takes part twice."""
Times = dict[str, list[float]]


@dataclass(slots=True, kw_only=True)
class Variant:
    """One way to decode, and the seconds that it took, by round."""

    decoder: Decoder
    tasks: tuple[str, ...]
    prompt: str
    arrival: str
    """file or array."""
    answers: Times = field(default_factory=dict[str, list[float]])
    """Seconds from arrival to preview, first_token, text, image and all of it (total)."""
    stages: Times = field(default_factory=dict[str, list[float]])
    engines: Times = field(default_factory=dict[str, list[float]])
    own: list[float] = field(default_factory=list[float])
    """Seconds in neither an engine nor the reading of the file."""
    degraded: dict[str, int] = field(default_factory=dict[str, int])
    """Sentences of the results, with how often each came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmRun:
    """All variants by name, and who else computed meanwhile."""

    variants: dict[str, Variant]
    neighbours: Neighbours
    device_bytes: int | None
    """Most device memory in use, over what was in use before; None without a device."""


def decode_in_turn(
    plan: Plan, bundles: Sequence[Bundle], volumes: Sequence[Path], say: Callable[[str], None]
) -> WarmRun:
    """Decode by all variants in turn.

    Raises
    ------
    BundleError
        The same bundle answered differently to a file and to its voxels.
    """
    with ExitStack() as opened, timed_engines() as clock:
        memory = opened.enter_context(DeviceMemory(plan.device))
        variants = _variants(plan, bundles, opened)
        turns = _Turns(plan, variants, volumes, clock)
        for number in range(plan.warm_up):
            turns.take(number, keep=False)
            say(f"warming up: round {number + 1} of {plan.warm_up}")
        with Neighbours() as neighbours:
            for number in range(plan.runs):
                turns.take(number, keep=True)
                memory.look()
                say(f"round {number + 1} of {plan.runs}")
    return WarmRun(variants=variants, neighbours=neighbours, device_bytes=memory.most_bytes)


class _Turns:
    """Rounds in which every variant decodes the same volume."""

    def __init__(
        self,
        plan: Plan,
        variants: dict[str, Variant],
        volumes: Sequence[Path],
        clock: EngineClock,
    ) -> None:
        self._plan = plan
        self._variants = variants
        self._sources = {"file": list(volumes), "array": [load_volume(path) for path in volumes]}
        self._clock = clock
        self._order = np.random.default_rng(plan.seed)

    def take(self, number: int, *, keep: bool) -> None:
        """One round; its number is the seed of the pictures."""
        results: dict[str, Result] = {}
        for name in self._order.permutation(list(self._variants)):
            variant = self._variants[name]
            sources = self._sources[variant.arrival]
            source = sources[number % len(sources)]
            self._clock.take()
            result, answers = _decode(self._plan, variant, source, number)
            if keep:
                _keep(variant, result, answers, self._clock.take())
            results[name] = result
        if number == 0:
            _check_same(self._variants, results)


def _variants(plan: Plan, bundles: Sequence[Bundle], opened: ExitStack) -> dict[str, Variant]:
    def variant(bundle: Bundle, arrival: str, decoder: Decoder | None = None) -> Variant:
        if decoder is None:
            decoder = Decoder.open(bundle, plan.device, plan.threads)
            opened.enter_context(decoder)
        manifest = bundle.manifest
        return Variant(
            decoder=decoder,
            tasks=plan.tasks_of(manifest),
            prompt=plan.prompt_of(manifest),
            arrival=arrival,
        )

    first, *others = bundles
    file = variant(first, "file")
    # bundles are held against each other: what two openings of the same one differ counts as noise
    again = variant(first, "file", None if others else file.decoder)
    found = {"file": file, f"file{AGAIN}": again, "array": variant(first, "array", file.decoder)}
    for where, other in zip(plan.beside, others, strict=True):
        found[f"file, {where}"] = variant(other, "file")
    return found


def _decode(
    plan: Plan, variant: Variant, source: VolumeSource, seed: int
) -> tuple[Result, dict[str, float]]:
    """Decode once; the result, and the seconds from arrival to each answer."""
    answers: dict[str, float] = {}
    result: Result | None = None
    began = time.perf_counter()
    events = variant.decoder.stream(
        source, variant.tasks, seed=seed, steps=plan.steps, prompt=variant.prompt
    )
    for event in events:
        now = time.perf_counter() - began
        match event:
            case Preview():
                answers.setdefault("preview", now)
            case Token():
                answers.setdefault("first_token", now)
            case Image():
                answers["image"] = now
            case Done():
                result, answers["total"] = event.result, now
            case _:
                pass
    assert result is not None
    return result, answers


def _keep(
    variant: Variant, result: Result, answers: dict[str, float], engines: dict[str, float]
) -> None:
    stages = {name: ms / 1e3 for name, ms in result.latency_ms.items()}
    if "until_text" in stages:
        answers["text"] = stages["until_text"]
    own = answers["total"] - sum(engines.values()) - stages.get("load", 0.0)
    variant.own.append(own)
    inner = {k: v for k, v in stages.items() if k != "total" and not k.startswith("until_")}
    for kept, new in (
        (variant.answers, answers),
        (variant.stages, inner),
        (variant.engines, engines),
    ):
        for name, seconds in new.items():
            kept.setdefault(name, []).append(seconds)
    for sentence in result.degraded:
        variant.degraded[sentence] = variant.degraded.get(sentence, 0) + 1


def _check_same(variants: dict[str, Variant], results: dict[str, Result]) -> None:
    """The same voxels and seed must give the same answers, however they arrived."""
    wanted = results["file"]
    for name, found in results.items():
        if found.bundle != wanted.bundle or variants[name].tasks != variants["file"].tasks:
            continue
        texts = found.caption == wanted.caption and found.image_prompt == wanted.image_prompt
        if not texts or not _same(found.image, wanted.image):
            raise BundleError(
                f"'{name}' answered differently from 'file' for the same volume and seed; nothing "
                f"is timed. Check {variants[name].decoder.bundle.root} with scanside verify"
            )


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one, other))


def progress(text: str) -> None:
    """Show how far it is on a terminal; say nothing in a pipe."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
