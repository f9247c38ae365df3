"""`scanside export CHECKPOINT BUNDLE`: the arguments without torch, the work with it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.errors import InputError, MissingExtraError

_PRECISIONS = ("fp32", "fp16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments; imports nothing heavy."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint directory, 'reference', or random weights: "
        "random:tiny, random:paper, random:paper-1b and others, which a wrong name lists",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder to write; must be new")
    parser.add_argument(
        "--targets",
        default="cpu",
        metavar="LIST",
        help="comma-separated, of: cpu, cuda, rtx, which adds engines of TensorRT-RTX; best with "
        "--precision fp16 (default: cpu)",
    )
    parser.add_argument(
        "--precision",
        type=_precisions,
        default=(),
        metavar="LIST",
        help="fp32, fp16 or int8, of encoder, U-Net and decoders; fp16 keeps float32 where numbers "
        "of real inputs need it; int8, for CPUs, multiplies by weights in 8 bits (default: fp32); "
        "several to choose from by the bounds below (then: fp32,int8)",
    )
    parser.add_argument(
        "--fuse",
        choices=("none", "attention", "cuda"),
        default="none",
        help="parts of the graphs as one operator each of ONNX Runtime, faster on a GPU: "
        "attention, which a CPU runs too, but not together with rtx; cuda, all that gained there, "
        "with --targets cuda (default: none)",
    )
    parser.add_argument(
        "--quantize",
        type=_words,
        default=(),
        metavar="LIST",
        help="language model: f32, f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m (default: f16); several "
        "to choose from by the bounds below (then: q8_0,q4_k_m)",
    )
    parser.add_argument(
        "--target-latency",
        type=float,
        metavar="MS",
        help="compile, score and time several ways, and keep the best that answers 95 of 100 "
        "volumes within so many milliseconds, from the file to the last answer, on this machine's "
        "CPU",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        metavar="S",
        help="the same, and keep one whose mean score on held-out trials, 0 to 1, is at least S; "
        "without --target-latency the fastest",
    )
    parser.add_argument(
        "--trials",
        type=Path,
        metavar="DIR",
        help="held-out trials for both: trials.json names volume, scene (a picture) and caption of "
        "each (default: those of the reference world, for its checkpoint)",
    )
    parser.add_argument(
        "--steps",
        type=_counts,
        default=(),
        metavar="LIST",
        help="denoising steps to choose from (default: 1,2,4,8,20)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=2,
        metavar="N",
        help="CPU threads with which options are timed (default: 2)",
    )


def run(args: argparse.Namespace) -> int:
    """Export, and print the bundle's path."""
    try:
        path = _chosen(args) if _bounded(args) else _single(args)
    except ModuleNotFoundError as exc:
        raise MissingExtraError(f"export needs {exc.name}: pip install 'scanside[export]'") from exc
    print(path)
    return 0


def _bounded(args: argparse.Namespace) -> bool:
    return args.target_latency is not None or args.min_score is not None


def _chosen(args: argparse.Namespace) -> Path:
    from .choice import Bounds
    from .chosen_bundle import export_chosen

    if args.targets != "cpu" or args.fuse != "none":
        raise InputError(
            "'targets' must be cpu, without --fuse, for --target-latency and --min-score measure "
            "on this machine's CPU"
        )
    return export_chosen(
        args.checkpoint,
        args.bundle,
        Bounds(target_latency_ms=args.target_latency, min_score=args.min_score),
        trials=args.trials,
        precisions=args.precision,
        quantizations=args.quantize,
        steps=args.steps,
        threads=args.threads,
    )


def _single(args: argparse.Namespace) -> Path:
    from .bundle_writer import export_bundle

    for name, found in (("precision", args.precision), ("quantize", args.quantize)):
        if len(found) > 1:
            raise InputError(
                f"'{name}' names {', '.join(found)}, but a bundle holds one; give --target-latency "
                "or --min-score to have it chosen"
            )
    for name, found in (("trials", args.trials), ("steps", args.steps)):
        if found:
            raise InputError(f"'{name}' is used with --target-latency or --min-score only")
    return export_bundle(
        args.checkpoint,
        args.bundle,
        targets=args.targets.split(","),
        precision=args.precision[0] if args.precision else "fp32",
        quantize=args.quantize[0] if args.quantize else "f16",
        fuse=args.fuse,
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _precisions(text: str) -> tuple[str, ...]:
    found = _words(text)
    for word in found:
        if word not in _PRECISIONS:
            raise argparse.ArgumentTypeError(f"{word!r} is not of {', '.join(_PRECISIONS)}")
    return found


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers") from exc
