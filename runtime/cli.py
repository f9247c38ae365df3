"""The `scanside` command: finds the verb, imports only its module, turns errors into sentences.

Exit codes: 0 done, 1 the work failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from .. import __version__
from .errors import MissingExtraError, ScansideError


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb of the command line."""

    module: str
    """Relative to this package; has `add_arguments(parser)` and `run(args) -> int`."""
    help: str
    extra: str = "cpu"
    """The extra that brings what the verb imports."""


VERBS = {
    "demo": Verb(".commands.demo", "decode the shipped trials and write one HTML page"),
    "decode": Verb(".commands.decode", "decode one beta volume to text and pictures"),
    "chat": Verb(".commands.chat", "a dialogue about one beta volume at a prompt"),
    "verify": Verb(".commands.verify", "check a bundle's hashes, then every stage's answers"),
    "build": Verb(".commands.build", "build engines of a bundle for GPUs, into the user's cache"),
    "doctor": Verb(".commands.doctor", "what would run where on this machine, and what is missing"),
    "bench": Verb(".commands.bench", "time a bundle from a volume's arrival to each answer"),
    "watch": Verb(
        ".commands.watch", "a real-time run: volumes come in, answers go out", "realtime"
    ),
    "replay": Verb(
        ".commands.replay", "play a recorded run as a scanner would, faults included", "realtime"
    ),
    "report": Verb(
        ".commands.report", "the page of a finished run, or its derivatives as BIDS", "plot"
    ),
    "export": Verb("..export.cli_export", "compile a checkpoint into a bundle", "export"),
    "reference": Verb(
        "..export.reference.cli", "make the reference world and train its checkpoint", "export"
    ),
}


_FLAGS = {
    "'deadline_s'": "--deadline",
    "'autoregressive'": "--ar1",
    "'correct_motion'": "--no-motion",
    "'discard'": "--discard",
    "'beside'": "--beside",
    "'builds'": "--builds",
    "'cold'": "--cold",
    "'fault'": "--fault",
    "'fast_s'": "--window",
    "'gate'": "--gate",
    "'gpu'": "--gpu",
    "'max_tokens'": "--max-tokens",
    "'min_score'": "--min-score",
    "'portable'": "--portable",
    "'precision'": "--precision",
    "'quantize'": "--quantize",
    "'runs'": "--runs",
    "'noise_components'": "--noise-components",
    "'refined_s'": "--window",
    "'sink'": "--sink",
    "'slice_time_s'": "--slice-time",
    "'speed'": "--speed",
    "'stage'": "--stage",
    "'target_latency_ms'": "--target-latency",
    "'targets'": "--targets",
    "'timing_cache'": "--timing-cache",
    "'tr_s'": "--tr",
    "'tasks'": "--task",
    "'trials'": "--trials",
    "'trigger'": "--trigger",
    "'top_k'": "--top-k",
    "'top_p'": "--top-p",
    "'vram'": "--vram",
    "'warm_up'": "--warm-up",
    **{f"'{n}'": f"--{n}" for n in ("ask", "device", "seed", "steps", "temperature", "threads")},
}
"""How an argument of the Python API, with which a message begins, is typed on the command line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    code : int
        0 done, 1 the work failed, 2 wrong usage.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # nibabel logs what it mends in a header; our own sentence says what matters
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    name = next((word for word in words if not word.startswith("-")), "")
    try:
        module = _load(VERBS[name]) if name in VERBS else None
        try:
            args = _parser(name, module).parse_args(words)
        except SystemExit as done:  # argparse has printed help or what is wrong
            return done.code if isinstance(done.code, int) else 2
        if module is None:
            _parser(name, module).print_usage(sys.stderr)
            return 2
        return module.run(args)
    except ScansideError as exc:
        return _failed(name, str(exc))
    except KeyboardInterrupt:
        return _failed(name, "interrupted")
    except BrokenPipeError:
        # whoever read our output has left; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        return _failed(name, f"{where}{exc.strerror or exc}")
    except Exception as exc:
        if os.environ.get("SCANSIDE_DEBUG"):
            raise
        kind = type(exc).__name__
        return _failed(name, f"internal error ({kind}: {exc}); SCANSIDE_DEBUG=1 shows where")


def _load(verb: Verb) -> ModuleType:
    try:
        return importlib.import_module(verb.module, __package__)
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("scanside"):
            raise
        raise MissingExtraError(
            f"{exc.name} is not installed; run pip install 'scanside[{verb.extra}]'"
        ) from exc


def _parser(name: str, module: ModuleType | None) -> argparse.ArgumentParser:
    """The whole command line, with arguments for the one verb that is used."""
    parser = argparse.ArgumentParser(
        prog="scanside", description="Compiled brain decoders, run beside the scanner."
    )
    parser.add_argument("--version", action="version", version=f"scanside {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, entry in VERBS.items():
        sub = verbs.add_parser(verb, help=entry.help, description=entry.help)
        if verb == name and module is not None:
            module.add_arguments(sub)
    return parser


def as_typed(sentence: str) -> str:
    """A message with the flag that was typed for the argument it begins with."""
    argument, space, rest = sentence.partition(" ")
    return _FLAGS.get(argument, argument) + space + rest


def _failed(name: str, sentence: str) -> int:
    print(f"scanside {name}: {as_typed(sentence)}", file=sys.stderr)
    return 1
