"""The safetensors of a Hugging Face directory, one file or many, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..runtime.errors import CheckpointError


@contextmanager
def open_shard(file: Path) -> Generator[Any]:
    """Map one file; a tensor read from it lies in the file, not in memory, until it is changed.

    Raises
    ------
    CheckpointError
        The file is not there or damaged.
    """
    try:
        with safe_open(file, "pt") as shard:
            yield shard
    except FileNotFoundError as exc:
        raise CheckpointError(f"the checkpoint's weights {file} are not there") from exc
    except SafetensorError as exc:
        raise CheckpointError(f"the checkpoint's weights {file} cannot be read: {exc}") from exc


def tensor_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """File and name of every weight, in stored order.

    Raises
    ------
    CheckpointError
        A file is missing or damaged, or lacks a tensor that the index promises.
    """
    index = folder / "model.safetensors.index.json"
    listed: dict[str, str] = {}
    if index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for file in sorted(set(listed.values())) or ["model.safetensors"]:
        with open_shard(folder / file) as shard:
            names: list[str] = list(shard.keys())
        missing = sorted({n for n, at in listed.items() if at == file} - set(names))
        if missing:
            raise CheckpointError(f"{folder / file} lacks '{missing[0]}', which {index} promises")
        yield from ((folder / file, name) for name in names)


def stored_shape(file: Path, name: str) -> list[int]:
    """Shape of one tensor, without reading it."""
    with open_shard(file) as shard:
        return shard.get_slice(name).get_shape()
