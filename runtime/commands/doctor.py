"""`scanside doctor [BUNDLE]`: what would run where on this machine, and what is missing."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ..machine import Report, examine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", nargs="?", help="a bundle's folder, or 'reference'"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 if something keeps a decode from running."""
    report = examine(args.bundle)
    print(json.dumps(asdict(report), ensure_ascii=False) if args.json else _readable(report))
    return 1 if report.problems else 0


def _readable(report: Report) -> str:
    lines: list[str] = []
    for title, entries in report.sections.items():
        width = max(map(len, entries))
        lines += [title, *(f"  {name.ljust(width)}  {value}" for name, value in entries.items())]
    for problem in report.problems:
        lines += ["", f"problem: {problem.what}", f"  mend:  {problem.mend}"]
    lines += [] if report.problems else ["", "everything that a decode needs is there"]
    return "\n".join(lines)
