"""Weights that two graphs of a bundle have in common lie on disk once.

The encoder and its localizer both hold the last layer; two text encoders may be one model with and
without a projection. Equal weights move into a file of their own, in ONNX's format for external
data, and both graphs point there. What one graph holds transposed or cut into heads is made of the
other's matrix when the graph is loaded, where constants are folded.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_SMALLEST_BYTES = 1024
"""A smaller tensor is not worth its entry."""
_ALIGNMENT = 64
"""Of offsets, in bytes: that of a cache line."""


def share_weights(owner: Path, borrower: Path, data: Path) -> int:
    """Move the weights of `borrower` that `owner` holds too into `data`, and repeat none.

    Parameters
    ----------
    owner, borrower : Path
        `.onnx` files of one folder; both are rewritten, and compute what they did.
    data : Path
        Written beside them where there is something to share.

    Returns
    -------
    shared_bytes : int
        What lies in `data`. 0 for graphs with nothing in common, and where weights are so large
        that they lie in a file of their own already.
    """
    graphs = ir.load(owner), ir.load(borrower)
    if any(isinstance(t, ir.ExternalTensor) for graph in graphs for t in _tensors(graph).values()):
        return 0
    owned = {_key(array): name for name, array in _arrays(graphs[0]).items()}
    borrowed = _derive(graphs[1], owned)
    if borrowed:
        places = _write(data, graphs[0], sorted(set(borrowed.values())))
        for name, source in borrowed.items():
            _point(graphs[1], name, data, *places[source])
        for source, place in places.items():
            _point(graphs[0], source, data, *place)
        _save(graphs[0], owner)
    _save(graphs[1], borrower)
    return data.stat().st_size if borrowed else 0


def fold_repeats(path: Path) -> None:
    """Keep one of several equal weights of a graph; those that are transposed count as equal."""
    model = ir.load(path)
    if not any(isinstance(tensor, ir.ExternalTensor) for tensor in _tensors(model).values()):
        _derive(model, {})
        _save(model, path)


def _derive(model: ir.Model, owned: dict[str, str]) -> dict[str, str]:
    """Make a graph's weights of those that are `owned`, by key, or that it has already, in place.

    Returns
    -------
    borrowed : dict
        The owner's name of each initialiser that is now to be read from the owner.
    """
    borrowed: dict[str, str] = {}
    own: dict[str, str] = {}
    inputs: dict[str, ir.Value] = {}
    for name, array in _arrays(model).items():
        found = False
        for way in _ways(array):
            key = _key(way.matrix)
            if key in owned and key not in own:
                source = f"{name}.shared"
                inputs[source] = _initialiser(model, source, way.matrix)
                own[key], borrowed[source] = source, owned[key]
            if key in own:
                _rebuild(model, name, inputs[own[key]], way)
                found = True
                break
        if not found:
            own[_key(array)], inputs[name] = name, model.graph.initializers[name]
    return borrowed


@dataclass(frozen=True, slots=True)
class _Way:
    """How a weight comes from a matrix: transpose, reshape, swap the last two axes."""

    matrix: NDArray[Any]
    transpose: bool = False
    shape: tuple[int, ...] | None = None
    swap: bool = False


def _ways(array: NDArray[Any]) -> Iterator[_Way]:
    yield _Way(array)
    if array.ndim == 2:
        yield _Way(array.T, transpose=True)
    if array.ndim == 3:
        for swap in (False, True):
            turned = array.swapaxes(1, 2) if swap else array
            matrix = turned.reshape(-1, turned.shape[2])
            yield _Way(matrix, shape=turned.shape, swap=swap)
            yield _Way(matrix.T, transpose=True, shape=turned.shape, swap=swap)


def _rebuild(model: ir.Model, name: str, source: ir.Value, way: _Way) -> None:
    """Replace an initialiser by nodes that make it of `source`."""
    graph, old = model.graph, model.graph.initializers[name]
    nodes: list[ir.Node] = []
    value = source

    def then(kind: str, *more: ir.Value, **attributes: Any) -> None:
        nonlocal value
        node = ir.node(kind, [value, *more], attributes=attributes, name=f"{name}.{len(nodes)}")
        nodes.append(node)
        value = node.outputs[0]
        value.name, value.type = f"{name}.{len(nodes)}", old.type

    if way.transpose:
        then("Transpose", perm=[1, 0])
    if way.shape is not None:
        shape = np.array(way.shape, np.int64)
        then("Reshape", _initialiser(model, f"{name}.shape", shape))
    if way.swap:
        then("Transpose", perm=[0, 2, 1])
    ir.convenience.replace_all_uses_with(old, value)
    del graph.initializers[name]
    if nodes:
        value.name, value.shape = name, old.shape
        graph.insert_before(graph[0], nodes)


def _initialiser(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    model.graph.register_initializer(value)
    return value


def _tensors(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    values = model.graph.initializers.items()
    return {name: v.const_value for name, v in values if v.const_value is not None}


def _arrays(model: ir.Model) -> dict[str, NDArray[Any]]:
    """The weights that are worth sharing."""
    large = {n: t for n, t in _tensors(model).items() if t.nbytes >= _SMALLEST_BYTES}
    return {name: tensor.numpy() for name, tensor in large.items()}


def _key(array: NDArray[Any]) -> str:
    head = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _write(data: Path, model: ir.Model, names: list[str]) -> dict[str, tuple[int, int]]:
    """Offset and length of each tensor in the file."""
    places: dict[str, tuple[int, int]] = {}
    with data.open("wb") as file:
        for name in names:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            content = _tensors(model)[name].tobytes()
            places[name] = (file.tell(), len(content))
            file.write(content)
    return places


def _point(model: ir.Model, name: str, data: Path, offset: int, length: int) -> None:
    value = model.graph.initializers[name]
    tensor = value.const_value
    assert tensor is not None
    value.const_value = ir.ExternalTensor(
        location=data.name,
        offset=offset,
        length=length,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.numpy().shape),
        name=name,
        base_dir=data.parent,
    )


def _save(model: ir.Model, path: Path) -> None:
    """The old file is read while the new one is written."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".shared-") as scratch:
        made = Path(scratch) / path.name
        ir.save(model, made)
        made.replace(path)
