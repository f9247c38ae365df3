"""Does a language model of 8B parameters go through export, and answer, in 24 GB?

    python benchmarks/full_size_language.py --work DIR --json benchmarks/results/full_size.json

Four stages, each in a process of its own, whose memory is sampled while it runs: `write` makes a
sharded random checkpoint of Llama-3-8B's shape; `convert` reads it shard by shard into one lossless
GGUF and sees its importance matrix; `quantize` is llama.cpp's; `answer` opens the file and answers
about two volumes. DIR needs 45 GB. A stage that is done is not done again, so that a run can be cut
in pieces with `--until`; with `--model tiny` it checks itself in a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, write

from scanside.runtime.language import LanguageModel
from scanside.runtime.manifest import LanguageSpec
from scanside.runtime.manifest_reader import read_template

QUANTIZATION = "q4_k_m"
PREFIX_ROWS = 96
ANSWER_TOKENS = 24
QUESTIONS = ("Describe the following image in detail.", "Describe the image concisely.")
PROJECTOR = "benchmark"
Json = dict[str, Any]


def random_prefix(folder: Path, seed: int) -> np.ndarray:
    """(96, width) float32 rows of the size that random embeddings have."""
    width = json.loads((folder / "llm/config.json").read_text())["hidden_size"]
    rng = np.random.default_rng(seed)
    return (0.02 * rng.standard_normal((PREFIX_ROWS, width))).astype(np.float32)


def dialogue(folder: Path) -> Json:
    """Template, instructions and limits of the checkpoint."""
    return json.loads((folder / "llm/dialogue.json").read_text())


def write_checkpoint(folder: Path, preset: str) -> Json:
    """The Hugging Face directory."""
    from scanside.export.presets import PRESETS
    from scanside.export.random_checkpoint import write_llm

    (folder / "llm").mkdir(parents=True, exist_ok=True)
    write_llm(PRESETS[preset], folder / "llm", 0)
    files = list((folder / "llm").glob("*.safetensors"))
    return {"shards": len(files), "bytes": sum(file.stat().st_size for file in files)}


def convert(folder: Path, _: str) -> Json:
    """The lossless GGUF, and the importance matrix through layers that are read one by one."""
    from scanside.export.importance import importance
    from scanside.export.streamed_llm import open_streamed
    from scanside.export.to_gguf import source_dtype, to_gguf
    from scanside.export.torch_language import TorchLanguage

    path = folder / "lossless.gguf"
    known: dict[str, str | int] = {"projector_sha256": PROJECTOR}
    to_gguf(folder / "llm", path, dtype=source_dtype(folder / "llm"), metadata=known)
    converted_at = time.perf_counter()
    language = TorchLanguage(folder, dialogue(folder))
    vars(language)["llm"] = open_streamed(folder / "llm")
    seen = importance(language, random_prefix(folder, 0)[None], [{}])
    np.savez(folder / "importance.npz", allow_pickle=False, **dict(seen.columns))
    return {
        "bytes": path.stat().st_size,
        "importance_tokens": seen.tokens,
        "importance_s": time.perf_counter() - converted_at,
    }


def quantize(folder: Path, _: str) -> Json:
    """llama.cpp's quantiser, steered by the importance matrix; every tensor's type is checked."""
    from scanside.export.quantize import quantize as run_quantizer

    with np.load(folder / "importance.npz", allow_pickle=False) as archive:
        columns = dict(archive)
    path = folder / f"{QUANTIZATION}.gguf"
    run_quantizer(folder / "lossless.gguf", path, QUANTIZATION, columns=columns)
    return {"quantization": QUANTIZATION, "bytes": path.stat().st_size}


def answer(folder: Path, _: str) -> Json:
    """Open as the runtime does; two volumes, two questions each."""
    prefixes = [random_prefix(folder, seed) for seed in (1, 2)]
    spec = LanguageSpec(
        file=f"{QUANTIZATION}.gguf",
        quantization=QUANTIZATION,
        context=512,
        prefix_length=PREFIX_ROWS,
        width=prefixes[0].shape[1],
        template=read_template(dialogue(folder)["template"]),
        instructions={},
        max_tokens={},
        projector_sha256=PROJECTOR,
    )
    began = time.perf_counter()
    with closing(LanguageModel(folder / spec.file, spec, threads=2)) as language:
        found: Json = {"open_s": time.perf_counter() - began, "answers": []}
        for prefix in prefixes:
            began = time.perf_counter()
            language.attend(prefix)
            attended_s = time.perf_counter() - began
            for question in QUESTIONS:
                told = language.answer(question, limit=ANSWER_TOKENS)
                told.read()
                found["answers"].append(
                    {
                        "tokens": len(told.tokens),
                        "first_token_s": attended_s + told.first_token_s,
                        "tokens_per_s": 1 / told.token_s,
                        "log_prob": told.mean_log_prob,
                    }
                )
                attended_s = 0.0
    return found


STAGES: dict[str, Callable[[Path, str], Json]] = {
    "write": write_checkpoint,
    "convert": convert,
    "quantize": quantize,
    "answer": answer,
}


def resident(pid: int) -> dict[str, int]:
    """Bytes that a process holds now: anonymous memory, and pages of mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {key: 1024 * int(found.get(key, 0)) for key in ("RssAnon", "RssFile")}


def measured(work: Path, stage: str, preset: str) -> Json:
    """Run a stage in a new process, sampling its memory every 20 ms."""
    began = time.perf_counter()
    run = [sys.executable, __file__, "--work", str(work), "--model", preset, "--stage", stage]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
    most = {"RssAnon": 0, "RssFile": 0}
    while process.poll() is None:
        try:
            now = resident(process.pid)
        except (FileNotFoundError, ProcessLookupError):
            break
        most = {key: max(value, now[key]) for key, value in most.items()}
        time.sleep(0.02)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"stage {stage} failed with code {process.returncode}")
    spent = {
        "stage": stage,
        "seconds": round(time.perf_counter() - began, 1),
        "anonymous_mib": most["RssAnon"] >> 20,
        "mapped_mib": most["RssFile"] >> 20,
    }
    return spent | json.loads(out)


def main() -> int:
    """Run what is not done, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for 45 GB, kept")
    parser.add_argument("--model", choices=["tiny", "paper-1b", "paper"], default="paper")
    parser.add_argument("--until", choices=[*STAGES], default="answer", help="last stage to run")
    parser.add_argument("--stage", choices=[*STAGES], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(STAGES[args.stage](args.work, args.model)))
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    about = machine()
    about["versions"] |= {name: version(name) for name in ("torch", "transformers", "gguf")}
    rows: list[Json] = []
    for stage in STAGES:
        kept = args.work / f"{stage}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(measured(args.work, stage, args.model)))
        rows.append(json.loads(kept.read_text()))
        print(rows[-1], file=sys.stderr)
        if stage == args.until:
            break
    total = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    question = "export and answers of a language model of 8B parameters in 24 GB"
    result = {"question": question, **about, "model": f"random:{args.model}"}
    write(result | {"machine_mib": total, "stages": rows}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
