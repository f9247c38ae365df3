"""What this machine and this installation can run, and what is missing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .backends import find_driver, gpu_report
from .bundle import REFERENCE, Bundle
from .devices import stage_devices
from .doctor_bundle import engine_report, memory_report
from .engines.graph_file import GraphFile
from .engines.onnx_cpu import ONLY_ON_A_GPU
from .errors import ScansideError
from .graphs import graphs_of
from .stages import open_stages
from .user_cache import cache_folder

NEEDED = {
    "numpy": "pip install numpy",
    "nibabel": "pip install nibabel",
    "llama-cpp-python": "pip install llama-cpp-python",
    "tokenizers": "pip install tokenizers",
    "pillow": "pip install pillow",
    "jinja2": "pip install jinja2",
}
"""Packages that every decode needs, with the command that adds each."""
EXPORT = ("torch", "transformers", "diffusers", "onnx", "gguf", "safetensors")
"""Packages that only export needs."""
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps a decode from running, and the command that mends it."""

    what: str
    mend: str


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found; sections of name and value, in the order in which they are shown."""

    sections: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    problems: list[Problem] = field(default_factory=list[Problem])


def examine(bundle: str | None) -> Report:
    """Examine the machine, and what would run where if a bundle is named.

    Parameters
    ----------
    bundle : str, optional
        A bundle's folder, or "reference".
    """
    report = Report()
    report.sections["machine"] = _machine()
    report.sections["packages"] = _packages(report.problems)
    report.sections["engines"] = _engines(report.problems)
    driver, wrong = find_driver()
    report.sections["devices"] = gpu_report(driver, wrong)
    if bundle is None:
        return report
    report.sections["bundle"] = found = _bundle(bundle, report.problems)
    if "sha256" in found:  # it opens, so its graphs can be read
        opened, card = Bundle.open(bundle), driver.gpus[0] if driver else None
        report.sections["memory on a GPU"] = memory_report(opened, card)
        if not _only_on_a_gpu(opened):
            report.sections["engines for GPUs"] = engine_report(opened, card)
        elif card is None:
            what = "this bundle runs on an NVIDIA GPU alone, and there is none that can be used"
            mend = "run it on a machine with one, or export it without --fuse cuda"
            report.problems.append(Problem(what, mend))
    return report


def _machine() -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu cores": str(len(os.sched_getaffinity(0))),
        "cache": str(cache_folder()),
        "reference bundle": str(REFERENCE) if REFERENCE.is_dir() else "not installed",
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages(problems: list[Problem]) -> dict[str, str]:
    found: dict[str, str] = {}
    for package, mend in NEEDED.items():
        number = _installed(package)
        found[package] = number or "missing"
        if number is None:
            problems.append(Problem(f"{package} is not installed", mend))
    runtimes = {name: number for name in _RUNTIMES if (number := _installed(name))}
    found |= runtimes or {"onnxruntime": "missing"}
    if not runtimes:
        problems.append(Problem("ONNX Runtime is not installed", "pip install 'scanside[cpu]'"))
    if len(runtimes) > 1:
        problems.append(
            Problem(
                "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
                "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'scanside[cpu]'",
            )
        )
    missing = [package for package in EXPORT if _installed(package) is None]
    found["export"] = (
        f"off, lacks {', '.join(missing)}: pip install 'scanside[export]'" if missing else "on"
    )
    return found


def _engines(problems: list[Problem]) -> dict[str, str]:
    """Loads the engines, since an installed package may still fail to load."""
    found: dict[str, str] = {}
    try:
        import onnxruntime

        found["ONNX Runtime"] = ", ".join(onnxruntime.get_available_providers())
    except Exception as exc:
        found["ONNX Runtime"] = f"does not load: {exc}"
        problems.append(
            Problem("ONNX Runtime does not load", "pip install --force-reinstall 'scanside[cpu]'")
        )
    try:
        from .llama import WITHOUT_AMX, llama_cpp, may_repack

        api: Any = llama_cpp()
        built = api.llama_print_system_info()
        found["llama.cpp"] = " ".join(built.decode().replace(" = 1", "").split())
        if not may_repack(built):
            found["llama.cpp"] += f"; built for AMX, which it cannot use; faster: {WITHOUT_AMX}"
    except Exception as exc:
        found["llama.cpp"] = f"does not load: {exc}"
        problems.append(
            Problem(
                "llama-cpp-python does not load",
                "pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python",
            )
        )
    return found


def _bundle(where: str, problems: list[Problem]) -> dict[str, str]:
    """Opens the bundle and its stages; each stage's file with what would execute it. Graphs that
    only a GPU runs are not opened."""
    try:
        bundle = Bundle.open(where)
        placement = _only_on_a_gpu(bundle)
        if not placement:
            stages = open_stages(bundle, stage_devices("cpu"), threads=1)
            stages.close()
            placement = stages.placement
    except ScansideError as exc:
        shipped = where == "reference"
        mend = "reinstall scanside" if shipped else f"scanside export CHECKPOINT {where}"
        problems.append(Problem(str(exc), mend))
        return {"path": where, "state": "cannot be used"}
    size = sum(spec.size_bytes for spec in bundle.manifest.files.values())
    return {
        "path": str(Path(bundle.root).resolve()),
        "name": bundle.manifest.name,
        "sha256": bundle.sha256,
        "size": f"{size / 1e6:.1f} MB",
        **placement,
    }


def _only_on_a_gpu(bundle: Bundle) -> dict[str, str]:
    """The graphs that ONNX Runtime runs on a GPU alone, with the operators that are why."""
    found: dict[str, str] = {}
    for stage, file in graphs_of(bundle.manifest):
        operators = GraphFile.read(bundle.path(file)).operators
        held = [kind for kind in ONLY_ON_A_GPU if kind in operators]
        if held:
            found[stage] = f"only with --device cuda, for {file} holds {', '.join(held)}"
    return found
