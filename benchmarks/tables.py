"""Rows of a result as a Markdown table, each with what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
ABOUT = (
    "question",
    "cpu",
    "cores",
    "python",
    "versions",
    "commit",
    "date",
    "load_before",
    "command",
)
PERCENTILES = ("p50", "p95", "p99", "p99.9", "max", "runs")
UNDER_LOAD = 0.5
"""Load average for each core from which on an old result, which knows no more, is marked."""


def measured_on(result: Json, part: Json | None = None) -> dict[str, str]:
    """Device, versions, commit, date, and whether others took the cores meanwhile.

    Parameters
    ----------
    result : dict
        The whole document.
    part : dict, optional
        The row or section that knows what others took while it was measured.
    """
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    cores = f"{result['cpu']}, {result['cores']} cores"
    threads = f", {result['threads']} threads" if isinstance(result.get("threads"), int) else ""
    return {
        "device": f"{cores}{threads}",
        "versions": f"Python {result['python']}, {versions}",
        "commit": str(result["commit"]),
        "date": str(result["date"]),
        "load": _load(result, part or {}),
    }


def _load(result: Json, part: Json) -> str:
    if "under_load" in part:
        taken = part.get("others_cores")
        said = "others computed" if taken is None else f"others took {taken:.2f} cores"
        return f"**{said}**" if part["under_load"] else "quiet"
    before = float(result.get("load_before", 0.0))
    return f"**{before:.2f} before**" if before > UNDER_LOAD * result["cores"] else f"{before:.2f}"


def table(rows: Sequence[Json]) -> str:
    """A Markdown table with the columns of all rows, in the order in which they come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """One value as text: four digits of a number, nothing for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(one)}" for name, one in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")


def is_summary(value: Any) -> bool:
    """Whether a value holds percentiles."""
    return isinstance(value, Mapping) and "runs" in value and "max" in value


def percentiles(summary: Json) -> dict[str, Any]:
    """The columns of a summary; what needs more runs says how many."""
    needs = summary.get("needs", {})
    told = {name: summary.get(name, f"needs {needs[name]}" if name in needs else None) for name in
            PERCENTILES}  # fmt: skip
    return {f"{name} ms" if name != "runs" else name: value for name, value in told.items()}


def generic(result: Json) -> list[str]:
    """Tables of any result: what has percentiles, lists of rows, and everything else.

    Where there is a `summary` the rows that it sums up stay in the file.
    """
    about, parts = measured_on(result), list[str]()
    rest = {name: value for name, value in result.items() if name not in ABOUT}
    if "summary" in rest:
        rest.pop("rows", None)
    timed = {name: value for name, value in rest.items() if is_summary(value)}
    for name, value in rest.items():
        if isinstance(value, Mapping) and value and all(map(is_summary, value.values())):
            timed |= {f"{name}: {inner}": one for inner, one in value.items()}
    if timed:
        rows = [{"what": name, **percentiles(one), **about} for name, one in timed.items()]
        parts.append(table(rows))
    lists = {
        name: value
        for name, value in rest.items()
        if isinstance(value, list) and value and isinstance(value[0], Mapping)
    }
    for name, rows in lists.items():
        parts.append(f"`{name}`\n\n" + table([{**_flat(row), **about} for row in rows]))
    shown = {*timed, *lists, *(key.split(": ")[0] for key in timed)}
    single = {name: value for name, value in rest.items() if name not in shown}
    if single:
        parts.append(table([{"what": name, "value": v, **about} for name, v in single.items()]))
    return parts


def _flat(row: Json) -> dict[str, Any]:
    """A row whose percentiles are columns: of a summary its median and 95th percentile."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if is_summary(value):
            out |= {f"{name} {p}": value[p] for p in ("p50", "p95") if p in value}
        elif isinstance(value, Mapping) and value and all(map(is_summary, value.values())):
            out |= {f"{name} {k} p50": one.get("p50", one["max"]) for k, one in value.items()}
        else:
            out[name] = value
    return out
