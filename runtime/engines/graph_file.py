"""What an ONNX file says about itself, read without the onnx package: tensors, operators, sizes.

An ONNX file is one protobuf message. Of its hundred fields a runtime needs few: how much memory
weights and activations take, which files hold weights beside the graph, what the graph takes and
gives. Weights are skipped, not read, so a graph of gigabytes costs no memory.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BundleError
from ..manifest import TensorSpec

_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 16: "bfloat16",
}  # fmt: skip
_BYTES = {"uint8": 1, "int8": 1, "bool": 1, "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2,
          "int64": 8, "float64": 8}  # fmt: skip
"""Bytes of one element; 4 for what is not listed."""


@dataclass(slots=True)
class _Node:
    kind: str = ""
    inputs: list[str] = field(default_factory=list[str])
    outputs: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """A graph with static shapes, less its weights."""

    path: Path
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    operators: dict[str, int]
    """How often each kind of node occurs."""
    weights_bytes: int
    """Of all constants that a node computes with, those that casts make of them included."""
    activation_bytes: int
    """Most that intermediate tensors take at once, when each is freed after its last use."""
    external: tuple[Path, ...]
    """Files beside it that hold weights."""

    @property
    def edges_bytes(self) -> int:
        """Of all inputs and outputs."""
        return sum(_size(spec) for spec in (*self.inputs.values(), *self.outputs.values()))

    @classmethod
    def read(cls, path: Path) -> GraphFile:
        """Read a graph.

        Raises
        ------
        BundleError
            No ONNX file, or one that ends early.
        """
        try:
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=1) as memory:
                with memoryview(memory) as view:
                    return _Reader(path).graph(view)
        except (IndexError, ValueError, UnicodeDecodeError) as exc:
            raise BundleError(f"{path} is no ONNX graph ({exc}); export the bundle again") from exc


class _Reader:
    """Collects what the fields of one graph say."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._nodes: list[_Node] = []
        self._constants: dict[str, int] = {}
        """Bytes of each constant."""
        self._values: dict[str, TensorSpec] = {}
        self._external: set[str] = set()
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    def graph(self, view: memoryview) -> GraphFile:
        found = False
        for number, value in _fields(view):
            if number == 7 and isinstance(value, memoryview):
                found = True
                self._read_graph(value)
        if not found:
            raise ValueError("it holds no graph")
        weights, activations = self._memory()
        return GraphFile(
            path=self._path,
            inputs={name: self._values[name] for name in self._inputs},
            outputs={name: self._values[name] for name in self._outputs},
            operators=dict(sorted(Counter(node.kind for node in self._nodes).items())),
            weights_bytes=weights,
            activation_bytes=activations,
            external=tuple(self._path.parent / name for name in sorted(self._external)),
        )

    def _read_graph(self, view: memoryview) -> None:
        for number, value in _fields(view):
            if not isinstance(value, memoryview):
                continue
            if number == 1:
                self._nodes.append(_node(value))
            elif number == 5:
                self._read_constant(value)
            elif number in (11, 12, 13):
                name = self._read_value(value)
                lists = {11: self._inputs, 12: self._outputs}
                lists.get(number, []).append(name)
        self._inputs = [name for name in self._inputs if name not in self._constants]

    def _read_constant(self, view: memoryview) -> None:
        name, dims, kind = "", list[int](), 0
        for number, value in _fields(view):
            if number == 1:
                dims += _packed(value)
            elif number == 2 and isinstance(value, int):
                kind = value
            elif number == 8 and isinstance(value, memoryview):
                name = _text(value)
            elif number == 13 and isinstance(value, memoryview):
                entry = {key: _text(v) for key, v in _fields(value) if isinstance(v, memoryview)}
                if entry.get(1) == "location":
                    self._external.add(entry[2])
        self._constants[name] = _size(TensorSpec(shape=tuple(dims), dtype=_type(kind)))

    def _read_value(self, view: memoryview) -> str:
        name, spec = "", TensorSpec(shape=(), dtype=_type(0))
        for number, value in _fields(view):
            if number == 1 and isinstance(value, memoryview):
                name = _text(value)
            elif number == 2 and isinstance(value, memoryview):
                spec = _tensor_type(value)
        self._values[name] = spec
        return name

    def _memory(self) -> tuple[int, int]:
        """Bytes of weights, and most bytes of intermediate tensors that live at once."""
        constants, last = dict(self._constants), dict[str, int]()
        work: list[_Node] = []
        for node in self._nodes:
            names = [name for name in node.inputs if name]
            if node.kind != "Cast" and names or not all(name in constants for name in names):
                work.append(node)
                last |= dict.fromkeys(names, len(work) - 1)
            else:
                constants |= {name: self._size_of(name) for name in node.outputs}
        weights = sum(size for name, size in constants.items() if name in last)
        alive = dict[str, int]()
        most = 0
        for index, node in enumerate(work):
            alive |= {name: self._size_of(name) for name in node.outputs if name}
            most = max(most, sum(alive.values()))
            for name in [n for n in (*node.inputs, *node.outputs) if last.get(n, -1) <= index]:
                alive.pop(name, None)
        return weights, most

    def _size_of(self, name: str) -> int:
        spec = self._values.get(name)
        return _size(spec) if spec else 0


def _node(view: memoryview) -> _Node:
    node = _Node()
    for number, value in _fields(view):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            node.inputs.append(_text(value))
        elif number == 2:
            node.outputs.append(_text(value))
        elif number == 4:
            node.kind = _text(value)
    return node


def _tensor_type(view: memoryview) -> TensorSpec:
    shape, kind = list[int](), 0
    for number, tensor in _fields(view):
        if number != 1 or not isinstance(tensor, memoryview):
            continue
        for part, value in _fields(tensor):
            if part == 1 and isinstance(value, int):
                kind = value
            elif part == 2 and isinstance(value, memoryview):
                for _, dimension in _fields(value):
                    sizes = dict(_fields(dimension)) if isinstance(dimension, memoryview) else {}
                    size = sizes.get(1, -1)
                    shape.append(size if isinstance(size, int) else -1)
    return TensorSpec(shape=tuple(shape), dtype=_type(kind))


def _type(kind: int) -> str:
    return _TYPES.get(kind, f"ONNX type {kind}")


def _size(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * _BYTES.get(spec.dtype, 4)


def _text(view: memoryview) -> str:
    return str(view, "utf-8")


def _packed(value: int | memoryview) -> list[int]:
    """A repeated integer: one, or many in one field."""
    if isinstance(value, int):
        return [value]
    found, at = list[int](), 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(number)
    return found


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and content of each field: an integer, or the bytes of text, message or numbers."""
    at = 0
    while at < len(view):
        tag, at = _varint(view, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(view, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of unknown kind {wire}")
        if at + size > len(view):
            raise ValueError("it ends early")
        yield tag >> 3, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
