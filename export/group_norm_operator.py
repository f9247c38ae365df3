"""Group normalisation as one operator: com.microsoft.GroupNorm, for ONNX Runtime's CUDA provider.

The exporter writes it in the parts that every backend accepts: a reshape to (batch, groups, rest),
an instance normalisation, a reshape back, a product and a sum with one number a channel, and where
a SiLU follows two nodes more. ONNX Runtime's CUDA provider has one kernel for all of it, with
channels innermost; no other provider that scanside uses knows the operator, the CPU's neither.

What the kernel takes, by its source (onnxruntime 1.31, contrib_ops/cuda/diffusion/group_norm*):

- (batch, height, width, channels) in float32 or float16, scale and shift of a channel in float32;
- groups of an even number of channels, 512 at most.

It sums with atomic additions, so that two runs may differ in the last bit, and takes the variance
as the mean of squares less the square of the mean, in float32.

On an H200 it brings the full-size VAE from 17.0 ms to 7.7 (`benchmarks/gpu_variants.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .graph_index import DOMAIN, GraphIndex, LeftError, Told, fuse_file, rewrite

OPERATOR = "GroupNorm"
WIDEST_GROUP = 512
"""Channels that the kernel's largest block holds."""
_INNERMOST, _OUTERMOST = (0, 2, 3, 1), (0, 3, 1, 2)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(slots=True)
class GroupNorms(Told):
    """What became of the group normalisations of one graph."""

    with_silu: int = 0
    """How many of those that were replaced took the SiLU behind them in."""

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {**super(GroupNorms, self).as_dict(), "with_silu": self.with_silu}

    def __str__(self) -> str:
        said, each = super(GroupNorms, self).__str__(), " as one operator each"
        silu = f"{each}, {self.with_silu} with the SiLU behind them"
        return said.replace(each, silu, 1) if self.with_silu else said


@dataclass(frozen=True, slots=True)
class _Found:
    """A group normalisation: what it reads, the node that gives its output, and its numbers."""

    source: str
    last: NodeProto
    groups: int
    epsilon: float
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    silu: bool


def fuse_group_norm_file(path: Path) -> Told:
    """Rewrite an `.onnx` file in place, as `fuse_file` does."""
    return fuse_file(path, fuse_group_norms)


def fuse_group_norms(model: ModelProto, folder: Path | None = None) -> GroupNorms:
    """Replace every group normalisation that the CUDA kernel takes, in place.

    Parameters
    ----------
    model : ModelProto
        Static shapes, float32 or float16; not changed where nothing is replaced.
    folder : Path, optional
        Where weights lie that are not in the model itself.

    Returns
    -------
    found : GroupNorms
        How many were replaced, and why the others were not.
    """
    graph, told = GraphIndex(model, folder), GroupNorms(OPERATOR)
    replaced: dict[int, list[NodeProto]] = {}
    for norm in [node for node in model.graph.node if node.op_type == "InstanceNormalization"]:
        try:
            found = _found(graph, norm)
        except LeftError as why:
            told.left[str(why)] += 1
            continue
        replaced[id(found.last)] = _operator(model, graph, found, told.fused)
        told.fused += 1
        told.with_silu += found.silu
    if told.fused:
        rewrite(model, replaced)
    return told


def _found(graph: GraphIndex, norm: NodeProto) -> _Found:
    """The group normalisation around an instance normalisation."""
    split = graph.maker.get(norm.input[0])
    if split is None or split.op_type != "Reshape":
        raise LeftError("it is no group normalisation")
    source = split.input[0]
    shape, rows = graph.shape(source), graph.shape(norm.input[0])
    if len(shape) != 4 or len(rows) != 3:
        raise LeftError("its input is not (batch, channels, height, width)")
    channels, groups = shape[1], rows[1]
    if rows[0] != shape[0] or channels % groups:
        raise LeftError("its groups do not divide the channels")
    if channels // groups % 2 or channels // groups > WIDEST_GROUP:
        raise LeftError(f"its groups have {channels // groups} channels")
    if graph.type(source) not in _FLOATS:
        raise LeftError("it is neither float32 nor float16")
    one, zero = (graph.values(name) for name in norm.input[1:3])
    if one is None or zero is None or (one != 1).any() or zero.any():
        raise LeftError("its instance normalisation scales or shifts")
    joined = graph.only_user(norm.output[0])
    if joined.op_type != "Reshape" or graph.shape(joined.output[0]) != shape:
        raise LeftError("its groups are not joined again")
    last, scale = _per_channel(graph, joined, "Mul", channels, 1.0)
    last, shift = _per_channel(graph, last, "Add", channels, 0.0)
    silu = _silu(graph, last)
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    return _Found(source, silu or last, groups, epsilon, scale, shift, silu is not None)


def _per_channel(
    graph: GraphIndex, last: NodeProto, kind: str, channels: int, neutral: float
) -> tuple[NodeProto, NDArray[np.float32]]:
    """The node of a kind that follows with one constant number a channel; else nothing follows."""
    users = graph.users(last.output[0])
    if len(users) == 1 and users[0].op_type == kind and last.output[0] not in graph.given:
        (other,) = [name for name in users[0].input if name != last.output[0]] or [""]
        values = graph.values(other)
        if values is not None and values.shape in ((channels, 1, 1), (1, channels, 1, 1)):
            return users[0], values.astype(np.float32).ravel()
    return last, np.full(channels, neutral, np.float32)


def _silu(graph: GraphIndex, last: NodeProto) -> NodeProto | None:
    """The product of a value with its own sigmoid, where nothing else reads the value."""
    name = last.output[0]
    kinds = {node.op_type: node for node in graph.users(name)}
    if name in graph.given or len(graph.users(name)) != 2 or kinds.keys() != {"Sigmoid", "Mul"}:
        return None
    gate, product = kinds["Sigmoid"], kinds["Mul"]
    alone = graph.users(gate.output[0]) == [product] and gate.output[0] not in graph.given
    return product if alone and set(product.input) == {name, gate.output[0]} else None


def _operator(model: ModelProto, graph: GraphIndex, found: _Found, number: int) -> list[NodeProto]:
    """The operator between two transpositions, with its constants added to the model."""
    name = f"group_norm_{number}"
    kind, shape = graph.type(found.source), graph.shape(found.source)
    inside = tuple(shape[axis] for axis in _INNERMOST)
    for part, values in (("scale", found.scale), ("shift", found.shift)):
        model.graph.initializer.append(numpy_helper.from_array(values, f"{name}.{part}"))
    for part in ("in", "out"):
        value = helper.make_tensor_value_info(f"{name}.{part}", kind, inside)
        model.graph.value_info.append(value)
    return [
        helper.make_node(
            "Transpose", [found.source], [f"{name}.in"], name=f"{name}.to", perm=_INNERMOST
        ),
        helper.make_node(
            OPERATOR,
            [f"{name}.in", f"{name}.scale", f"{name}.shift"],
            [f"{name}.out"],
            name=name,
            domain=DOMAIN,
            groups=found.groups,
            epsilon=found.epsilon,
            activation=int(found.silu),
            channels_last=1,
        ),
        helper.make_node(
            "Transpose",
            [f"{name}.out"],
            list(found.last.output),
            name=f"{name}.back",
            perm=_OUTERMOST,
        ),
    ]
