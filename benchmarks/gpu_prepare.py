"""What the GPU suite has to make before it can time: weights, answers of the CPU, a GGUF file."""

from __future__ import annotations

import json
import os
import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from hollow_graph import fill, weights_file

from scanside.export.fusing import FUSIONS

Json = dict[str, Any]
NETWORKS = ("encoder", "preview_decoder", "unet", "vae_decoder")
LANGUAGES = ("q4_k_m", "f16")
SPOKEN = "f16"
"""The one that the whole decoder is measured with."""


def weights_part(args: Namespace, _: str) -> Json:
    """Copy the bundle, draw what its graphs left out, and let the CPU answer first."""
    began = time.perf_counter()
    folder = args.scratch / "full"
    shutil.copytree(args.full, folder, dirs_exist_ok=True)
    kernels = args.kernels / "kernels"
    shutil.copytree(kernels, folder / "kernels", dirs_exist_ok=True)  # as the code wants them now
    written = fill(folder)
    drawn_s = time.perf_counter() - began
    from gpu_networks import answer_on_cpu

    took: Json = {}
    for name in NETWORKS:
        began = time.perf_counter()
        answer_on_cpu(args, name, args.threads)
        took[name] = round(time.perf_counter() - began, 1)
    wanted = list(FUSIONS) if args.fuse is None else args.fuse
    fused = fuse(folder, wanted)  # the CPU has not every operator, and has answered by now
    list_files(folder)
    return {
        "gb": round(written / 1e9, 2),
        "drawn_s": round(drawn_s, 1),
        "cpu_answers_s": took,
        "fused": fused,
    }


def fuse(folder: Path, wanted: list[str]) -> Json:
    """Make parts of the graphs one operator each; what became of them, by graph.

    SystemExit for a fusion that there is not.
    """
    unknown = [name for name in wanted if name not in FUSIONS]
    if unknown:
        raise SystemExit(f"there is no fusion {', '.join(unknown)}, only {', '.join(FUSIONS)}")
    found: Json = {}
    there = [name for name in NETWORKS if (folder / f"{name}.onnx").is_file()]
    for name in there if wanted else ():
        plain = folder / f"{name}_plain.onnx"
        if plain.is_file():
            shutil.copyfile(plain, folder / f"{name}.onnx")
        else:
            shutil.copyfile(folder / f"{name}.onnx", plain)
        for part, fuse_file in FUSIONS.items():
            if part in wanted:
                found[f"{part} of {name}"] = str(fuse_file(folder / f"{name}.onnx"))
    return found


def plain_file(folder: Path, name: str) -> Path:
    """A graph as the exporter wrote it."""
    kept = folder / f"{name}_plain.onnx"
    return kept if kept.is_file() else folder / f"{name}.onnx"


def list_files(folder: Path) -> None:
    """Bring the manifest's list of files to what is there now, weights included."""
    from scanside.runtime.user_cache import sha256_of

    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    files: Json = {}
    for name, entry in document["files"].items():
        for path in (folder / name, weights_file(folder / name)):
            if path.is_file():
                about = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
                files[str(path.relative_to(folder))] = {**entry, **about}
    manifest.write_text(json.dumps(document | {"files": files}, indent=1))


def gguf_part(args: Namespace, _: str) -> Json:
    """Language models of 8B parameters: quantised, and in half precision."""
    from random_gguf import SMALL, Shape, write

    result: Json = {}
    for quantization in LANGUAGES:
        began = time.perf_counter()
        path = language_file(args.scratch, quantization)
        part = path.with_suffix(".part")
        shape = SMALL if args.small else Shape()
        size = write(args.full / "tokenizer", part, shape, 257, quantization)
        part.replace(path)
        result[quantization] = {
            "bytes": size,
            "written_s": round(time.perf_counter() - began, 1),
        }
    return result


def spoken_bundle(scratch: Path) -> Path:
    """The full-size bundle with the language model of 8B parameters in the place of the toy.

    Files are hard links, so that nothing is copied and weights lie beside their graphs.
    """
    from random_gguf import PROJECTOR

    from scanside.runtime.user_cache import HashMemory

    full, spoken = scratch / "full", scratch / "spoken"
    shutil.rmtree(spoken, ignore_errors=True)
    shutil.copytree(full, spoken, copy_function=os.link)
    document = json.loads((full / "manifest.json").read_text())
    told = document["language"]
    path = spoken / told["file"]
    path.unlink()
    os.link(language_file(scratch, SPOKEN), path)
    memory = HashMemory()
    about = {"bytes": path.stat().st_size, "sha256": memory.sha256(path)}
    memory.save()
    document["files"][told["file"]] |= about
    document["language"] = told | {"projector_sha256": PROJECTOR, "quantization": SPOKEN}
    manifest = spoken / "manifest.json"
    manifest.unlink()  # else the other one's, too
    manifest.write_text(json.dumps(document, indent=1))
    return spoken


def language_file(scratch: Path, quantization: str) -> Path:
    """Where a language model is written."""
    return scratch / f"language_{quantization}.gguf"
