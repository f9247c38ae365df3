"""How well does each quantization answer each kind of dialogue on the reference world?

    python benchmarks/dialogue_scores.py --json benchmarks/results/dialogue_scores.json

240 held-out trials for each condition take about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from timing import ROOT, machine, write

from scanside.export.reference.dialogue_scores import (
    QUANTIZATIONS,
    TRIALS,
    carry,
    score_dialogues,
)

CONDITION = "seen, mean of three"
TARGETS = {"attribute": 0.9, "relation": 0.8, "count": 0.8, "dialogue": 0.8}
"""Least share of right answers, in `CONDITION`."""
Json = dict[str, Any]


def table(scores: Json) -> str:
    """Share of right answers by kind and quantization, as markdown."""
    names = [model["quantization"] for model in scores["models"]]
    rows = [row for row in scores["rows"] if row["condition"] == CONDITION]
    found = {(row["kind"], row["quantization"]): row for row in rows}
    lines = [f"| {CONDITION} | {' | '.join(names)} | chance | target |"]
    lines += ["|---" * (len(names) + 3) + "|"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        right = [f"{found[kind, name]['right']:.3f}" for name in names]
        chance = f"{found[kind, names[0]]['chance']:.3f}"
        lines.append(f"| {kind} | {' | '.join(right)} | {chance} | {TARGETS.get(kind, '')} |")
    for metric, chance in (("bleu_4", "BLEU-4"), ("rouge_l", "ROUGE-L"), ("cider", "CIDEr")):
        for kind in dict.fromkeys(row["kind"] for row in rows if metric in row):
            values = [f"{found[kind, name][metric]:.1f}" for name in names]
            other = f"{found[kind, names[0]][f'chance_{metric}']:.1f}"
            lines.append(f"| {kind}, {chance} | {' | '.join(values)} | {other} | |")
    for what in ("tokens_per_s", "bytes"):
        values = [f"{model[what]:,.0f}" for model in scores["models"]]
        lines.append(f"| {what.replace('_', ' ')} | {' | '.join(values)} | | |")
    return "\n".join(lines)


def main() -> int:
    """Score, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "runtime/reference/bundle")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "export/reference/checkpoint")
    parser.add_argument("--trials", type=int, default=TRIALS, help="for each condition")
    parser.add_argument("--quantize", default=",".join(QUANTIZATIONS), help="comma-separated")
    parser.add_argument("--carry", action="store_true", help="put them into quality.json as well")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    scores = score_dialogues(args.bundle, args.checkpoint, args.trials, args.quantize.split(","))
    print(table(scores), file=sys.stderr)
    if args.carry:
        carry(args.checkpoint, scores)
    question = "right answers by kind of dialogue and quantization on the reference world"
    write({"question": question, **about, **scores}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
