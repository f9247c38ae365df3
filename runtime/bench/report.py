"""A benchmark's document as text, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .summary import LEAST_RUNS
from .warm import AGAIN

Json = Mapping[str, Any]
_COLUMNS = (*LEAST_RUNS, "max")
_BARS = " ▁▂▃▄▅▆▇█"


def report(document: Json) -> str:
    """Tables of everything in the document but the intervals of single percentiles."""
    lines = _heading(document)
    warm, cold = document["warm"], document["cold"]
    for name, variant in warm["variants"].items():
        if not name.endswith(AGAIN):  # all there is to know of it is the noise, below
            lines += ["", _header(f"warm, {name}", warm), *_variant(variant)]
    if "device_mib" in warm:
        lines.append(f"device memory: {warm['device_mib']} MiB")
    for where, row in cold["bundles"].items():
        lines += ["", _header(f"new process, {where}", cold), *_rows(row["answers_ms"])]
        memory = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in row["memory_mib"].items())
        lines.append(f"  memory: {memory}")
    return "\n".join([*lines, "", *_ratios(document)])


def _heading(document: Json) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        f"{document['cpu']}, {document['cores']} cores; {document['device']}, "
        f"{document['threads']} threads",
        f"{versions}; commit {document['commit']}; {document['date']}",
    ]
    for where, row in document["bundles"].items():
        lines.append(
            f"{where}: {row['name']} {row['sha256'][:12]}, {row['bytes'] / 2**20:.1f} MiB on disk, "
            f"{row['checks_passed']} checks passed"
        )
    lines.append(
        f"{document['runs']} rounds after {document['warm_up']}, variants in an order drawn anew "
        "in each; all times in ms"
    )
    return lines


def _header(title: str, section: Json) -> str:
    mark = ""
    if section["under_load"]:
        taken = section["others_cores"]
        mark = "   UNDER LOAD" + (f": others took {taken:.2f} cores" if taken is not None else "")
    return f"{title:28}{''.join(f'{name:>12}' for name in _COLUMNS)}  distribution{mark}"


def _variant(variant: Json) -> list[str]:
    lines = _rows(variant["answers_ms"])
    lines += [" stages", *_rows(variant["stages_ms"])]
    own = {"the runtime's own": variant["own_ms"]}
    lines += [" engines", *_rows({**variant["engines_ms"], **own})]
    lines.append(f"  own share of the total: {variant['own_share']:.1%}")
    missed = {tr: shares for tr, shares in variant["missed"].items() if any(shares.values())}
    for tr, shares in missed.items():
        told = ", ".join(f"{answer} {share:.1%}" for answer, share in shares.items() if share)
        lines.append(f"  later than a TR of {tr} s: {told}")
    kept = [tr for tr in variant["missed"] if tr not in missed]
    if kept:
        lines.append(f"  later than a TR of {', '.join(kept)} s: none")
    lines += [f"  degraded {n} times: {sentence}" for sentence, n in variant["degraded"].items()]
    return lines


def _rows(summaries: Mapping[str, Json]) -> list[str]:
    return [
        f"  {name.replace('_', ' '):26}{''.join(map(_cell, _COLUMNS, [row] * len(_COLUMNS)))}"
        f"  {sparkline(row['histogram']['counts'])}"
        for name, row in summaries.items()
    ]


def _cell(column: str, row: Json) -> str:
    if column in row:
        return f"{row[column]:12.1f}"
    return f"{'needs ' + str(row['needs'][column]):>12}"


def sparkline(counts: list[int]) -> str:
    """Counts as bars; a bin that holds anything has a bar."""
    most = max(counts)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def _ratios(document: Json) -> list[str]:
    noise = document["noise"]
    told = ", ".join(f"{answer} {row['factor'] - 1:.1%}" for answer, row in noise.items())
    lines = [f"noise, the same variant twice: {told or 'not known, for there are too few rounds'}"]
    for row in document["ratios"]:
        ratio = f"{row['of']} takes of {row['to']}, to {row['answer'].replace('_', ' ')}: "
        if "needs" in row:
            lines.append(f"{ratio}needs {row['needs']} rounds")
        elif "ratio" not in row:
            lines.append(f"{ratio}within the noise {row['interval']}")
        else:
            lines.append(f"{ratio}{row['ratio']:.3f} {row['interval']}")
    return lines
