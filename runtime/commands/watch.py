"""`scanside watch BUNDLE --source ... --events ... --out DIR`: a real-time run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..decoder import Decoder
from ..errors import InputError
from ..realtime.access import TOKEN_VARIABLE, Access, read_token
from ..realtime.model_place import Placing
from ..realtime.preflight import preflight
from ..realtime.run import Run
from ..realtime.run_setup import RunRequest, complete_config
from ..realtime.session_config import SessionConfig
from ..realtime.sink_opening import KINDS
from ..realtime.summary import readable
from ..realtime.view import View
from ..report.afterwards import report_after
from .decode import DEVICE_HELP, VRAM_HELP, task_names

_STDOUT = "jsonl:-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder, or 'reference'")
    _add_input(parser)
    _add_model(parser)
    _add_output(parser)


def _add_input(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what comes in").add_argument
    add(
        "--source",
        required=True,
        metavar="KIND:WHERE",
        help="folder:DIR that the scanner writes into; file:PATH, a recorded 4-D run; "
        "afni:[HOST:]PORT, AFNI's real-time protocol; zmq:[HOST:]PORT, pyneal's volumes over "
        "ZeroMQ; dicom:[HOST:]PORT, a node for C-STORE",
    )
    add(
        "--peer",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="machine or network that may send to afni or dicom besides this one; may be repeated",
    )
    add(
        "--events",
        required=True,
        metavar="FILE|lsl:NAME",
        help="an events.tsv of BIDS, or a live stream of markers",
    )
    add("--tr", type=float, metavar="SECONDS", help="repetition time (default: the file's own)")
    add("--volumes", type=int, metavar="N", help="length of the run (default: the file's own)")
    add(
        "--discard",
        type=int,
        default=0,
        metavar="N",
        help="volumes to leave out at the beginning; onsets count from the next (default: 0)",
    )
    add("--trigger", metavar="TEXT", help="a live marker that opens the first kept volume instead")
    add("--markers", metavar="NAME", help="LSL stream of the trigger, if events are a file")
    add(
        "--network",
        action="store_true",
        help="sources, LSL streams and sinks may reach other machines",
    )
    add("--trial-type", action="append", default=[], metavar="NAME", help="answer only these")
    add(
        "--existing",
        choices=("refuse", "ignore", "take"),
        default="refuse",
        help="what to do with files that the folder holds already (default: refuse)",
    )
    add("--pattern", default="*", metavar="GLOB", help="only files of such names (default: *)")
    add("--polling", action="store_true", help="compare listings, as network shares need it")
    add(
        "--first-number",
        type=int,
        default=1,
        metavar="N",
        help="number of the run's first volume (default: 1)",
    )
    add(
        "--speed",
        type=float,
        default=1.0,
        metavar="X",
        help="times faster than real that a recorded run comes (default: 1)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how it is decoded").add_argument
    add("--device", default="cpu", metavar="D", help=DEVICE_HELP)
    add("--threads", type=int, default=2, metavar="N", help="CPU threads (default: 2)")
    add("--vram", metavar="SIZE", help=VRAM_HELP)
    add(
        "--task",
        type=task_names,
        default="preview,caption,image",
        metavar="LIST",
        help="as decode takes it (default: preview,caption,image)",
    )
    add(
        "--prompt",
        default="written",
        metavar="written|caption|none|TEXT",
        help="text that conditions the image (default: written)",
    )
    add("--steps", type=int, metavar="N", help="denoising steps (default: the bundle's)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    add(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="from an answer's last volume to its end (default: one TR)",
    )
    add(
        "--window",
        type=float,
        nargs=2,
        default=(7.5, 30.0),
        metavar=("FAST", "REFINED"),
        help="seconds after the onset that the two answers know (default: 7.5 30)",
    )
    add(
        "--slice-time",
        type=float,
        metavar="SECONDS",
        help="moment of a TR that a volume stands for (default: its middle)",
    )
    add("--noise-components", type=int, default=5, metavar="N", help="0 to 5 (default: 5)")
    add("--ar1", action="store_true", help="prewhiten noise that follows itself")
    add("--no-motion", action="store_true", help="do not correct motion")
    add(
        "--transform",
        type=Path,
        metavar="FILE",
        help="bundle's image to this run, of ITK, FSL, AFNI",
    )
    add("--model-image", type=Path, metavar="FILE", help="image in the bundle's space to align to")
    add("--former", type=Path, metavar="DIR", help="a former run, whose normalisation goes on")


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what goes out").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run; resumes it")
    add(
        "--sink",
        action="append",
        default=[],
        metavar="KIND[:WHERE]",
        help=f"where feedback goes besides; may be repeated: {KINDS}",
    )
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="token that subscribers to ws and senders to zmq from other machines must have "
        f"(default: {TOKEN_VARIABLE} if it is set)",
    )
    add("--tls-certificate", type=Path, metavar="FILE", help="of ws, PEM with its chain")
    add("--tls-key", type=Path, metavar="FILE", help="of ws, PEM")
    add("--gate", type=float, metavar="X", help="withhold feedback of less confidence, 0 to 1")
    add("--check", action="store_true", help="only check whether the run could begin, and say so")
    add("--no-report", action="store_true", help="leave out the page at the end, DIR/report.html")
    add("--json", action="store_true", help="print the summary as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Watch the run to its end and print its summary."""
    if args.json and _STDOUT in args.sink:
        raise InputError(f"'sink' {_STDOUT} and --json both want standard output; leave one out")
    request = RunRequest(
        source=args.source,
        events=args.events,
        out=args.out,
        markers=args.markers,
        network=args.network,
        sinks=tuple(args.sink),
        access=Access(
            token=read_token(args.token_file), certificate=args.tls_certificate, key=args.tls_key
        ),
        peers=tuple(args.peer),
        trial_types=tuple(args.trial_type),
        former=args.former,
        placing=Placing(transform=args.transform, model_image=args.model_image),
        existing=args.existing,
        pattern=args.pattern,
        first_number=args.first_number,
        polling=args.polling,
        threads=args.threads,
    )
    config = complete_config(
        request,
        {
            "tr_s": args.tr,
            "volumes": args.volumes,
            "discard": args.discard,
            "trigger": args.trigger,
            "speed": args.speed,
            "fast_s": args.window[0],
            "refined_s": args.window[1],
            "deadline_s": args.deadline,
            "tasks": args.task,
            "prompt": args.prompt,
            "steps": args.steps,
            "seed": args.seed,
            "gate": args.gate,
            "correct_motion": not args.no_motion,
            "slice_time_s": args.slice_time,
            "noise_components": args.noise_components,
            "autoregressive": args.ar1,
        },
    )
    with Decoder.open(args.bundle, args.device, args.threads, vram=args.vram) as decoder:
        if args.check:
            return _check(decoder, request, config, as_json=args.json)
        summary = Run(decoder, request, config).play(View())
    print(json.dumps(summary, ensure_ascii=False) if args.json else readable(summary))
    sys.stdout.flush()
    if not args.no_report:
        _report(args.out, told=not args.json)
    return 0


def _report(folder: Path, *, told: bool) -> None:
    """Write the page of the run; that it cannot be is a sentence, and no failure of the run."""
    path, trouble = report_after(folder)
    if trouble:
        print(f"scanside watch: {trouble}", file=sys.stderr)
    elif path and told:
        print(f"report: {path}")


def _check(decoder: Decoder, request: RunRequest, config: SessionConfig, *, as_json: bool) -> int:
    """One line for each thing that a run needs; 0 if all of them are fine."""
    fine, found = True, dict[str, dict[str, object]]()
    for check in preflight(decoder, request, config):
        fine = fine and check.fine
        found[check.name] = {"fine": check.fine, "found": check.found}
        if not as_json:
            print(check, flush=True)
    if as_json:
        print(json.dumps({"fine": fine, "checks": found}, ensure_ascii=False))
    return 0 if fine else 1
