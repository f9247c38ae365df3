"""The whole decoder of the GPU suite, language model included: from a volume to the first token of
its caption, and a caption with a picture made beside it or after it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from gpu_chain import volumes
from gpu_measure import judged, repeated, summary
from gpu_prepare import spoken_bundle

from scanside.runtime import Decoder
from scanside.runtime.imaging import Imaging
from scanside.runtime.stages import Stages
from scanside.runtime.volume import Volume

Json = dict[str, Any]
STEPS = 4
PHASES = ("language_first_token", "until_text", "until_image", "total")
"""What is told of a decode, as `Result.latency_ms` names it."""


def spoken_part(args: Namespace, _: str) -> Json:
    """First caption token, then caption and picture in both orders, in turn."""
    bundle = spoken_bundle(args.scratch)
    began = time.perf_counter()
    with Decoder.open(bundle, device=args.device, threads=args.threads) as decoder:
        opened_s = time.perf_counter() - began
        given = volumes(4)
        count = iter(range(1 << 60))
        runs = max(int(200 * args.scale), 3)

        def first() -> None:
            first_token(decoder.stages, given[next(count) % len(given)])

        wall = summary(repeated(first, runs, warm=5))
        return {
            "open_s": round(opened_s, 2),
            "placement": dict(decoder.stages.placement),
            "first caption token": {"wall_ms": wall, **judged("first caption token", wall, "p99")},
            "caption and picture": orders(decoder, given, max(runs // 10, 2)),
        }


def first_token(stages: Stages, volume: Volume) -> None:
    """A volume in memory to the first token of its caption."""
    language = stages.need_language()
    encoded = stages.encode(stages.place(volume), ("prefix",))
    language.attend(encoded["prefix"][0])
    language.answer(language.instruction("caption"), task="caption", limit=1).read()


def orders(decoder: Decoder, given: list[Volume], rounds: int) -> Json:
    """Decodes of a caption and a picture of no text: the picture beside the caption, and after it,
    in turn."""
    found: dict[str, dict[str, list[float]]] = {
        name: {phase: [] for phase in PHASES} for name in ("beside", "after")
    }
    for number in range(rounds + 1):
        for name, phases in found.items():
            with _picture(name):
                result = decoder.decode(
                    given[number % len(given)], ("caption", "image"), prompt="none", steps=STEPS
                )
            if number:  # the first one warms
                for phase, times in phases.items():
                    times.append(result.latency_ms[phase] / 1e3)
    told: Json = {
        name: {phase: summary(times) for phase, times in phases.items()}
        for name, phases in found.items()
    }
    return {"rounds": rounds, "steps": STEPS, **told}


@contextmanager
def _picture(when: str) -> Generator[None]:
    """Pictures are made beside the text, as the decoder does, or after it."""
    begin = Imaging.begin
    if when == "after":
        setattr(Imaging, "begin", lambda *_: None)  # noqa: B010
    try:
        yield
    finally:
        setattr(Imaging, "begin", begin)  # noqa: B010
