"""`scanside replay FILE --to DIR`: a recorded run, written as a scanner would, with faults."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import InputError
from ..realtime.faults import FaultRequest, Mishap, plan_run
from ..realtime.mosaic_writer import MosaicWriter
from ..realtime.replay import Manner, Player
from ..realtime.run_file import RunFile
from ..realtime.volume_writer import NiftiWriter

_FORMATS = ("nifti", "nifti-gz", "mosaic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="a 4-D BOLD run, .nii or .nii.gz")
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="where files are written; new or empty"
    )
    parser.add_argument(
        "--tr", type=float, metavar="SECONDS", help="repetition time (default: the file's own)"
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="X", help="times faster than real (default: 1)"
    )
    parser.add_argument(
        "--format", choices=_FORMATS, default="nifti", help="of the files (default: nifti)"
    )
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="write files under their own name, in two pieces, instead of renaming whole ones",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="KIND[:AMOUNT][@VOLUME]",
        help=f"may be given several times; {', '.join(Mishap)}",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="which volumes faults fall on (default: 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Play the run; one JSON object a line says what was done."""
    recorded = RunFile(args.file)
    tr_s = args.tr if args.tr is not None else recorded.tr_s
    if tr_s is None:
        raise InputError(f"{args.file} states no repetition time; give it with --tr SECONDS")
    manner = Manner(tr_s=tr_s, speed=args.speed, in_place=args.in_place)
    plan = plan_run(recorded.volumes, [FaultRequest.parse(text) for text in args.fault], args.seed)
    if args.format == "mosaic":
        writer = MosaicWriter(f"{recorded.path.resolve()} {args.seed}")
    else:
        writer = NiftiWriter(compressed=args.format == "nifti-gz")
    player = Player(recorded, plan, writer, Path(args.to), manner)
    for telling in player.play():
        print(json.dumps(telling), flush=True)
    return 0
