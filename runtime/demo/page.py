"""One HTML file that needs nothing else: style and pictures inside, no script, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .outcome import Outcome
from .slices import colours

_COLUMNS = {
    "compiled": "compiled",
    "pytorch": "PyTorch",
    "oracle": "oracle",
    "chance": "chance",
    "mean_image": "mean image",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the page says about the bundle and the machine."""

    bundle: str
    identity: str
    """Hash of the manifest."""
    created: str
    machine: str
    threads: int
    steps: int
    schedule: str
    producer: Mapping[str, str]
    input_units: str


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def render(outcomes: Sequence[Outcome], quality: Mapping[str, Any], facts: Facts) -> str:
    """The page as a string.

    Parameters
    ----------
    outcomes : sequence of Outcome
        In the order in which they are shown.
    quality : mapping
        Tables of scores as the manifest keeps them; those whose `rows` hold a score of the
        compiled bundle are shown.
    facts : Facts
        Bundle and machine.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"png": _data_uri, "percent": _percent}
    return environment.get_template("page.html").render(
        style=(folder / "page.css").read_text(),
        outcomes=outcomes,
        tables=[_grouped(table) for table in quality.values() if _is_comparison(table)],
        columns=_COLUMNS,
        facts=facts,
        scale=colours(np.linspace(-1, 1, 128)[None]),
    )


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def _percent(value: float) -> str:
    """A share of the track of a score, as CSS; scores below 0 stand at its start."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}%"


def _is_comparison(table: Mapping[str, Any]) -> bool:
    rows = table.get("rows", [])
    return bool(rows) and all("compiled" in row for row in rows)


def _grouped(table: Mapping[str, Any]) -> dict[str, Any]:
    """Rows that measure the same thing under one heading, each with the higher baseline."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table["rows"]:
        known = [row[key] for key in ("chance", "mean_image") if row.get(key) is not None]
        groups.setdefault(row["what"], []).append({**row, "baseline": max(known, default=None)})
    return {"trials": table["trials"], "groups": groups}
