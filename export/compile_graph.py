"""A PyTorch module to an ONNX file of the wanted precision, held against PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx_ir as ir
import torch
from torch import nn

from .eight_bits import to_eight_bits
from .half_precision import emulate_half, plan_half, to_half
from .parity import Arrays, Parity, compare_graph
from .ranges import largest_values
from .to_onnx import export_graph, save_graph

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

RELATIVE_FP16 = 1e-2
"""Half precision rounds by 5e-4 of a number at most; this leaves room for twenty such errors that
all point the same way."""
RELATIVE_INT8 = 1e-1
"""Eight bits round by 2e-3 of the largest number, over all inputs that are compared; this leaves
room for fifty such errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What came out of a compilation."""

    parity: Parity
    precision: Precision
    ranges: dict[str, Any] | None
    """For fp16: how many nodes are in half precision, which ones are not and why, and the largest
    numbers that were met."""


def compile_graph(
    module: nn.Module,
    outputs: Sequence[str],
    path: Path,
    trials: Sequence[tuple[Arrays, Arrays]],
    precision: Precision = "fp32",
) -> Compiled:
    """Write one graph and compare it with PyTorch.

    Parameters
    ----------
    module : nn.Module
        float32; called with the inputs by position.
    outputs : sequence of str
        Names of the outputs, in order.
    path : Path
        The `.onnx` file.
    trials : sequence of (inputs, expected)
        Real inputs by name, with PyTorch's outputs; shapes are taken from the first.
    precision : {"fp32", "fp16", "int8"}
        With fp16 the same inputs decide which nodes stay float32, and the comparison is made twice:
        with every rounding of half precision, and with the file as ONNX Runtime's CPU runs it. With
        int8 products with weights are taken in 8 bits.

    Raises
    ------
    ParityError
        The graph is too far from PyTorch.
    """
    example = {name: torch.from_numpy(array) for name, array in trials[0][0].items()}
    export_graph(module, example, outputs, path)
    parity = compare_graph(path, trials)
    if precision == "fp32":
        return Compiled(parity=parity, precision=precision, ranges=None)
    if precision == "int8":
        to_eight_bits(path)
        # an answer may be near zero, to white noise for example; its rounding is not
        parity = compare_graph(path, trials, RELATIVE_INT8, pooled=True)
        return Compiled(parity=parity, precision=precision, ranges=None)
    ranges = largest_values(path, [inputs for inputs, _ in trials])
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".half-") as scratch:
        folder = Path(scratch)
        model = ir.load(path)
        emulate_half(model, plan_half(model, ranges))
        emulated = folder / f"{path.stem}.emulated.onnx"
        save_graph(model, emulated)
        parity = compare_graph(emulated, trials, RELATIVE_FP16)
        model = ir.load(path)
        plan = plan_half(model, ranges)
        to_half(model, plan)
        # weights are read from the old file while the new one is written
        save_graph(model, folder / path.name)
        for file in folder.glob(f"{path.name}*"):
            file.replace(path.parent / file.name)
    compare_graph(path, trials, RELATIVE_FP16)
    return Compiled(parity=parity, precision=precision, ranges=plan.as_dict())
