"""`scanside bench BUNDLE`: how long from a volume's arrival to each answer, and what it takes."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bench.comparison import changes, check_comparable, read_old, table, verdict
from ..bench.measure import measure
from ..bench.plan import Plan
from ..bench.report import report
from ..bench.warm import progress
from ..request import task_list
from .decode import DEVICE_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    plan = Plan(bundle="reference")
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder, or 'reference'")
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="BUNDLE",
        help="another bundle that takes turns with it; may be repeated",
    )
    parser.add_argument(
        "--volume",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a beta volume; may be repeated (default: those that come with the bundle)",
    )
    parser.add_argument(
        "--task",
        type=task_list,
        default=(),
        metavar="LIST",
        help="comma-separated (default: preview,caption,image, as far as the bundle can)",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps (default: the bundle's)"
    )
    for flag, default, text in (
        ("--runs", plan.runs, "timed rounds; p99 needs 100, p99.9 needs 1000"),
        ("--warm-up", plan.warm_up, "rounds before that are not timed"),
        ("--cold", plan.cold, "new processes, for cold start and memory"),
        ("--threads", plan.threads, "CPU threads"),
        ("--seed", plan.seed, "of the order of the variants"),
    ):
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument(
        "--tr",
        type=_seconds,
        default=plan.tr_s,
        metavar="SECONDS",
        help="comma-separated repetition times (default: 0.8,1,1.5,2)",
    )
    parser.add_argument("--device", default="cpu", metavar="D", help=DEVICE_HELP)
    parser.add_argument(
        "--json", metavar="FILE", help="write one JSON object; - prints it and nothing else"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OLD.json",
        help="hold it against an older run on this machine; exit code 1 if anything is worse",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=5.0,
        metavar="PERCENT",
        help="change that counts as none, beside the noise (default: 5)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, keep, compare; 1 if the comparison finds anything worse."""
    plan = Plan(
        bundle=args.bundle,
        beside=tuple(args.beside),
        volumes=tuple(args.volume),
        tasks=args.task,
        steps=args.steps,
        runs=args.runs,
        warm_up=args.warm_up,
        cold=args.cold,
        tr_s=args.tr,
        device=args.device,
        threads=args.threads,
        seed=args.seed,
    )
    old = read_old(args.compare) if args.compare else None
    document = {**measure(plan, progress), "command": shlex.join(["scanside", *_words(args)])}
    found = None
    if old is not None:
        check_comparable(old, document)
        found = changes(old, document, args.tolerance / 100)
        document["comparison"] = {
            "with": {key: old.get(key) for key in ("commit", "date", "versions")},
            "under_load": [old[part]["under_load"] for part in ("warm", "cold")],
            "verdict": verdict(found),
            "changes": [asdict(change) for change in found],
        }
    if args.json == "-":
        print(compact(document))
    else:
        print(report(document))
        if found is not None:
            print(f"\n{table(found)}\nverdict: {verdict(found)}")
        if args.json:
            Path(args.json).write_text(compact(document) + "\n", encoding="utf-8")
    return 1 if found is not None and verdict(found) == "worse" else 0


def _seconds(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seconds") from exc


def _words(args: argparse.Namespace) -> list[str]:
    """What was typed; in a program that calls `main` itself, at least the verb and the bundle."""
    return sys.argv[1:] if "bench" in sys.argv else ["bench", args.bundle]


def compact(document: dict[str, Any]) -> str:
    """JSON with indentation, but lists of numbers on one line."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    numbers = re.compile(r"\[\s+((?:-?[\d.eE+-]+,\s+)*-?[\d.eE+-]+)\s+\]")
    return numbers.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
