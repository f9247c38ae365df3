"""`scanside report DIR`: the page of a run, heat maps of its trials, its derivatives as BIDS."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of a run")
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="the page (default: DIR/report.html)")
    add(
        "--locate",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="make a heat map of it for every trial first; may be repeated",
    )
    add(
        "--bundle",
        default="reference",
        metavar="BUNDLE",
        help="the bundle that decoded the run, for --locate (default: reference)",
    )
    add("--threads", type=int, default=2, metavar="N", help="CPU threads (default: 2)")
    group = parser.add_argument_group("BIDS derivatives").add_argument
    group("--bids", type=Path, metavar="DIR", help="write them here instead of a page")
    group("--subject", default="01", metavar="LABEL", help="sub-LABEL (default: 01)")
    group("--session", metavar="LABEL", help="ses-LABEL (default: none)")
    group("--task-label", default="decoding", metavar="LABEL", help="task-LABEL")
    group("--run", type=int, default=1, metavar="N", help="run-N (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Write the page, or the derivatives, and say where."""
    from ..report.dataset import Names
    from ..report.derivatives import write_derivatives
    from ..report.page import write_report
    from ..report.story import read_story

    if args.locate:
        from ..decoder import Decoder
        from ..report.heat import locate

        story = read_story(args.folder)
        with Decoder.open(args.bundle, threads=args.threads) as decoder:
            print(f"{locate(story, decoder, args.locate)} heat maps")
    if args.bids is not None:
        names = Names(
            subject=args.subject, session=args.session, task=args.task_label, run=args.run
        )
        files = write_derivatives(read_story(args.folder), args.bids, names)
        print(f"{len(files)} files: {args.bids}")
    if args.bids is None or args.out is not None:
        print(write_report(args.folder, args.out))
    return 0
