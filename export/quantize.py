"""Quantise a GGUF file with llama.cpp's own quantiser."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import CheckpointError, InputError, ScansideError
from ..runtime.llama import last_words, llama_cpp
from .importance import Importance
from .to_gguf import source_dtype, to_gguf

PLAIN = ("f32", "f16", "bf16")
_QUANTISED = {
    "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K",
    "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M",
    "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M",
}
QUANTIZATIONS = (*PLAIN, *_QUANTISED)
K_QUANTS = ("q6_k", "q5_k_m", "q4_k_m")
"""Types whose rounding an importance matrix steers."""

MATRIX_TYPES = {
    "f32": {"F32"},
    "f16": {"F16"},
    "bf16": {"BF16"},
    "q8_0": {"Q8_0"},
    "q6_k": {"Q6_K"},
    "q5_k_m": {"Q5_K", "Q6_K"},
    "q4_k_m": {"Q4_K", "Q6_K"},
}
"""GGML types of the matrices; mixtures keep more bits where llama.cpp found that it pays."""

_BUFFER_BYTES = 512 << 20
"""Rows that the quantiser holds at once; its own choice is 8 GiB."""

Columns = Mapping[str, NDArray[np.float32]]


def check_quantization(name: str) -> str:
    """Refuse a name that is not in `QUANTIZATIONS`."""
    if name not in QUANTIZATIONS:
        raise InputError(f"'quantize' must be one of {', '.join(QUANTIZATIONS)}; got {name!r}")
    return name


def quantised_gguf(
    folder: Path,
    path: Path,
    name: str,
    metadata: dict[str, str | int],
    *,
    watched: Callable[[], Importance] | None = None,
    threads: int | None = None,
) -> Path:
    """Write a Llama checkpoint as GGUF in any supported type.

    A quantised file is made from one that holds the weights without loss, which is removed
    afterwards.

    Parameters
    ----------
    folder : Path
        The Hugging Face directory.
    path : Path
        The `.gguf` to write.
    name : str
        One of `QUANTIZATIONS`.
    metadata : dict
        Written as `scanside.<key>`.
    watched : callable, optional
        Gives the importance matrix; called only for `K_QUANTS`, which without it treat all columns
        alike. How many positions it saw is written as `scanside.importance_tokens`.
    threads : int, optional
        Threads of the quantiser; all cores by default.

    Raises
    ------
    CheckpointError
        As `to_gguf` raises it, or widths that the type does not fit.
    ScansideError
        llama.cpp refused.
    """
    if check_quantization(name) in PLAIN:
        return to_gguf(folder, path, dtype=name, metadata=metadata)
    columns: Columns = {}
    if watched is not None and name in K_QUANTS:
        seen = watched()
        columns, metadata = seen.columns, metadata | {"importance_tokens": seen.tokens}
    lossless = path.with_suffix(".lossless.gguf")
    try:
        to_gguf(folder, lossless, dtype=source_dtype(folder), metadata=metadata)
        quantize(lossless, path, name, columns=columns, threads=threads)
    finally:
        lossless.unlink(missing_ok=True)
    return path


def quantize(
    source: Path,
    path: Path,
    name: str,
    *,
    columns: Columns | None = None,
    threads: int | None = None,
) -> None:
    """Run `llama_model_quantize`, and check that every tensor has the type that was asked for.

    Parameters
    ----------
    source, path : Path
        A GGUF file without loss, and the one to write.
    name : str
        One of q8_0, q6_k, q5_k_m, q4_k_m.
    columns : mapping, optional
        Tensor name -> (inputs,) float32 weight of each column's error.
    threads : int, optional
        All cores by default.

    Raises
    ------
    CheckpointError
        A width is no multiple of the type's block, so that llama.cpp took another type.
    ScansideError
        llama.cpp refused.
    """
    api = llama_cpp()
    params = api.llama_model_quantize_default_params()
    params.ftype = getattr(api, _QUANTISED[name])
    params.nthread = threads or os.cpu_count() or 1
    params.max_buf_size = _BUFFER_BYTES
    kept = {n: np.ascontiguousarray(values, np.float32) for n, values in (columns or {}).items()}
    if kept:
        params.imatrix = _table(api, kept)  # which points into `kept`
    code = api.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
    if code != 0:
        raise ScansideError(f"llama.cpp could not quantise {source.name} to {name}: {last_words()}")
    check_types(path, name)


def _table(api: Any, columns: Columns) -> Any:
    """llama.cpp's array of named columns, which an entry without a name ends."""
    table = (api.llama_model_imatrix_data * (len(columns) + 1))()
    for entry, (name, values) in zip(table, columns.items(), strict=False):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ScansideError(f"the importance of {name} is not finite; check the checkpoint")
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return table


def check_types(path: Path, name: str) -> None:
    """Hold the type of every tensor in a GGUF file against the quantization that it claims.

    llama.cpp takes another type for a matrix whose rows do not divide into blocks of 256.

    Raises
    ------
    CheckpointError
        A matrix has another type, or a vector is not float32.
    """
    for tensor in gguf.GGUFReader(path).tensors:
        wanted = {"F32"} if len(tensor.shape) == 1 else MATRIX_TYPES[name]
        if tensor.tensor_type.name not in wanted:
            raise CheckpointError(
                f"{tensor.name} with rows of {tensor.shape[0]} became "
                f"{tensor.tensor_type.name}, which is not {name}; k-quants need multiples of 256, "
                "q8_0 of 32; choose another type with --quantize"
            )
