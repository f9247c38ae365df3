"""How much of a decode is spent in compiled code: the rest is the runtime's own share."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from ...kernels import Resampler
from ..engines.onnx_cpu import OnnxEngine
from ..llama_cache import LlamaCache

Seconds = dict[str, float]


class EngineClock:
    """Seconds in each engine since `take` was last called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        """Engine and seconds of each call, added up afterwards: what a decode pays for being
        measured would count as the runtime's own.
        """

    def take(self) -> Seconds:
        """What was measured, and begin anew."""
        seconds: Seconds = {}
        for engine, took in self.calls:
            seconds[engine] = seconds.get(engine, 0.0) + took
        self.calls.clear()
        return seconds


@contextmanager
def timed_engines() -> Generator[EngineClock]:
    """Time every call of the resample kernel, ONNX Runtime and llama.cpp within the block.

    The methods through which all of them go are wrapped, which costs each call about a microsecond.
    """
    clock = EngineClock()
    wrapped: list[tuple[type, str, str | None]] = [
        (Resampler, "__call__", "kernel"),
        (OnnxEngine, "run", None),  # each has its stage's name
        (LlamaCache, "add_token", "llama.cpp"),
        (LlamaCache, "add_tokens", "llama.cpp"),
        (LlamaCache, "add_embeddings", "llama.cpp"),
        (LlamaCache, "add_forked", "llama.cpp"),
    ]
    plain = [getattr(owner, method) for owner, method, _ in wrapped]
    for (owner, method, name), call in zip(wrapped, plain, strict=True):
        setattr(owner, method, _timed(call, clock, name))
    try:
        yield clock
    finally:
        for (owner, method, _), call in zip(wrapped, plain, strict=True):
            setattr(owner, method, call)


def _timed(call: Callable[..., Any], clock: EngineClock, name: str | None) -> Any:
    keep = clock.calls.append

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        found = call(self, *args, **kwargs)
        keep((name or self.stage, time.perf_counter() - began))
        return found

    return timed
