"""How long do PyTorch, transformers and diffusers take for what a bundle does?

    python benchmarks/peers.py --json benchmarks/results/peers.json
    python benchmarks/peers.py --compare benchmarks/results/peers.json      # the gate
    python benchmarks/peers.py --checkpoint CHECKPOINT --bundle BUNDLE --dtypes bf16 \\
        --steps 2 --tokens 16 --rounds 5 --warm-up 1 --cold 0 --by-size --one-at-a-time

Encoder, text, picture and the whole chain from a volume's file, beside the file `peer_*.py` of each
library: the same input, seed, steps and threads for all. Each contender has a process of its own,
so that its peak memory is its own; they take turns, run by run. Nothing is timed before all give
the same answer as the first peer. The bundle takes part twice, and a ratio that is not farther from
1 than those two are from each other is not told.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from agreement import agree, distance, same_size
from contender import PIECES
from gate import judge, read_stored, verdicts
from timing import ROOT, machine, percentiles_ms, write
from turns import Runs, Worker, by_turns, in_blocks

from scanside.runtime.bench import Neighbours, compared, noise_of
from scanside.runtime.bench.measure import default_volumes
from scanside.runtime.bundle import Bundle
from scanside.runtime.cli import main as command_line

CONTENDER = Path(__file__).with_name("contender.py")
OURS, AGAIN = "scanside", "scanside again"
LIBRARY = {"encoder": "PyTorch", "text": "transformers", "picture": "diffusers", "chain": "PyTorch"}
COMPILED = ("encoder", "picture", "chain")
"""Where torch.compile takes part; `generate` with a growing cache is no work for it."""
Json = dict[str, Any]


def contenders(piece: str, dtypes: list[str], *, compiled: bool) -> list[str]:
    """Names, the peer that the others are held against first, the bundle's two at either end."""
    peers = [f"{LIBRARY[piece]} {dtype}" for dtype in dtypes]
    if compiled and piece in COMPILED:
        peers += [f"{LIBRARY[piece]} torch.compile {dtype}" for dtype in dtypes]
    return [OURS, *peers, AGAIN]


class Match:
    """All contenders of one piece.

    Parameters
    ----------
    args : Namespace
        Of the command line, with `volumes`.
    """

    def __init__(self, piece: str, args: argparse.Namespace, scratch: Path) -> None:
        self.piece = piece
        self.names = contenders(piece, args.dtypes, compiled=args.compiled)
        self._args = args
        self._scratch = scratch
        self.apart: dict[str, Json] = {}
        self.cold_s: dict[str, list[float]] = {name: [] for name in self.names}

    def start(self, name: str) -> Worker:
        """A contender that has done its work once."""
        args = self._args
        words = [self.piece, name, str(args.checkpoint), args.bundle, *map(str, args.volumes)]
        words += ["--threads", str(args.threads)]
        words += [] if args.steps is None else ["--steps", str(args.steps)]
        words += [] if args.tokens is None else ["--tokens", str(args.tokens)]
        worker = Worker([str(CONTENDER), *words], args.threads)
        self.cold_s[name].append(worker.cold_s)
        return worker

    def run(self) -> tuple[dict[str, Runs], Neighbours]:
        """Check the answers, then time."""
        args = self._args
        truth, *_ = (name for name in self.names if not name.startswith(OURS))
        if args.one_at_a_time:
            order = [truth, *(name for name in self.names if name != truth)]
            inputs: list[int] = []
            for name in order:
                worker = self.start(name)
                inputs = self._agreeing(truth, name, self._answers(worker, name), inputs)
                worker.close()
            with Neighbours() as neighbours:
                found = in_blocks(self.names, self.start, inputs, args.rounds, args.warm_up)
            return found, neighbours
        workers = {name: self.start(name) for name in self.names}
        kept = {name: self._answers(worker, name) for name, worker in workers.items()}
        inputs = self._agreeing(truth, truth, kept[truth], [])
        for name in self.names:
            inputs = self._agreeing(truth, name, kept[name], inputs)
        with Neighbours() as neighbours:
            found = by_turns(workers, inputs, args.rounds, args.warm_up)
            for worker in workers.values():
                worker.close()  # what a child computed is told when it has ended
        return found, neighbours

    def start_cold(self) -> None:
        """New processes in turn, each until its first answer."""
        for _ in range(self._args.cold):
            for name in self.names:
                self.start(name).close()

    @property
    def _inputs(self) -> range:
        return range(len(self._args.volumes) if self.piece == "chain" else 1)

    def _answers(self, worker: Worker, name: str) -> list[Path]:
        """Every input's answer, in a file."""
        files = [self._scratch / f"{self.piece} {name} {number}.npz" for number in self._inputs]
        for number, file in enumerate(files):
            worker.ask(f"save {number} {file}")
        return files

    def _agreeing(self, truth: str, name: str, files: list[Path], inputs: list[int]) -> list[int]:
        """The inputs that everybody so far answers alike; SystemExit if there is none."""
        if name == truth:
            self._truth = [dict(np.load(file)) for file in files]
            return list(self._inputs)
        alike: list[int] = []
        for number in inputs:
            with np.load(files[number]) as archive:
                found = dict(archive)
            apart = distance(self._truth[number], found)
            same = same_size(self._truth[number], found) if self._args.by_size else agree(apart)
            if same:
                alike.append(number)
                self.apart.setdefault(name, apart)
        if not alike:
            raise SystemExit(
                f"{self.piece}: {name} and {truth} differ, so nothing is timed: {apart}. "
                f"Was {self._args.bundle} exported from {self._args.checkpoint}?"
            )
        return alike


def rows_of(match: Match) -> tuple[list[Json], Json | None]:
    """A row for each contender, and the noise."""
    found, neighbours = match.run()
    match.start_cold()
    ours = found[OURS]
    noise = noise_of(ours.seconds, found[AGAIN].seconds)
    cold = np.median(match.cold_s[OURS])
    rows: list[Json] = []
    for name, runs in found.items():
        row: Json = {"piece": match.piece, "contender": name, "ms": percentiles_ms(runs.seconds)}
        row["answers_ms"] = {
            answer: percentiles_ms(seconds) for answer, seconds in runs.answers.items()
        }
        if name not in (OURS, AGAIN):
            ratio = compared(runs.seconds, ours.seconds, noise)
            row["times_ours"] = None if ratio is None else ratio.as_dict()
            row["memory_times_ours"] = round(runs.peak_mib / ours.peak_mib, 2)
            row["cold_times_ours"] = round(float(np.median(match.cold_s[name]) / cold), 2)
        row |= {"peak_mib": round(runs.peak_mib, 1), "cold_ms": percentiles_ms(match.cold_s[name])}
        rows.append(row | {"apart": match.apart.get(name)} | neighbours.as_dict())
    told = None if noise is None else {"factor": round(noise.factor, 4), "rounds": noise.rounds}
    return rows, told


def table(result: Mapping[str, Any]) -> str:
    """For people."""
    lines = [f"{'ms':36}{'p50':>10}{'p95':>10}{'times ours':>28}{'peak MiB':>10}{'cold ms':>10}"]
    for row in result["rows"]:
        ms, ratio = row["ms"], row.get("times_ours")
        told = ""
        if ratio is not None:
            told = f"{ratio.get('ratio', 'within the noise')} {ratio['interval']}"
        cells = "".join(f"{ms[key]:10.1f}" if key in ms else f"{'':10}" for key in ("p50", "p95"))
        cold = row["cold_ms"].get("p50", row["cold_ms"]["max"])
        name = f"{row['piece']}, {row['contender']}"
        mark = "  UNDER LOAD" if row["under_load"] else ""
        lines.append(f"{name:36}{cells}{told:>28}{row['peak_mib']:10.0f}{cold:10.0f}{mark}")
    for piece, noise in result["noise"].items():
        told = "not known, too few rounds" if noise is None else f"{noise['factor'] - 1:.1%}"
        lines.append(f"noise, {piece}: {told}")
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reference = ROOT / "export/reference/checkpoint"
    parser.add_argument("--checkpoint", type=Path, default=reference)
    parser.add_argument("--bundle", default="reference", help="what export made of it")
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=list(PIECES))
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--cold", type=int, default=5, help="further new processes of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--tokens", type=int, help="most tokens of the piece 'text'")
    parser.add_argument("--by-size", action="store_true", help="for random weights")
    parser.add_argument("--one-at-a-time", action="store_true", help="to save memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compare", type=Path, metavar="STORED.json")
    return parser


def main() -> int:
    """Verify, check, time, print, keep, judge."""
    args = arguments().parse_args()
    about = machine(("torch", "transformers", "diffusers"))
    stored = read_stored(args.compare) if args.compare else None
    if command_line(["verify", args.bundle]) != 0:
        return 1
    args.volumes = default_volumes(Bundle.open(args.bundle))
    rows: list[Json] = []
    noise: dict[str, Json | None] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for piece in args.pieces:
            found, noise[piece] = rows_of(Match(piece, args, Path(scratch)))
            rows += found
    result = {
        "question": "the same work beside PyTorch, transformers and diffusers",
        **about,
        "bundle": args.bundle,
        "threads": args.threads,
        "steps": args.steps,
        "one_at_a_time": args.one_at_a_time,
        "noise": noise,
        "rows": rows,
    }
    print(table(result), file=sys.stderr)
    write(result, args.json)
    if stored is None:
        return 0
    judged = judge(stored, result)
    print("\n".join(verdicts(judged)), file=sys.stderr)
    return 0 if all(one.passed for one in judged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
