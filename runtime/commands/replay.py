"""`scanside replay FILE --to DIR`: a recorded run, written as a scanner would, with faults.

FILE may be `reference:PATH`: a run of the reference world is simulated into PATH, with its events
beside it, and played if `--to` says where.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import InputError
from ..realtime.access import TOKEN_VARIABLE, read_token
from ..realtime.faults import FaultRequest, Mishap, plan_run
from ..realtime.network_player import NetworkPlayer
from ..realtime.replay import Manner, Player, Playing
from ..realtime.run_file import open_run
from ..realtime.sender_opening import is_network, open_sender
from ..realtime.simulated_run import SimulatedRun, Simulation
from ..realtime.writers import FORMATS, make_writer

_SIMULATED = "reference:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a BOLD run: 4-D .nii or .nii.gz, or the .PAR of a PAR/REC; reference:FILE simulates "
        "one, and its events, first",
    )
    parser.add_argument(
        "--to",
        metavar="DIR|KIND:[HOST:]PORT",
        help="a folder for the files, new or empty; or a receiver: afni, zmq or dicom, and a port",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"token of a zmq receiver on another machine (default: {TOKEN_VARIABLE} if it is set)",
    )
    parser.add_argument(
        "--tr", type=float, metavar="SECONDS", help="repetition time (default: the file's own)"
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="X", help="times faster than real (default: 1)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="of the files (default: nifti; mosaic for dicom)"
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
    simulated = parser.add_argument_group("a simulated run")
    simulated.add_argument(
        "--volumes", type=int, default=200, metavar="N", help="its length (default: 200)"
    )
    simulated.add_argument(
        "--grid", type=_grid, default="64x64x36", metavar="XxYxZ", help="(default: 64x64x36)"
    )
    simulated.add_argument(
        "--motion", type=float, default=0.5, metavar="MM", help="how far the head wanders"
    )
    simulated.add_argument(
        "--noise", type=float, default=0.5, metavar="PERCENT", help="of each voxel (default: 0.5)"
    )


def _grid(text: str) -> tuple[int, int, int]:
    sizes = [int(size) for size in text.split("x")]
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 64x64x36")
    return sizes[0], sizes[1], sizes[2]


def run(args: argparse.Namespace) -> int:
    """Play the run; one JSON object a line says what was done."""
    path = Path(args.file)
    if args.file.startswith(_SIMULATED):
        path = Path(args.file.removeprefix(_SIMULATED))
        events = _simulate(args, path)
        print(json.dumps({"event": "simulated", "file": str(path), "events": str(events)}))
    if args.to is not None:
        return _play(args, path)
    if args.file.startswith(_SIMULATED):
        return 0
    raise InputError("say with --to where the run is to be written")


def _simulate(args: argparse.Namespace, path: Path) -> Path:
    if path.exists():
        raise InputError(f"{path} is there already; name another file, or play it as it is")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: a simulated run is written as .nii or .nii.gz")
    shape = args.grid
    voxel_mm = (192 / shape[0], 192 / shape[1], 130 / shape[2])
    simulation = Simulation(
        shape=shape,
        voxel_mm=voxel_mm,
        volumes=args.volumes,
        tr_s=1.6 if args.tr is None else args.tr,
        motion_mm=args.motion,
        noise_percent=args.noise,
        seed=args.seed,
    )
    return SimulatedRun(simulation).write(path)


def _play(args: argparse.Namespace, path: Path) -> int:
    recorded = open_run(path)
    tr_s = args.tr if args.tr is not None else recorded.tr_s
    if tr_s is None:
        raise InputError(f"{path} states no repetition time; give it with --tr SECONDS")
    manner = Manner(tr_s=tr_s, speed=args.speed, in_place=args.in_place)
    plan = plan_run(recorded.volumes, [FaultRequest.parse(text) for text in args.fault], args.seed)
    name = args.format or ("mosaic" if args.to.startswith("dicom:") else "nifti")
    writer = make_writer(name, f"{recorded.path.resolve()} {args.seed}")
    if is_network(args.to):
        sender = open_sender(args.to, writer, read_token(args.token_file))
        player: Playing = NetworkPlayer(recorded, plan, sender, manner)
    else:
        player = Player(recorded, plan, writer, Path(args.to), manner)
    for telling in player.play():
        print(json.dumps(telling), flush=True)
    return 0
