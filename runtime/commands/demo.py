"""`scanside demo`: decode the shipped trials, write pictures and a page, print a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..demo import Outcome

_ROW = "{:10} {:7} {:7} {:8} {:>8} {:>9} {:>9} {:>8}"
_LEGEND = "named: objects whose colour and shape are named; r: pixel correlation with the scene"
_HEAD = ("trial", "subject", "seen", "mean of", "named", "preview r", "image r", "total ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("scanside-demo"),
        metavar="DIR",
        help="folder for the page and the pictures (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    from ..demo import PAGE, run_demo

    try:
        outcomes = run_demo(args.out, progress=_progress)
    finally:
        _progress("")
    print(table(outcomes))
    print(f"\nThe page with all pictures: {args.out / PAGE}")
    return 0


def _progress(doing: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{doing}", end="", file=sys.stderr, flush=True)


def table(outcomes: list[Outcome]) -> str:
    """What was decoded, three lines a trial."""
    lines = [_ROW.format(*_HEAD)]
    for outcome in outcomes:
        trial, caption = outcome.trial, outcome.caption
        lines += [
            _ROW.format(
                trial.name,
                trial.subject,
                "yes" if trial.seen else "no",
                trial.average_of,
                f"{caption.named} of {caption.objects}",
                f"{outcome.preview_correlation:.2f}",
                f"{outcome.image_correlation:.2f}",
                f"{outcome.total_ms:.0f}",
            ),
            f"  true     {trial.caption}",
            f"  decoded  {''.join(piece.text for piece in caption.pieces)}",
        ]
    return "\n".join([*lines, "", _LEGEND])
