"""A benchmark held against an older one: what is slower, faster, larger or smaller now?

A time counts as changed when the 95 % intervals of both runs lie apart by more than the allowance:
the noise that either run found in itself, or the tolerance, whichever is larger.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

Json = Mapping[str, Any]
SAME = ("cpu", "cores", "device", "threads", "tasks", "steps", "volumes")
"""What must agree, or times say nothing about the code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One quantity, then and now."""

    what: str
    old: float
    new: float
    verdict: str
    """worse, better, same, or unknown for too few runs."""


def read_old(path: Path) -> Json:
    """An older document.

    Raises
    ------
    InputError
        No such file, or not written by `scanside bench`.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(document, dict)
        missing = [key for key in (*SAME, "warm", "cold", "bundles") if key not in document]
    except (OSError, ValueError, AssertionError) as exc:
        raise InputError(f"{path} cannot be compared with ({exc or 'no JSON object'})") from exc
    if missing:
        raise InputError(
            f"{path} was not written by scanside bench, for it lacks {', '.join(missing)}"
        )
    return document


def check_comparable(old: Json, new: Json) -> None:
    """InputError unless both were measured on the same machine and did the same work."""
    differ = [key for key in SAME if old[key] != new[key]]
    if differ:
        what = "; ".join(f"{key} was {old[key]}, is {new[key]}" for key in differ)
        raise InputError(
            f"the old figures were measured differently: {what}. Measure the old state here"
        )


def changes(old: Json, new: Json, tolerance: float) -> list[Change]:
    """Every quantity that both documents have.

    Parameters
    ----------
    old, new : dict
        Documents of `measure`.
    tolerance : float
        Share by which a quantity may change and still count as the same.
    """
    noise = [row["factor"] for doc in (old, new) for row in doc["noise"].values()]
    allowance = max(1 + tolerance, *noise, 1.0)
    found = [
        _timed(what, before, after, allowance)
        for what, before, after in _both(_times(old), _times(new))
    ]
    found += [
        _sized(what, before, after, 1 + tolerance)
        for what, before, after in _both(_sizes(old), _sizes(new))
    ]
    return found


def verdict(found: list[Change]) -> str:
    """worse if anything is, else better if anything is, else same."""
    verdicts = {change.verdict for change in found}
    return next((word for word in ("worse", "better") if word in verdicts), "same")


def table(found: list[Change]) -> str:
    """For people."""
    lines = [f"{'':52}{'then':>11}{'now':>11}{'ratio':>8}"]
    lines += [
        f"{c.what:52}{c.old:11.1f}{c.new:11.1f}{c.new / c.old if c.old else 1:8.3f}  {c.verdict}"
        for c in found
    ]
    return "\n".join(lines)


def _both(old: Iterator[tuple[str, Any]], new: Iterator[tuple[str, Any]]) -> Iterator[Any]:
    before, after = dict(old), dict(new)
    for what in after:
        if what in before:
            yield what, before[what], after[what]


def _timed(what: str, old: Json, new: Json, allowance: float) -> Change:
    word = "unknown"
    if "interval" in old and "interval" in new:
        word = "same"
        if new["interval"][0] > old["interval"][1] * allowance:
            word = "worse"
        elif new["interval"][1] * allowance < old["interval"][0]:
            word = "better"
    return Change(what=what, old=old["ms"], new=new["ms"], verdict=word)


def _sized(what: str, old: float, new: float, allowance: float) -> Change:
    word = "worse" if new > old * allowance else "better" if new * allowance < old else "same"
    return Change(what=what, old=old, new=new, verdict=word)


def _times(document: Json) -> Iterator[tuple[str, Json]]:
    """Percentiles of every answer, warm and cold, by what they are of."""
    for name, row in document["warm"]["variants"].items():
        yield from _percentiles(f"warm, {name}", row["answers_ms"])
    for row in list(document["cold"]["bundles"].values())[:1]:
        yield from _percentiles("new process", row["answers_ms"])


def _percentiles(where: str, summaries: Json) -> Iterator[tuple[str, Json]]:
    for answer, row in summaries.items():
        for percentile in ("p50", "p95", "p99", "p99.9"):
            if percentile in row:
                value: dict[str, Any] = {"ms": row[percentile]}
                interval = row.get("interval", {}).get(percentile)
                if interval:
                    value["interval"] = interval
                yield f"{where}, {answer} {percentile} (ms)", value


def _sizes(document: Json) -> Iterator[tuple[str, float]]:
    for row in list(document["bundles"].values())[:1]:
        yield "on disk (MiB)", row["bytes"] / 2**20
    for row in list(document["cold"]["bundles"].values())[:1]:
        yield "peak memory of the host (MiB)", row["memory_mib"]["peak"]
    if "device_mib" in document["warm"]:
        yield "memory of the device (MiB)", document["warm"]["device_mib"]
