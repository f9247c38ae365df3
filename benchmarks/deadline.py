"""Does a decode keep its deadline, and is there always a picture?

    python benchmarks/deadline.py --json benchmarks/results/deadline.json

The shipped trials in turn, deadlines spread evenly on a logarithmic scale and shuffled. Caption,
written prompt, preview and picture: once as by default, and once greedy, with 50 steps and more
candidates than fit, so that every deadline ends something.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from timing import ROOT, machine, percentiles_ms, write

from scanside.runtime import Decoder

SHORTEST_S, LONGEST_S = 0.2, 3.0
TRIALS = ROOT / "runtime/reference/trials"
MODES: dict[str, dict[str, int]] = {
    "default": {},
    "greedy": {"steps": 50, "candidates": 1000},
}


def decode_all(decoder: Decoder, volumes: int, options: dict[str, int]) -> dict[str, Any]:
    """Decode against deadlines; how late, how often, and what came of it."""
    rows = json.loads((TRIALS / "trials.json").read_text())["trials"]
    deadlines = np.geomspace(SHORTEST_S, LONGEST_S, volumes)
    np.random.default_rng(0).shuffle(deadlines)
    over, pictures, steps, candidates, missing = [], 0, [], [], 0
    for i, deadline in enumerate(deadlines):
        path = TRIALS / rows[i % len(rows)]["volume"]
        began = time.perf_counter()
        result = decoder.decode(
            path, ("preview", "caption", "image"), deadline_s=float(deadline), seed=i, **options
        )
        over.append(time.perf_counter() - began - deadline)
        missing += result.preview is None and result.image is None
        pictures += result.image is not None
        steps.append(result.steps or 0)
        candidates.append(len(result.candidates))
    late = np.maximum(over, 0)
    return {
        "volumes": volumes,
        "late_by_over_5_percent_and_20_ms": float(
            np.mean(late > np.maximum(0.05 * deadlines, 0.02))
        ),
        "late_by_over_5_percent_or_20_ms": float(
            np.mean((late > 0.05 * deadlines) | (late > 0.02))
        ),
        "late_at_all": float(np.mean(late > 0)),
        "late_ms": percentiles_ms(late.tolist()),
        "left_ms": percentiles_ms((-np.minimum(over, 0)).tolist()),
        "without_any_picture": missing,
        "denoised": pictures,
        "steps_median": float(np.median(steps)),
        "candidates_median": float(np.median(candidates)),
    }


def main() -> int:
    """Decode, count, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="reference")
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about, found = machine(), {}
    with Decoder.open(args.bundle, threads=args.threads) as decoder:
        modes = MODES if decoder.stages.pictures and decoder.stages.pictures.ranker else {}
        for name, options in (modes or {"default": MODES["default"]}).items():
            found[name] = decode_all(decoder, args.volumes, options)
            late = found[name]["late_by_over_5_percent_or_20_ms"]
            print(f"{name}: {late:.1%} of {args.volumes} are late", file=sys.stderr)
    result = {
        "question": "deadlines of whole decodes, reference bundle",
        **about,
        "threads": args.threads,
        "deadlines_s": [SHORTEST_S, LONGEST_S],
        **found,
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
