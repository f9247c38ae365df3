"""The page of a run: one HTML file that needs nothing else. No script, no network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ..errors import InputError
from ..realtime.messages import WINDOWS
from .figures import Plot
from .heat import heat_maps
from .pictures import inside
from .plots import run_plots
from .story import Attempt, Record, Story, read_story

PAGE = "report.html"
_LATENCIES = {
    "preview": "preview",
    "first_token": "first word",
    "image": "image",
    "total": "all",
}
_SOURCES = {
    "folder": "a folder that was watched",
    "file": "a recorded run",
    "afni": "AFNI's protocol",
    "zmq": "ZeroMQ",
    "dicom": "DICOM over the network",
}
_TEXTS = {"caption": "caption", "description": "description", "prompt": "prompt"}
_SIGNS = {"signal": "activity beyond its uncertainty", "clip": "CLIP vector", "text": "words"}


@dataclass(frozen=True, slots=True)
class FaultRow:
    """All faults of one kind."""

    kind: str
    count: int
    volumes: str
    detail: str


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run.

    Parameters
    ----------
    folder : Path
        Of the run; over, broken off, or still going on.
    out : Path, optional
        The page; by default `report.html` in the folder.

    Returns
    -------
    path : Path

    Raises
    ------
    InputError
        No folder of a run, a damaged one, or a page that cannot be written.
    MissingExtraError
        The extra `plot` is not installed.
    """
    path = folder / PAGE if out is None else out
    page = render(read_story(folder))
    arriving = path.with_name(f".{path.name}")
    try:
        arriving.write_text(page, encoding="utf-8")
        os.replace(arriving, path)
    except OSError as exc:
        arriving.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {exc.strerror}") from exc
    return path


def render(story: Story) -> str:
    """The page as a string; errors are those of `write_report`."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plots: dict[int, list[Plot]] = {one.number: run_plots(story, one) for one in story.attempts}
    return environment.get_template("page.html").render(
        style=(folder / "page.css").read_text(),
        story=story,
        facts=facts(story),
        counts=counts(story),
        ending=ending(story),
        plots=plots,
        faults={one.number: fault_rows(one) for one in story.attempts},
        percentiles=percentiles(story),
        heat=heat_maps(story),
        picture=partial(inside, story.folder),
        windows=WINDOWS,
        texts=_TEXTS,
        signs=_SIGNS,
        latencies=_LATENCIES,
    )


def ending(story: Story) -> str:
    """How the run ended, in a word or two."""
    if story.summary is None:
        return "broken off, or still going on"
    return str(story.summary["ending"])


def facts(story: Story) -> dict[str, str]:
    """The head of the page, name to value."""
    header, setting = story.header, story.setting
    found = {
        "began": story.began.replace("T", " ").replace("+00:00", " UTC"),
        "bundle": f"{setting.get('bundle', '')} {str(header['bundle'])[:16]}".strip(),
        "source": _SOURCES.get(story.source, story.source),
        "TR": _seconds(story.tr_s) + _faster(setting.get("speed")),
        "windows": f"fast {_seconds(header['fast_s'])}, refined {_seconds(header['refined_s'])}",
        "deadline": _seconds(setting.get("deadline_s")),
        "gate": "" if setting.get("gate") is None else f"confidence {setting['gate']:g}",
        "decoded": ", ".join(header["tasks"]),
        "device": str(setting.get("device", "")),
        "scanside": str(setting.get("version", "")),
    }
    return {name: value for name, value in found.items() if value}


def counts(story: Story) -> list[tuple[str, str, bool]]:
    """The numbers of the head: value, what it counts, and whether it is one to worry about."""
    last, answers = story.last, list(story.answers())
    planned = int(story.header["volumes"]) - last.first
    missed = sum(bool(answer["missed_deadline"]) for answer in answers)
    answered = sum(answer["state"] == "answered" for answer in answers)
    spikes = int(last.series("spike").sum()) if last.volumes else 0
    faults = sum(len(one.faults) for one in story.attempts)
    return [
        (f"{len(last.volumes)} of {planned}", "volumes", len(last.volumes) < planned),
        (str(len(last.missing())), "gaps", bool(last.missing())),
        (str(spikes), "spikes", bool(spikes)),
        (str(sum(1 for _ in story.trials())), "trials", False),
        (f"{answered} of {len(answers)}", "answers", answered < len(answers)),
        (str(missed), "missed deadlines", bool(missed)),
        (str(faults), "faults", bool(faults)),
        (str(story.lives), "times resumed", bool(story.lives)),
    ]


def fault_rows(attempt: Attempt) -> list[FaultRow]:
    """Faults of an attempt, by kind."""
    kinds: dict[str, list[Record]] = {}
    for fault in attempt.faults:
        kinds.setdefault(fault["fault"], []).append(fault)
    return [
        FaultRow(
            kind=kind,
            count=len(found),
            volumes=ranges([one["volume"] for one in found if one.get("volume") is not None]),
            detail=next((one["detail"] for one in found if one.get("detail")), ""),
        )
        for kind, found in sorted(kinds.items())
    ]


def ranges(numbers: list[int]) -> str:
    """Whole numbers in few words.

    Examples
    --------
    >>> ranges([7, 1, 2, 3])
    '1-3, 7'
    """
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)


def percentiles(story: Story) -> list[tuple[str, int, float, float, float]]:
    """Each stage of the run: how many, p50, p95 and most in milliseconds."""
    stages: dict[str, list[float]] = {"volume, arrival to fit": []}
    for attempt in story.attempts:
        for record in attempt.volumes.values():
            if "latency_ms" in record:
                stages["volume, arrival to fit"].append(record["latency_ms"])
    for answer in story.answers():
        for stage, ms in answer["latency_ms"].items():
            name = f"{WINDOWS[answer['revision']]} answer, {_LATENCIES.get(stage, stage)}"
            stages.setdefault(name, []).append(ms)
    found: list[tuple[str, int, float, float, float]] = []
    for name, ms in stages.items():
        if ms:
            p50, p95, most = (float(one) for one in np.percentile(ms, [50, 95, 100]))
            found.append((name, len(ms), p50, p95, most))
    return found


def _faster(speed: Any) -> str:
    return f", played {speed:g} times faster" if speed not in (None, 1.0) else ""


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:g}\N{NO-BREAK SPACE}s"
