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
        self._seconds: Seconds = {}

    def add(self, engine: str, seconds: float) -> None:
        """Take in one call."""
        self._seconds[engine] = self._seconds.get(engine, 0.0) + seconds

    def take(self) -> Seconds:
        """What was measured, and begin anew."""
        seconds, self._seconds = self._seconds, {}
        return seconds


@contextmanager
def timed_engines() -> Generator[EngineClock]:
    """Time every call of the resample kernel, ONNX Runtime and llama.cpp within the block.

    The methods through which all of them go are wrapped, which costs each call about a microsecond.
    """
    clock = EngineClock()
    wrapped: list[tuple[type, str, Callable[[Any], str]]] = [
        (Resampler, "__call__", lambda _: "kernel"),
        (OnnxEngine, "run", lambda engine: engine.stage),
        (LlamaCache, "add_tokens", lambda _: "llama.cpp"),
        (LlamaCache, "add_embeddings", lambda _: "llama.cpp"),
    ]
    plain = [getattr(owner, method) for owner, method, _ in wrapped]
    for (owner, method, name), call in zip(wrapped, plain, strict=True):
        setattr(owner, method, _timed(call, clock, name))
    try:
        yield clock
    finally:
        for (owner, method, _), call in zip(wrapped, plain, strict=True):
            setattr(owner, method, call)


def _timed(call: Callable[..., Any], clock: EngineClock, name: Callable[[Any], str]) -> Any:
    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(self, *args, **kwargs)
        finally:
            clock.add(name(self), time.perf_counter() - began)

    return timed
