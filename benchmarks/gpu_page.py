"""The results page's part of a GPU: what was measured, what failed, what found no time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tables import measured_on, percentiles, table

Json = Mapping[str, Any]


def gpu_suite(name: str, result: Json) -> tuple[list[str], dict[str, str]]:
    """A document of `gpu_suite.py`."""
    runs, notes = [_about(run) for run in result["runs"]], result.get("notes", {})
    rows = [
        {
            **row,
            "said": "; ".join(filter(None, (row["said"], notes.get(part)))) or None,
            **runs[found["run"]],
        }
        for part, found in result["parts"].items()
        for row in _rows(part, found)
    ]
    commands = [f"- `{run['command']}`" for run in result["runs"]]
    return ["\n".join(commands), table(rows)], {}


def _about(run: Json) -> dict[str, str]:
    """What the parts of a run were measured on."""
    card, about = run["nvidia_smi"], measured_on(run)
    about["device"] = f"{card['name']}, driver {card['driver_version']}; {about['device']}"
    return about


def _rows(part: str, found: Json) -> Iterator[dict[str, Any]]:
    """One row for each time, or one that says what became of the part."""
    said = {k: found[k] for k in ("failed", "left_out") if k in found}
    for name, one in found.items():
        if isinstance(one, Mapping) and "failed" in one:
            said[f"{name} failed"] = one["failed"]
    agrees = found.get("differences", {}).get("agrees")
    timed = 0
    for row in _timed(found):
        timed += 1
        verdict = {"target ms": row.get("limit_ms"), "met": row.get("met")}
        what = {"part": part, "what": row["what"], "agrees with the CPU": agrees}
        yield {**what, **percentiles(row["wall_ms"]), **verdict, "said": None}
    if said or not timed:
        told = "; ".join(f"{key.replace('_', ' ')}: {text}" for key, text in said.items())
        empty = percentiles({})
        yield {
            "part": part,
            "what": None,
            "agrees with the CPU": agrees,
            **empty,
            "target ms": None,
            "met": None,
            "said": told or "answers checked, nothing timed",
        }


def _timed(found: Json, what: str | None = None) -> Iterator[dict[str, Any]]:
    """Every summary of times in a part; the time on the wall stands for what else was timed."""
    if _is_summary(found.get("wall_ms")):
        yield {"what": what, **found}
        return
    for name, one in found.items():
        if isinstance(one, Mapping):
            told = name.removesuffix("_ms")
            told = f"{what}, {told}" if what else told
            if _is_summary(one):
                yield {"what": told, "wall_ms": one}
            else:
                yield from _timed(one, told)


def _is_summary(value: Any) -> bool:
    return isinstance(value, Mapping) and "runs" in value and "p50" in value
