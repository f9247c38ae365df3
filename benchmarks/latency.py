"""How long from a volume's arrival to each answer of the reference bundle?

    python benchmarks/latency.py --json benchmarks/results/latency.json

Correctness first: the bundle is verified before it is timed. Warm decodes of the shipped trials, in
turn; import and open in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from timing import ROOT, machine, percentiles_ms, write

from scanside.runtime import Decoder
from scanside.runtime.cli import main as scanside

DEADLINES_S = (0.2, 0.6, 0.8, 1.6)
"""Shares of decodes that took longer are reported: the target, and usual repetition times."""
TRIALS = ROOT / "runtime/reference/trials"


def fresh(statement: str, runs: int) -> list[float]:
    """Seconds that a statement takes in a new process, Python's own start apart."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    run = [sys.executable, "-P", "-c", code]
    return [
        float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
        for _ in range(runs)
    ]


def decodes(bundle: str, runs: int, threads: int) -> dict[str, Any]:
    """Times of whole decodes, and of each stage, in milliseconds."""
    rows = json.loads((TRIALS / "trials.json").read_text())["trials"]
    files = [str(TRIALS / row["volume"]) for row in rows]
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    with Decoder.open(bundle, threads=threads) as decoder:
        for i in range(runs + 5):
            start = time.perf_counter()
            result = decoder.decode(files[i % len(files)], tasks=("preview", "caption", "image"))
            if i < 5:
                continue
            totals.append(time.perf_counter() - start)
            for stage, ms in result.latency_ms.items():
                stages.setdefault(stage, []).append(ms / 1000)
    return {
        "decode_ms": percentiles_ms(totals),
        "missed": {f"{d:g} s": float(np.mean(np.array(totals) > d)) for d in DEADLINES_S},
        "stages_ms": {stage: percentiles_ms(values) for stage, values in stages.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The same for people."""
    rows = {
        "import": result["import_ms"],
        "import and open": result["import_and_open_ms"],
        "decode": result["decode_ms"],
        **result["stages_ms"],
    }
    lines = [f"{'ms':24}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}"]
    for name, row in rows.items():
        cells = (f"{row[k]:9.1f}" if k in row else f"{'':9}" for k in ("p50", "p95", "p99", "max"))
        lines.append(f"{name:24}{''.join(cells)}")
    missed = (f"{share:.1%} over {limit}" for limit, share in result["missed"].items())
    return "\n".join([*lines, "decodes that were late: " + ", ".join(missed)])


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="reference")
    parser.add_argument("--runs", type=int, default=200, help="warm decodes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    if scanside(["verify", args.bundle]) != 0:
        return 1
    opened = f"from scanside.runtime import Decoder; Decoder.open({args.bundle!r})"
    result: dict[str, Any] = {
        "question": "latency of the reference bundle on a CPU",
        **about,
        "threads": args.threads,
        "import_ms": percentiles_ms(fresh("import scanside.runtime", 7)),
        "import_and_open_ms": percentiles_ms(fresh(opened, 7)),
        **decodes(args.bundle, args.runs, args.threads),
    }
    print(table(result), file=sys.stderr)
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
