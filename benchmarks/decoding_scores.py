"""How well does the compiled reference bundle decode, beside PyTorch, the oracle and chance?

    python benchmarks/decoding_scores.py --json benchmarks/results/decoding_scores.json

500 held-out trials for each condition take about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from timing import ROOT, machine, write

from scanside.export.reference.scores import TRIALS, score


def main() -> int:
    """Score, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "runtime/reference/bundle")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "export/reference/checkpoint")
    parser.add_argument("--trials", type=int, default=TRIALS, help="for each condition")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    scores = score(args.bundle, args.checkpoint, args.trials, args.processes)
    write({"question": "decoding scores on the reference world", **about, **scores}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
