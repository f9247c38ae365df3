"""How far a compiled stage is from PyTorch, on real inputs. Too far fails the export.

Distance is the largest absolute difference, and that divided by the largest absolute value PyTorch
gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ..runtime.errors import ScansideError

Arrays = Mapping[str, NDArray[Any]]

RELATIVE_FP32 = 1e-4


class ParityError(ScansideError, RuntimeError):
    """A compiled stage does not compute what the PyTorch model computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The worst difference between a compiled stage and PyTorch."""

    max_abs: float
    """In the output's own units."""
    relative: float
    """Divided by the largest absolute value of that output."""
    trials: int
    """Inputs that were compared."""

    def as_dict(self) -> dict[str, float | int]:
        """For the manifest."""
        return {"max_abs": self.max_abs, "relative": self.relative, "trials": self.trials}


def distance(
    got: Arrays, expected: Arrays, largest: Mapping[str, float] | None = None
) -> tuple[float, float]:
    """Worst absolute and worst relative difference over the outputs of one call.

    Relative to the largest expected value, or to what is given for each output. NaN counts as
    infinite.

    Raises
    ------
    ParityError
        An output is missing or has another shape.
    """
    absolute = relative = 0.0
    for name, want in expected.items():
        if name not in got or got[name].shape != want.shape:
            found = got[name].shape if name in got else "nothing"
            raise ParityError(f"output '{name}' must have shape {want.shape}; got {found}")
        worst = float(np.max(np.abs(got[name].astype(np.float64) - want), initial=0.0))
        worst = worst if np.isfinite(worst) else float("inf")
        absolute = max(absolute, worst)
        scale = float(np.abs(want).max(initial=0.0)) if largest is None else largest[name]
        relative = max(relative, worst / max(scale, 1e-30))
    return absolute, relative


def _largest(expected: Sequence[Arrays]) -> dict[str, float]:
    return {
        name: max(float(np.abs(one[name]).max(initial=0.0)) for one in expected)
        for name in expected[0]
    }


def compare_graph(
    path: Path,
    trials: Iterable[tuple[Arrays, Arrays]],
    tolerance: float = RELATIVE_FP32,
    *,
    pooled: bool = False,
) -> Parity:
    """Check one ONNX file, load it on the CPU, and hold it against PyTorch's answers.

    Parameters
    ----------
    path : Path
        The graph.
    trials : iterable of (inputs, expected)
        By name, with PyTorch's outputs.
    tolerance : float
        Largest relative difference allowed.
    pooled : bool
        Relative to the largest value of an output over all inputs, not over each: for roundings
        that are a share of a graph's largest numbers, whatever becomes of one input.

    Raises
    ------
    ParityError
        The difference is larger; the message names the file and both numbers.
    """
    onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    absolute = relative = 0.0
    count = 0
    if pooled:
        trials = list(trials)
        largest = _largest([expected for _, expected in trials])
    else:
        largest = None
    for inputs, expected in trials:
        answers: list[Any] = list(session.run(names, dict(inputs)))
        got: dict[str, NDArray[Any]] = dict(zip(names, answers, strict=True))
        a, r = distance(got, expected, largest)
        absolute, relative, count = max(absolute, a), max(relative, r), count + 1
    return accept(path.name, Parity(max_abs=absolute, relative=relative, trials=count), tolerance)


def accept(stage: str, parity: Parity, tolerance: float) -> Parity:
    """Hand the figures on, or fail if they are too large."""
    if not parity.relative <= tolerance:
        raise ParityError(
            f"{stage} differs from PyTorch by {parity.relative:.2e} (relative); "
            f"at most {tolerance:.0e} is allowed; nothing was written"
        )
    return parity
