"""Compile the Triton kernel for every architecture, on a machine without a GPU and without torch.

    python -P -m scanside.kernels.ahead_of_time FOLDER

Triton lowers each variant once, to PTX for the oldest architecture; the assembler that comes with
it makes machine code for each of them from that. `compiled.py` reads the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .compiled import CONTRACT_FILE, CompiledKernels, contract
from .variants import ARCHITECTURES, BLOCK, SCRATCH, VARIANTS, WARPS, Variant

_OLDEST = min(ARCHITECTURES)
_PTX_VERSION = 80  # of CUDA 12.0, so that every driver since then can compile it
_SOURCES = (
    "resample_triton.py", "variants.py", "arguments.py", "compiled.py", "ahead_of_time.py",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """A variant as PTX, with its part of the launch contract."""

    ptx: str
    launch: dict[str, Any]


def compile_kernels(
    folder: str | os.PathLike[str],
    variants: Sequence[Variant] = VARIANTS,
    architectures: Sequence[int] = ARCHITECTURES,
) -> Path:
    """Compile variants and write them with their launch contract.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    variants : sequence of Variant
    architectures : sequence of int
        Compute capabilities, ten times.

    Returns
    -------
    folder : Path

    Raises
    ------
    ImportError
        Triton is not installed.
    RuntimeError
        The assembler refused the code.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    targets = [f"sm_{sm}" for sm in architectures]
    codes: dict[str, dict[str, bytes]] = {target: {} for target in (*targets, "ptx")}
    launches: dict[str, Any] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs: dict[tuple[str, str], Future[bytes]] = {}
        for variant in variants:
            lowered = lower(variant)
            launches[variant.name] = lowered.launch
            codes["ptx"][variant.name] = lowered.ptx.encode()
            for target in targets:
                jobs[target, variant.name] = pool.submit(assemble, lowered.ptx, target)
        for (target, name), job in jobs.items():
            codes[target][name] = job.result()
        files = pool.map(_packed, codes.values())
        images = {
            target: _written(folder / f"{target}.tar.xz", packed, codes[target])
            for target, packed in zip(codes, files, strict=True)
        }
    images["ptx"]["capability"] = _OLDEST
    document = {**contract(), **_producer(), "variants": launches, "images": images}
    text = json.dumps(document, indent=2)
    (folder / CONTRACT_FILE).write_text(text + "\n", encoding="utf-8")
    return folder


def cached_kernels(cache: Path) -> Path:
    """A folder of all kernels below `cache`, compiled there if this version has not done so yet."""
    folder = cache / "kernels" / identity()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = compile_kernels(Path(scratch) / "made")
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    return folder


def identity() -> str:
    """Changes with the sources of the kernel, and with triton."""
    digest = hashlib.sha256(_triton().__version__.encode())
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def lower(variant: Variant) -> Lowered:
    """Compile a variant to PTX and read its part of the launch contract."""
    triton = _triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .resample_triton import resample_kernel

    # Nothing is specialised: no argument is assumed to be 1 or to be divisible by 16.
    signature = {n: t if c == 1 else (t,) * c for n, t, c in variant.argument_types()}
    source = ASTSource(resample_kernel, {**signature, "BLOCK": "constexpr"}, {"BLOCK": BLOCK})
    knobs = triton.knobs
    with tempfile.TemporaryDirectory() as scratch, knobs.compilation.scope(), knobs.cache.scope():
        knobs.compilation.disable_line_info = True
        knobs.cache.dir = scratch
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", _OLDEST, 32),
            options={
                "num_warps": WARPS,
                "num_stages": 1,
                "ptx_version": _PTX_VERSION,
                "enable_fp_fusion": True,
            },
        )
    metadata = compiled.metadata
    scratch_bytes = {name: getattr(metadata, f"{name}_size") for name in SCRATCH}
    launch = {
        "volume": variant.volume,
        "tokens": variant.tokens,
        "symbol": metadata.name,
        "warps": metadata.num_warps,
        "shared_bytes": metadata.shared,
        "scratch_bytes": scratch_bytes,
    }
    return Lowered(ptx=compiled.asm["ptx"], launch=launch)


def assemble(ptx: str, target: str) -> bytes:
    """Machine code for one architecture, for example sm_90."""
    with tempfile.TemporaryDirectory() as scratch:
        source, cubin = Path(scratch) / "kernel.ptx", Path(scratch) / "kernel.cubin"
        source.write_text(ptx)
        command = [_triton().knobs.nvidia.ptxas.path, f"-arch={target}", source, "-o", cubin]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ptxas refused the kernel for {target}: {done.stderr.strip()}")
        return cubin.read_bytes()


def _packed(codes: Mapping[str, bytes]) -> bytes:
    """A solid archive: the variants resemble each other."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as archive:
        for name, code in codes.items():
            member = tarfile.TarInfo(name)  # without a time of day: the same code, the same bytes
            member.size = len(code)
            archive.addfile(member, io.BytesIO(code))
    return buffer.getvalue()


def _written(path: Path, packed: bytes, codes: Mapping[str, bytes]) -> dict[str, Any]:
    path.write_bytes(packed)
    hashes = {name: hashlib.sha256(code).hexdigest() for name, code in codes.items()}
    return {"file": path.name, "sha256": hashes}


def _producer() -> dict[str, str]:
    triton = _triton()
    return {"triton": triton.__version__, "ptxas": triton.knobs.nvidia.ptxas.version}


def _triton() -> Any:
    try:
        import triton
    except ImportError as exc:
        raise ImportError(
            "compiling the kernels needs triton; run: pip install 'scanside[export]'"
        ) from exc
    return triton


def main(argv: Sequence[str] | None = None) -> int:
    """Compile into the folder that is named."""
    parser = argparse.ArgumentParser(description="Compile the resample kernel for every GPU.")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    folder = compile_kernels(parser.parse_args(argv).folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    count = CompiledKernels.open(folder).check()
    print(f"{folder}: {count} binaries, {size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
