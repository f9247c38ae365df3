"""Graphs of a bundle rewritten where they lie, and each held against what it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .parity import ParityError, distance

RELATIVE = {"float32": 1e-5, "float16": 5e-3}
"""Largest distance from the plain graph, by the type of its outputs."""
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Arrays = dict[str, NDArray[Any]]


class Told(Protocol):
    """What became of a graph: how much of it is one operator now, as a sentence and as a dict."""

    fused: int

    def as_dict(self) -> dict[str, Any]: ...


def rewrite_graphs(
    paths: Sequence[Path],
    subject: str,
    rewrite: Callable[[Path], Told],
    check: Callable[[Path, Arrays], float],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Rewrite the graphs of a bundle that is being written.

    Parameters
    ----------
    paths : sequence of Path
        Those that are not there are passed over. Graphs are replaced; weights beside them stay.
    subject : str
        What of them is rewritten, for `progress`.
    rewrite : callable
        Takes a graph's path, replaces the graph, says what became of it.
    check : callable
        Takes a rewritten graph's path and the plain one's answers; gives how far the answers moved.
    progress : callable
        Told what became of each graph.

    Returns
    -------
    fused : dict
        For each graph what became of it, and under `relative` how far its answers moved.

    Raises
    ------
    ParityError
        From `check`: a graph's answers moved too far.
    """
    fused: dict[str, Any] = {}
    for path in paths:
        if not path.is_file():
            continue
        plain = answers(path)
        found = rewrite(path)
        progress(f"{subject} of {path.stem}: {found}")
        relative = check(path, plain) if found.fused else 0.0
        fused[path.name] = {**found.as_dict(), "relative": relative}
    return fused


def answers(path: Path) -> Arrays:
    """What a graph gives for normal inputs of a fixed seed, on the CPU."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.standard_normal(i.shape).astype(_TYPES[i.type]) for i in session.get_inputs()
    }
    names = [output.name for output in session.get_outputs()]
    found: Any = session.run(names, feeds)
    return dict(zip(names, found, strict=True))


def moved(path: Path, plain: Arrays, what: str, option: str) -> float:
    """How far a graph's answers are from those of the plain one, relative.

    Raises
    ------
    ParityError
        Farther than RELATIVE allows; the message begins with `what`, and names the option.
    """
    _, relative = distance(answers(path), plain)
    allowed = max(RELATIVE[values.dtype.name] for values in plain.values())
    if relative > allowed:
        raise ParityError(
            f"{what} as one operator is {relative:.1e} from the plain graph, allowed is "
            f"{allowed:.0e}; export without {option}"
        )
    return relative
