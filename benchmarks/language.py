"""How fast does text come from a brain prefix, against transformers with the same weights?

    python benchmarks/language.py --json benchmarks/results/language.json
    python benchmarks/language.py --model tiny --tokens 16 --runs 3      # checks itself in a minute

A random Llama of the preset's size; the prefix is 96, 128 and 257 rows. Contenders are transformers
`generate(inputs_embeds=...)` in float32 and bfloat16, and scanside in q8_0 and q4_k_m. Each has a
process of its own, one after the other, so that its peak memory is its own. Correctness first: a
contender whose logits behind the prompt are too far from float32's is not timed, nor one whose
forked texts are not the fresh ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, percentiles_ms, write

from scanside.export.presets import PRESETS
from scanside.export.quantize import quantised_gguf
from scanside.export.random_checkpoint import write_llm

CONTENDERS = ("transformers fp32", "transformers bf16", "scanside q8_0", "scanside q4_k_m")
PREFIXES = (96, 128, 257)
REUSED = 256
"""Prefix length at which the second question is held against the first."""
CONTENDER = Path(__file__).with_name("language_contender.py")
# Of the largest float32 logit. Random weights lose most to few bits; this finds what is wrong.
TOLERANCE = {"bf16": 0.1, "q8_0": 0.1, "q4_k_m": 0.6}
Json = dict[str, Any]


def prepare(folder: Path, preset: str) -> None:
    """Write the checkpoint, and a GGUF file for each quantisation."""
    llm = folder / "llm"
    llm.mkdir(parents=True, exist_ok=True)
    if not (llm / "config.json").is_file():
        write_llm(PRESETS[preset], llm, 0)
    for name in CONTENDERS:
        library, precision = name.split()
        path = folder / f"{precision}.gguf"
        if library == "scanside" and not path.is_file():
            # what the runtime checks a file's projector against
            quantised_gguf(llm, path, precision, {"projector_sha256": "benchmark"})


def contend(folder: Path, name: str, args: argparse.Namespace) -> Json:
    """Run one contender in a new process."""
    work = [str(CONTENDER), str(folder), *name.split()]
    how = ["--tokens", str(args.tokens), "--runs", str(args.runs), "--threads", str(args.threads)]
    prefixes = ["--prefixes", *map(str, PREFIXES), "--reused", str(REUSED)]
    run = [sys.executable, "-P", *work, *how, *prefixes]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def check(name: str, found: Json, exact: Json) -> float:
    """Largest distance of a contender's logits from float32's, of the largest logit."""
    worst = 0.0
    for prefix, logits in found["logits"].items():
        want = np.asarray(exact["logits"][prefix])
        worst = max(worst, float(np.abs(np.asarray(logits) - want).max() / np.abs(want).max()))
    if found["fork_equals_fresh"] is False:
        raise SystemExit(f"{name}: a forked text is not the one about a fresh volume")
    limit = TOLERANCE.get(name.split()[1], 0.0)
    if worst > limit:
        raise SystemExit(f"{name}: its logits are {worst:.3f} from float32's, allowed is {limit}")
    return worst


def row(name: str, prefix: int, found: Json) -> Json:
    """One line of the table."""
    times = found["runs"][str(prefix)]
    return {
        "contender": name,
        "prefix": prefix,
        "first_token_ms": percentiles_ms([t["first_token_s"] for t in times]),
        "tokens_per_s": round(float(np.median([t["tokens_per_s"] for t in times])), 2),
        "tokens": times[0]["tokens"],
        "peak_mib": round(found["peak_bytes"] / 2**20),
    }


def second_question(name: str, found: Json) -> Json:
    """What a second question about the same volume costs, beside the first."""
    first = percentiles_ms([pair[0] for pair in found["questions_s"]])
    second = percentiles_ms([pair[1] for pair in found["questions_s"]])
    return {
        "contender": name,
        "prefix": REUSED,
        "first_ms": first,
        "second_ms": second,
        "times_shorter": round(first["p50"] / second["p50"], 2),
        "fork_equals_fresh": found["fork_equals_fresh"],
    }


def table(rows: list[Json], questions: list[Json]) -> str:
    """The result for people."""
    lines = [f"{'':18} {'prefix':>6} {'first token':>13} {'tokens/s':>9} {'peak':>10}"]
    lines += [
        f"{r['contender']:18} {r['prefix']:6} {r['first_token_ms']['p50']:10.1f} ms "
        f"{r['tokens_per_s']:9.1f} {r['peak_mib']:6} MiB"
        for r in rows
    ]
    lines += [
        f"{q['contender']}, prefix of {q['prefix']}: first question {q['first_ms']['p50']:.1f} ms, "
        f"second {q['second_ms']['p50']:.1f} ms to the first token, {q['times_shorter']} times less"
        for q in questions
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*PRESETS], default="paper-1b")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--runs", type=int, default=5, help="answers at each prefix length")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for checkpoint and GGUF files, kept")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    about["versions"] |= {name: version(name) for name in ("torch", "transformers")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.work or Path(scratch)
        prepare(folder, args.model)
        found = {name: contend(folder, name, args) for name in CONTENDERS}
    distance = {name: check(name, found[name], found[CONTENDERS[0]]) for name in CONTENDERS}
    rows = [row(name, prefix, found[name]) for prefix in PREFIXES for name in CONTENDERS]
    questions = [second_question(n, found[n]) for n in CONTENDERS if n.startswith("scanside")]
    print(table(rows, questions), file=sys.stderr)
    result = {
        "question": "text from a brain prefix on a CPU, against transformers",
        **about,
        "model": f"random:{args.model}",
        "threads": args.threads,
        "built_for": {name: found[name]["built"] for name in CONTENDERS},
        "distance_from_fp32": {name: round(value, 5) for name, value in distance.items()},
        "rows": rows,
        "second_question": questions,
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
