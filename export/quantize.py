"""Quantise a GGUF file with llama.cpp's own quantiser."""

from __future__ import annotations

import ctypes
from pathlib import Path

from ..runtime.errors import InputError, ScansideError
from ..runtime.llama import llama_cpp
from .to_gguf import source_dtype, to_gguf

PLAIN = ("f32", "f16", "bf16")
_QUANTISED = {
    "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K",
    "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M",
    "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M",
}
QUANTIZATIONS = (*PLAIN, *_QUANTISED)


def check_quantization(name: str) -> str:
    """Refuse a name that is not in `QUANTIZATIONS`."""
    if name not in QUANTIZATIONS:
        raise InputError(f"'quantize' must be one of {', '.join(QUANTIZATIONS)}; got {name!r}")
    return name


def quantised_gguf(
    folder: Path, path: Path, name: str, metadata: dict[str, str | int], threads: int = 1
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
    threads : int
        Threads of the quantiser.
    """
    if check_quantization(name) in PLAIN:
        return to_gguf(folder, path, dtype=name, metadata=metadata)
    lossless = path.with_suffix(".lossless.gguf")
    try:
        to_gguf(folder, lossless, dtype=source_dtype(folder), metadata=metadata)
        quantize(lossless, path, name, threads)
    finally:
        lossless.unlink(missing_ok=True)
    return path


def quantize(source: Path, path: Path, name: str, threads: int = 1) -> None:
    """Run `llama_model_quantize`.

    Raises
    ------
    ScansideError
        llama.cpp refused.
    """
    api = llama_cpp()
    params = api.llama_model_quantize_default_params()
    params.ftype = getattr(api, _QUANTISED[name])
    params.nthread = threads
    code = api.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
    if code != 0:
        raise ScansideError(f"llama.cpp could not quantise {source.name} to {name} (code {code})")
