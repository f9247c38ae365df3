"""Which CUDA a shared library was linked with, read from its file without loading it.

Loading a library of the wrong CUDA can end the process, so doctor reads what its file asks for:
the names under DT_NEEDED of its dynamic section, of which `libcudart.so.13` carries the major.

https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.dynamic.html
"""

from __future__ import annotations

import importlib.util
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

_LIBRARIES = (
    ("onnxruntime", "onnxruntime", "capi/libonnxruntime_providers_cuda.so"),
    ("llama.cpp", "llama_cpp", "lib/libggml-cuda.so"),
    ("torch", "torch", "lib/libc10_cuda.so"),
)
"""Name to show, package, and the file in it that is linked with CUDA where the package has one."""
_CARRIES = re.compile(r"lib(?:cudart|cublas|cublasLt|nvrtc)\.so\.(\d+)$")
_LOAD, _DYNAMIC = 1, 2
"""Types of program headers."""
_NEEDED, _STRINGS = 1, 5
"""Tags of the dynamic section: DT_NEEDED, DT_STRTAB."""


def library_majors() -> dict[str, int]:
    """The CUDA major that each installed library is linked with."""
    found: dict[str, int] = {}
    for name, package, file in _LIBRARIES:
        path = _inside(package, file)
        major = path and cuda_major_of(path)
        if major:
            found[name] = major
    return found


def cuda_major_of(path: Path) -> int | None:
    """The CUDA major that a shared library asks for; None where it asks for none.

    Raises
    ------
    ValueError
        No 64-bit ELF file.
    """
    majors = [int(told[1]) for name in needed(path) if (told := _CARRIES.match(name))]
    return max(majors, default=None)


def needed(path: Path) -> list[str]:
    """Names of the shared libraries that a shared library asks for.

    Raises
    ------
    ValueError
        No 64-bit ELF file.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if file[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is no 64-bit ELF file")
        try:
            return _needed(file)
        except struct.error as exc:
            raise ValueError(f"{path} ends early") from exc


def _needed(file: mmap.mmap) -> list[str]:
    headers = list(_program_headers(file))
    dynamic = next((h for h in headers if h[0] == _DYNAMIC), None)
    if dynamic is None:
        return []
    _, offset, _, size = dynamic
    entries = [struct.unpack_from("<qQ", file, at) for at in range(offset, offset + size, 16)]
    address = next((value for tag, value in entries if tag == _STRINGS), 0)
    strings = next(
        (address - at + start for kind, start, at, length in headers
         if kind == _LOAD and at <= address < at + length),
        address,
    )  # fmt: skip
    names: list[str] = []
    for tag, value in entries:
        if tag == _NEEDED:
            begin = strings + value
            names.append(file[begin : file.find(b"\0", begin)].decode(errors="replace"))
    return names


def _program_headers(file: mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """Type, offset in the file, address in memory and size in the file of each."""
    (start,) = struct.unpack_from("<Q", file, 32)
    size, count = struct.unpack_from("<HH", file, 54)
    for number in range(count):
        kind, _, offset, address, _, length = struct.unpack_from(
            "<IIQQQQ", file, start + number * size
        )
        yield kind, offset, address, length


def _inside(package: str, file: str) -> Path | None:
    """A file of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / file
        if path.is_file():
            return path
    return None
