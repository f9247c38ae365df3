"""Has any advantage over a peer become smaller than it was when it was stored?

What is held against the stored run are ratios of one run, so that another machine of the same kind
or a slower day change both sides alike. A ratio has fallen when its interval, widened by the noise
of its run, lies wholly below the stored one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY_TOLERANCE = 1.05
"""Peak memory hardly varies, but allocators grow in steps."""
SAME = ("cpu", "cores", "threads", "bundle", "steps")


@dataclass(frozen=True, slots=True)
class Judged:
    """One stored advantage and what it is now."""

    what: str
    stored: str
    now: str
    passed: bool


def read_stored(path: Path) -> dict[str, Any]:
    """A stored run; SystemExit says how to make one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SystemExit(
            f"{path} cannot be compared with ({exc}); store a run of a quiet machine with "
            f"python benchmarks/peers.py --json {path}"
        ) from exc


def judge(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[Judged]:
    """Every ratio of the stored run.

    Raises
    ------
    SystemExit
        The runs did different work, or on another kind of machine.
    """
    differ = [key for key in SAME if stored.get(key) != now.get(key)]
    if differ:
        what = "; ".join(f"{key} was {stored.get(key)}, is {now.get(key)}" for key in differ)
        raise SystemExit(f"the stored ratios say nothing about this run: {what}")
    rows = {(row["piece"], row["contender"]): row for row in now["rows"]}
    return [one for old in stored["rows"] for one in _judged(old, rows)]


def _judged(old: Mapping[str, Any], rows: Mapping[Any, Any]) -> Iterator[Judged]:
    wanted = old.get("times_ours")
    if wanted is None:
        return
    what = f"{old['piece']}, times {old['contender']}"
    new = rows.get((old["piece"], old["contender"]))
    if new is None or new.get("times_ours") is None:
        yield Judged(what, str(wanted["interval"]), "not measured", False)
        return
    found = new["times_ours"]
    passed = found["interval"][1] >= wanted["interval"][0]
    yield Judged(what, str(wanted["interval"]), str(found["interval"]), passed)
    before, after = old["memory_times_ours"], new["memory_times_ours"]
    kept = after * MEMORY_TOLERANCE >= before
    yield Judged(f"{what}, peak memory", str(before), str(after), kept)


def verdicts(judged: Sequence[Judged]) -> list[str]:
    """Lines for people."""
    lines = [
        f"{one.what:52} stored {one.stored:20} now {one.now:20} {'ok' if one.passed else 'FALLEN'}"
        for one in judged
    ]
    fallen = sum(not one.passed for one in judged)
    return [*lines, f"{fallen} of {len(judged)} advantages have fallen" if fallen else "all kept"]
