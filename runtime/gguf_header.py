"""What a GGUF file says about its model, read from its header alone: the sizes, not the weights.

llama.cpp tells the same once it has loaded the model; a memory plan has to know before.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from io import BufferedReader
from pathlib import Path
from typing import Any

from .errors import BundleError

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_LONGEST_TEXT = 1 << 26


def read_gguf_header(path: Path) -> dict[str, Any]:
    """Scalars and texts by key, less lists such as the vocabulary, of which the length is kept.

    Raises
    ------
    BundleError
        No GGUF file of version 2 or 3.
    """
    try:
        with path.open("rb") as stream:
            magic, version = stream.read(4), _scalar(stream, 4)
            if magic != b"GGUF" or version not in (2, 3):
                raise BundleError(f"{path} is no GGUF file of version 2 or 3; export it again")
            _scalar(stream, 10)  # number of tensors
            found: dict[str, Any] = {}
            for _ in range(_scalar(stream, 10)):
                key = _text(stream)
                found[key] = _value(stream, _scalar(stream, 4))
            return found
    except (struct.error, KeyError, UnicodeDecodeError, ValueError) as exc:
        if isinstance(exc, BundleError):
            raise
        raise BundleError(f"{path}: its header is damaged ({exc!r}); copy it again") from exc


def _scalar(stream: BufferedReader, kind: int) -> Any:
    form = _SCALARS[kind]
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]


def _text(stream: BufferedReader) -> str:
    length = _scalar(stream, 10)
    if length > _LONGEST_TEXT:
        raise ValueError(f"a text of {length} bytes")
    return stream.read(length).decode()


def _value(stream: BufferedReader, kind: int) -> Any:
    if kind == _TEXT:
        return _text(stream)
    if kind != _ARRAY:
        return _scalar(stream, kind)
    inner, count = _scalar(stream, 4), _scalar(stream, 10)
    if inner == _TEXT:
        for _ in range(count):
            _text(stream)
    elif inner == _ARRAY:
        raise ValueError("a list of lists")
    else:
        stream.seek(count * struct.calcsize(_SCALARS[inner]), 1)
    return count
