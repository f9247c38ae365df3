"""Embeddings of tokens out of a GGUF file, so that tokens can go where rows of embeddings go.

llama.cpp takes a batch of tokens or one of embeddings, never both. A prefix is embeddings; so a
question that is computed together with it has to be, too. The rows are read and expanded by ggml's
own functions: they are what llama.cpp looks up itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, MissingExtraError

_TABLE = b"token_embd.weight"
_FLOAT32 = 0
_OTHER = (
    "this llama-cpp-python has another ggml than scanside reads embeddings with; run pip install "
    "llama-cpp-python==0.3.36"
)


class _Reading(ctypes.Structure):
    """gguf_init_params: only the header is read, into no context of ggml's."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


class _Type(ctypes.Structure):
    """The beginning of ggml_type_traits."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("nbytes", ctypes.c_size_t),
        ("quantised", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class TokenRows:
    """The table of embeddings of a GGUF file.

    Parameters
    ----------
    path : Path
    library : ctypes.CDLL
        llama.cpp, through which ggml is found.

    Raises
    ------
    BundleError
        The file has no such table, or one of a type that this llama.cpp does not expand.
    MissingExtraError
        A llama.cpp whose functions are not those that are called here.
    """

    def __init__(self, path: Path, library: Any) -> None:
        functions = _declared(library)
        header = functions["gguf_init_from_file"](str(path).encode(), _Reading(True, None))
        if not header:
            raise BundleError(f"{path}: llama.cpp cannot read its header; copy it again")
        try:
            number = functions["gguf_find_tensor"](header, _TABLE)
            if number < 0:
                raise BundleError(f"{path} has no {_TABLE.decode()}; export the bundle again")
            kind = functions["gguf_get_tensor_type"](header, number)
            sizes = functions["gguf_get_tensor_ne"](header, number)
            self.width, count = int(sizes[0]), int(sizes[1])
            first = functions["gguf_get_data_offset"](header)
            first += functions["gguf_get_tensor_offset"](header, number)
        finally:
            functions["gguf_free"](header)
        self._kind = kind
        self._expanded: _Type = functions["ggml_get_type_traits"](kind).contents
        row_bytes = int(functions["ggml_row_size"](kind, self.width))
        if self._expanded.block * row_bytes != self._expanded.nbytes * self.width:
            raise MissingExtraError(_OTHER)
        if kind != _FLOAT32 and not self._expanded.to_float:
            name = functions["ggml_type_name"](kind).decode()
            raise BundleError(f"{path}: this llama.cpp does not expand {name}; export it in f16")
        self._table = np.memmap(path, np.uint8, "r", offset=first, shape=(count, row_bytes))

    def of(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(n, d) float32 for n token ids."""
        raw = np.ascontiguousarray(self._table[np.asarray(tokens, np.int64)])
        if self._kind == _FLOAT32:
            return raw.view(np.float32)
        rows = np.empty((len(raw), self.width), np.float32)
        self._expanded.to_float(raw.ctypes.data, rows.ctypes.data, rows.size)
        return rows


def _declared(library: Any) -> dict[str, Any]:
    """The functions of ggml that are used, with the types of their arguments."""
    handle, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    size, kind = ctypes.c_size_t, ctypes.c_int
    types: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "gguf_init_from_file": (handle, (text, _Reading)),
        "gguf_free": (None, (handle,)),
        "gguf_find_tensor": (number, (handle, text)),
        "gguf_get_tensor_type": (kind, (handle, number)),
        "gguf_get_tensor_ne": (ctypes.POINTER(number), (handle, number)),
        "gguf_get_tensor_offset": (size, (handle, number)),
        "gguf_get_data_offset": (size, (handle,)),
        "ggml_get_type_traits": (ctypes.POINTER(_Type), (kind,)),
        "ggml_type_name": (text, (kind,)),
        "ggml_row_size": (size, (kind, number)),
    }
    try:
        return {
            name: ctypes.CFUNCTYPE(gives, *takes)((name, library))
            for name, (gives, takes) in types.items()
        }
    except AttributeError as exc:
        raise MissingExtraError(f"{_OTHER} ({exc})") from exc
