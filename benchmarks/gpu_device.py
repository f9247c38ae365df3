"""The card, its libraries, and the resample kernel of the GPU suite."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from timing import machine

Json = dict[str, Any]
HERE = Path(__file__).resolve().parent
PACKAGES = (
    "onnxruntime-gpu", "llama-cpp-python", "torch", "triton", "diffusers", "transformers",
    "cuda-bindings", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cuda-runtime", "nibabel",
)  # fmt: skip
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,persistence_mode"


def device_part(args: Namespace, _: str) -> Json:
    """Card, driver, versions; a GPU that can be opened."""
    about = machine()
    del about["command"]  # this process's own; the suite tells its
    found: Json = {**about, "packages": {name: _installed(name) for name in PACKAGES}}
    if args.device == "cpu":
        return found
    asked = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    if shutil.which("nvidia-smi"):
        said = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
        found["nvidia_smi"] = dict(zip(QUERY.split(","), said.split(", "), strict=False))
    from scanside.runtime.engines.gpu import Gpu

    gpu = Gpu.open()
    found["capability"] = list(gpu.device.capability)
    gpu.close()
    return found


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


FIRST_WORDS = 40
"""Lines of what compute-sanitizer found first, which the others mostly follow from."""


def smoke_part(args: Namespace, _: str) -> Json:
    """`gpu_smoke.py`: does the shipped bundle decode here, to the same answers as on the CPU?"""
    words = [sys.executable, "-P", str(HERE / "gpu_smoke.py"), "--decodes", "50"]
    done = subprocess.run(words, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode:
        raise SystemExit(f"gpu_smoke.py ended with exit code {done.returncode}")
    return {"said": done.stdout.strip().splitlines()}


def kernel_part(args: Namespace, _: str) -> Json:
    """`resample_gpu.py` with fewer rounds."""
    kept = args.scratch / "parts" / "resample_gpu.json"
    words = [sys.executable, str(HERE / "resample_gpu.py"), str(args.kernels / "kernels")]
    words += ["--rounds", "100", "--json", str(kept)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return json.loads(kept.read_text())


def sanitizer_part(args: Namespace, _: str) -> Json:
    """compute-sanitizer over one launch of every kernel of ours, in every type."""
    words = [str(HERE / "gpu_kernel_once.py"), str(args.kernels / "kernels")]
    return sanitized(("memcheck", "racecheck", "initcheck"), words)


def sanitized_part(args: Namespace, _: str) -> Json:
    """compute-sanitizer over the whole chain, libraries included: what it reads and writes.

    Calls that libraries make to find out what a GPU can do may fail, and are no error here.
    """
    words = [str(HERE / "gpu_chain_once.py")]
    return sanitized(("memcheck",), words, "--report-api-errors", "no")


def sanitized(checks: Sequence[str], words: Sequence[str], *options: str) -> Json:
    """What compute-sanitizer says of a program in Python; SystemExit where it is not clean."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).is_file():
        raise SystemExit("compute-sanitizer is not installed")
    found: Json = {}
    for check in checks:
        before = [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
        command = [*before, *options, sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = (done.stdout + done.stderr).strip().splitlines()
        own = [line for line in lines if line.startswith("=====")]  # the sanitizer's
        row = {"exit_code": done.returncode, "last_words": (own or lines)[-3:]}
        if done.returncode:
            row["first_words"] = own[:FIRST_WORDS]
        found[check] = row
    if any(row["exit_code"] for row in found.values()):
        raise SystemExit(json.dumps(found))
    return found
