"""A graph in which operators are fused: who makes and who uses its values, what replaces what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""
_SMALL = 64
"""Most elements of a constant that shape inference is given the values of."""

Shape: TypeAlias = tuple[int, ...]


class LeftError(Exception):
    """Why a part of a graph stays as it is."""


@dataclass(slots=True)
class Told:
    """What became of the places of one graph that an operator could take."""

    operator: str
    fused: int = 0
    domain: str = DOMAIN
    """Whose operator it is."""
    left: Counter[str] = field(default_factory=Counter[str])
    """How many were left as they are, by reason."""

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "operator": f"{self.domain}.{self.operator}",
            "fused": self.fused,
            "left": dict(sorted(self.left.items())),
        }

    def __str__(self) -> str:
        told = [f"{self.fused} as one operator each"] if self.fused else []
        told += [f"{count} left alone: {why}" for why, count in sorted(self.left.items())]
        return "; ".join(told) or "none in this graph"


class GraphIndex:
    """Who makes and who uses each value of a graph, its shape and its type.

    Parameters
    ----------
    model : ModelProto
    folder : Path, optional
        Where weights lie that are not in the model itself.
    """

    def __init__(self, model: ModelProto, folder: Path | None = None) -> None:
        graph = model.graph
        self._folder = folder
        self._nodes = list(graph.node)  # keeps the identity of the nodes that are handed out
        self.maker = {name: node for node in self._nodes for name in node.output}
        self.given = {value.name for value in graph.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._users: dict[str, list[NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        inferred = onnx.shape_inference.infer_shapes(_hollow(model), data_prop=True).graph
        self._types = {
            value.name: value.type.tensor_type
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }

    def shape(self, name: str) -> Shape:
        """Sizes of a value; () where one is not known."""
        if name not in self._types:
            constant = self.constant(name)
            return () if constant is None else tuple(constant.dims)
        sizes = tuple(d.dim_value for d in self._types[name].shape.dim)
        return sizes if all(size > 0 for size in sizes) else ()

    def type(self, name: str) -> int:
        """ONNX's number of a value's type."""
        if name not in self._types:
            constant = self.constant(name)
            return 0 if constant is None else constant.data_type
        return self._types[name].elem_type

    def users(self, name: str) -> list[NodeProto]:
        """The nodes that read a value, one that reads it twice counted twice."""
        return self._users.get(name, [])

    def only_user(self, name: str) -> NodeProto:
        """The node that a value goes to."""
        users = self._users.get(name, [])
        if len(users) != 1 or name in self.given:
            raise LeftError("its inner values are used elsewhere")
        return users[0]

    def scalar(self, name: str) -> float | None:
        """A constant of one element."""
        tensor = self.constant(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return float(numpy_helper.to_array(tensor).item()) if np.prod(tensor.dims) == 1 else None

    def values(self, name: str) -> NDArray[Any] | None:
        """A weight, from the folder of the weights where it is not in the model itself."""
        tensor, maker = self.constant(name), self.maker.get(name)
        if tensor is None:
            stored = self.values(maker.input[0]) if maker and maker.op_type == "Cast" else None
            if stored is None:
                return None
            return stored.astype(helper.tensor_dtype_to_np_dtype(self.type(name)))
        if tensor.data_location == TensorProto.EXTERNAL and self._folder is None:
            return None
        return numpy_helper.to_array(tensor, str(self._folder or ""))

    def constant(self, name: str) -> TensorProto | None:
        """A constant as it is stored, with its sizes and its type; None where a value is none."""
        tensor, maker = self._constants.get(name), self.maker.get(name)
        if tensor is None and maker is not None and maker.op_type == "Constant":
            tensor = next((a.t for a in maker.attribute if a.name == "value"), None)
        return tensor

    def is_weight(self, name: str) -> bool:
        """Whether a value is a constant, or one that is stored in another precision."""
        maker = self.maker.get(name)
        if maker is not None and maker.op_type == "Cast":
            name = maker.input[0]
        return self.constant(name) is not None

    def biased(self, name: str) -> tuple[str, str] | None:
        """The value and the weight of one number a column that a value is the sum of."""
        maker = self.maker.get(name)
        if maker is None or maker.op_type != "Add":
            return None
        sizes = self.shape(name)
        for source, bias in (tuple(maker.input), tuple(reversed(maker.input))):
            alike = self.shape(source) == sizes and self.type(bias) == self.type(name)
            if sizes and self.shape(bias) == sizes[-1:] and alike and self.is_weight(bias):
                return source, bias
        return None

    def scaled(self, node: NodeProto) -> tuple[str, float] | None:
        """What a node multiplies by a constant number, and the number."""
        if node.op_type not in ("Mul", "Div"):
            return None
        first, second = node.input
        by = self.scalar(second)
        if by is not None:
            return first, by if node.op_type == "Mul" else 1 / by
        by = self.scalar(first)
        return (second, by) if by is not None and node.op_type == "Mul" else None


def _hollow(model: ModelProto) -> ModelProto:
    """The model without the values of its weights, which shapes do not depend on."""
    hollow = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph, whole = hollow.graph, model.graph
    graph.name = whole.name
    for kind in ("node", "input", "output", "value_info"):
        getattr(graph, kind).extend(getattr(whole, kind))
    for tensor in whole.initializer:
        small = np.prod(tensor.dims) <= _SMALL and tensor.data_location != TensorProto.EXTERNAL
        bare = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        graph.initializer.append(tensor if small else bare)
    return hollow


def rewrite(model: ModelProto, replaced: dict[int, list[NodeProto]]) -> None:
    """Put other nodes in place of some, by their `id`; drop what nothing needs any more."""
    graph = model.graph
    nodes = [each for node in graph.node for each in replaced.get(id(node), [node])]
    needed = {value.name for value in graph.output}
    kept = list[NodeProto]()
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_names(node))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(copies)
    for values in (graph.initializer, graph.value_info):
        for index in reversed(range(len(values))):
            if values[index].name not in needed:
                del values[index]
    used = DOMAIN in {node.domain for node in graph.node}
    if used and DOMAIN not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def fuse_file(path: Path, fuse: Callable[[ModelProto, Path], Told]) -> Told:
    """Rewrite an `.onnx` file in place; weights that lie beside it stay where they are.

    A graph in which `fuse` replaces nothing is not written at all.
    """
    model = onnx.load(path, load_external_data=False)
    told = fuse(model, path.parent)
    if told.fused:
        part = path.with_name(f"{path.name}.part")
        onnx.save(model, part)
        part.replace(path)
    return told


def _names(node: NodeProto) -> Iterator[str]:
    """All values that a node reads, those that graphs inside it read included."""
    yield from node.input
    for attribute in node.attribute:
        inner: list[GraphProto] = [*attribute.graphs]
        inner += [attribute.g] if attribute.HasField("g") else []
        for graph in inner:
            for each in graph.node:
                yield from _names(each)
            yield from (value.name for value in graph.output)
