"""A full-size ONNX graph without its weights: kilobytes that can travel, filled again elsewhere.

    python benchmarks/hollow_graph.py empty unet.onnx hollow/unet.onnx
    python benchmarks/hollow_graph.py fill hollow

How long a graph takes does not hang on what its weights are, only on their number, type and spread.
`empty` leaves out every initializer of at least `LEAST` values and notes mean and spread; `fill`
draws values like them, the same on every machine, into the file that the graph reads them from.
Constants, norms and biases are small and stay as they are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

LEAST = 32768
"""Values from which on an initializer is left out."""
ALIGNED = 4096
"""Bytes that the start of every initializer is a multiple of, so that it can be mapped."""
POOL = (1 << 24) - 3
"""Normal numbers that all weights are cut from, each from another place on."""
SEED = 20261126
FLOATS = {1: "float32", 10: "float16"}
"""What may be left out, by ONNX's number of the type; everything else stays."""


class Spread(TypedDict):
    """One initializer that was left out."""

    name: str
    dtype: str
    values: int
    offset: int
    mean: float
    std: float


def weights_file(graph: Path) -> Path:
    """Where a hollow graph reads its weights from."""
    return graph.with_suffix(".weights")


def notes_file(graph: Path) -> Path:
    """What `fill` needs to know."""
    return graph.with_suffix(".weights.json")


def empty(source: Path, target: Path) -> list[Spread]:
    """Write a graph without its large initializers, and the notes beside it.

    Parameters
    ----------
    source : Path
        An .onnx file; external data is read too.
    target : Path
        The hollow .onnx file.

    Raises
    ------
    ValueError
        A weight that is not finite: no spread describes it.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(source)
    noted: list[Spread] = []
    end = 0
    for tensor in model.graph.initializer:
        if tensor.data_type not in FLOATS or _size(tensor) < LEAST:
            continue
        values = numpy_helper.to_array(tensor).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{source}: {tensor.name} is not finite, so it cannot be drawn again")
        end = -(-end // ALIGNED) * ALIGNED
        dtype = FLOATS[tensor.data_type]
        spread = Spread(
            name=tensor.name,
            dtype=dtype,
            values=values.size,
            offset=end,
            mean=float(values.mean()),
            std=float(values.std()),
        )
        noted.append(spread)
        length = values.size * np.dtype(dtype).itemsize
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.ClearField("int32_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        place = {"location": weights_file(target).name, "offset": end, "length": length}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        end += length
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(model.SerializeToString())
    notes_file(target).write_text(json.dumps(noted) + "\n")
    return noted


def _size(tensor: Any) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def fill(folder: Path) -> int:
    """Draw the weights of every hollow graph of a folder; gives the bytes written."""
    pool = np.random.default_rng(SEED).standard_normal(POOL, dtype=np.float32)
    written = 0
    for notes in sorted(folder.glob("*.weights.json")):
        rng = np.random.default_rng(SEED)
        with open(notes.with_suffix(""), "wb") as file:
            for spread in json.loads(notes.read_text()):
                file.seek(spread["offset"])
                _draw(pool, int(rng.integers(POOL)), spread).tofile(file)
            written += file.tell()
    return written


def _draw(pool: NDArray[np.float32], start: int, spread: Spread) -> NDArray[Any]:
    values = np.empty(spread["values"], spread["dtype"])
    filled = 0
    while filled < len(values):
        part = pool[start : start + len(values) - filled]
        values[filled : filled + len(part)] = part * np.float32(spread["std"])
        filled, start = filled + len(part), 0
    if spread["mean"]:
        values += np.asarray(spread["mean"], values.dtype)
    return values


def main() -> int:
    """Empty one graph, or fill a folder of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    emptying = commands.add_parser("empty", help="leave the weights of a graph out")
    emptying.add_argument("source", type=Path)
    emptying.add_argument("target", type=Path)
    filling = commands.add_parser("fill", help="draw the weights of all hollow graphs of a folder")
    filling.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "fill":
        print(f"{fill(args.folder) / 1e9:.2f} GB drawn")
    else:
        left_out = sum(spread["values"] for spread in empty(args.source, args.target))
        print(f"{left_out:,} values left out; {args.target.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
