"""Everything that must be measured on a GPU, in one command that needs no network.

    python benchmarks/gpu_suite.py FULL --budget 450 --json benchmarks/results/gpu_suite.json

FULL is what `hollow_bundle.py` makes: a folder with a full-size bundle, its weights in or out,
`configs/` with the configurations that PyTorch's networks are made from, and `tokenizer/`.
Correctness first. Parts run in order of worth, each in a process of its own, so that one that
crashes or hangs loses nothing but itself; the result is written after every part. What does not fit
into the budget any more is left out, and said to be. While the first parts check answers, processes
beside them draw weights, write a language model of 8B parameters and let torch.compile compile;
nothing is timed before these are done.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_wheels import found_first, install

Json = dict[str, Any]
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One measurement."""

    name: str
    about_s: float
    """How long it takes on a data-centre card."""
    timed: bool = True
    """Whether it has to wait until nothing else runs."""


PARTS = (
    Part(name="golden", about_s=20, timed=False),
    Part(name="sanitizer", about_s=20, timed=False),
    Part(name="sanitized chain", about_s=40, timed=False),
    Part(name="smoke", about_s=15),
    Part(name="encoder", about_s=8),
    Part(name="unet", about_s=20),
    Part(name="vae_decoder", about_s=15),
    Part(name="preview_decoder", about_s=8),
    Part(name="chain", about_s=45),
    Part(name="language", about_s=50),
    Part(name="spoken", about_s=45),
    Part(name="steady", about_s=12),
    Part(name="eager", about_s=30),
    Part(name="beside", about_s=60),
    Part(name="compiled preview_decoder", about_s=15),
    Part(name="compiled encoder", about_s=15),
    Part(name="compiled unet", about_s=30),
    Part(name="compiled vae_decoder", about_s=20),
    Part(name="kernel", about_s=40),
)
PREPARATIONS = (
    "weights",
    "gguf",
    *(part.name for part in PARTS if part.name.startswith("compiled ")),
)
ABOUT_DEVICE_S = 20.0
LONGEST = 2.5
"""A part is ended when it takes so many times as long as it should."""


def run_part(args: argparse.Namespace) -> Json:
    """One part, or one preparation, in this process."""
    kind, _, of = args.part.partition(" ")
    if args.part in ("encoder", "unet", "vae_decoder", "preview_decoder"):
        kind, of = "engine", args.part
    return _worker(kind)(args, of)


def _worker(kind: str) -> Callable[[argparse.Namespace, str], Json]:
    """Each part imports what it needs, so that a missing library loses only that part."""
    if kind in ("device", "smoke", "kernel", "sanitizer", "sanitized"):
        import gpu_device

        return {
            "smoke": gpu_device.smoke_part,
            "device": gpu_device.device_part,
            "kernel": gpu_device.kernel_part,
            "sanitizer": gpu_device.sanitizer_part,
            "sanitized": gpu_device.sanitized_part,
        }[kind]
    if kind in ("weights", "gguf"):
        import gpu_prepare

        return {"weights": gpu_prepare.weights_part, "gguf": gpu_prepare.gguf_part}[kind]
    if kind in ("golden", "chain", "steady"):
        import gpu_chain

        return {
            "golden": gpu_chain.golden_part,
            "chain": gpu_chain.chain_part,
            "steady": gpu_chain.steady_part,
        }[kind]
    if kind == "language":
        import gpu_language

        return gpu_language.language_part
    if kind == "spoken":
        import gpu_spoken

        return gpu_spoken.spoken_part
    if kind == "beside":
        import gpu_beside

        return gpu_beside.beside_part
    import gpu_networks

    return {
        "engine": gpu_networks.engine_part,
        "eager": gpu_networks.eager_part,
        "compiled": gpu_networks.compiled_part,
    }[kind]


class Process:
    """A part in a process of its own, whose output is kept."""

    def __init__(self, args: argparse.Namespace, part: str, *, prepare: bool = False) -> None:
        stem = ("prepare " if prepare else "") + part
        base = args.scratch / "parts" / stem.replace(" ", "_")
        base.parent.mkdir(parents=True, exist_ok=True)
        self.part = part
        self.answer, self.log = base.with_suffix(".json"), base.with_suffix(".log")
        self.answer.unlink(missing_ok=True)
        self.began = time.monotonic()
        words = [sys.executable, str(HERE / "gpu_suite.py"), *args.words]
        words += ["--part", part, "--answer", str(self.answer)]
        nice = ["nice", "-n", "10"] if prepare else []
        words += ["--prepare"] if prepare else []
        cache = {
            "TORCHINDUCTOR_CACHE_DIR": str(args.scratch / "inductor"),
            **found_first(args.wheels, args.scratch),
        }
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [*nice, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **cache},
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether it is not over yet."""
        return self._process.poll() is None

    def result(self, most_s: float) -> Json:
        """Wait for it, end it when it takes too long, and say what became of it."""
        late = False
        try:
            self._process.wait(max(most_s, 1.0))
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        took = round(time.monotonic() - self.began, 1)
        if self._process.returncode == 0 and self.answer.is_file():
            return {"took_s": took, **json.loads(self.answer.read_text())}
        lines = self.log.read_text(errors="replace").strip().splitlines()
        why = f"ended after {took:g} s" if late else f"exit code {self._process.returncode}"
        return {"took_s": took, "failed": why, "last_words": [s[:600] for s in lines[-12:]]}


def shown(word: str) -> str:
    """A word of the command line as one would type it; of a path its end."""
    word = Path(word).name if word.startswith("/") else word
    return f'"{word}"' if " " in word else word


def expected_s(part: Part, args: argparse.Namespace) -> float:
    """How long a part takes; steadiness as long as so many answers of an H200 do."""
    more = 0.0025 * args.previews + 0.03 * args.pictures if part.name == "steady" else 0.0
    return round(part.about_s + more)


class Suite:
    """All parts within the budget."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._end = time.monotonic() + args.budget
        question = "everything that only a GPU can answer"
        self.result: Json = {"question": question, "runs": [], "parts": {}}
        if args.add and args.json and args.json.is_file():
            self.result = json.loads(args.json.read_text())

    @property
    def left_s(self) -> float:
        """What is left of the budget."""
        return self._end - time.monotonic()

    def run(self) -> Json:
        """Prepare, run, keep after every part; gives the parts of this run."""
        args = self.args
        self._describe(Process(args, "device").result(LONGEST * ABOUT_DEVICE_S))
        waiting = [Process(args, name, prepare=True) for name in args.preparations]
        for part in PARTS:
            if part.name not in args.parts:
                continue
            if part.timed and waiting:
                self._prepared(waiting)
                waiting = []
            about_s = expected_s(part, args)
            if self.left_s < about_s:
                said = f"about {about_s:g} s were needed, {self.left_s:.0f} s were left"
                self._keep(part.name, {"left_out": said})
                continue
            most = min(LONGEST * about_s, self.left_s)
            self._keep(part.name, Process(args, part.name).result(most))
        if waiting:
            self._prepared(waiting)
        self._write()
        last = len(self.result["runs"]) - 1
        return {name: row for name, row in self.result["parts"].items() if row["run"] == last}

    def _prepared(self, waiting: list[Process]) -> None:
        ends = time.monotonic() + min(self.args.prepare_s, self.left_s / 2)
        found = {p.part: p.result(ends - time.monotonic()) for p in waiting}
        self.result["preparations"] = found
        print({name: row.get("failed", row["took_s"]) for name, row in found.items()}, flush=True)

    def _describe(self, device: Json) -> None:
        """Begin a run on this device; SystemExit where there is none, or what is kept is of another
        kind, which it cannot be compared with."""
        if "failed" in device:
            words = device["last_words"] or [device["failed"]]
            raise SystemExit(words[-1].rpartition("Error: ")[2])
        kinds = [run.get("nvidia_smi", {}).get("name") for run in (*self.result["runs"], device)]
        if len(set(kinds)) > 1:
            raise SystemExit(
                f"{self.args.json} is of {kinds[0]}, this is {kinds[-1]}; leave --add out"
            )
        command = " ".join(["python", *map(shown, sys.argv)])
        self.result["runs"].append({"command": command, **device})

    def _keep(self, name: str, row: Json) -> None:
        row = {"run": len(self.result["runs"]) - 1, **row}
        self.result["parts"][name] = row
        shown = row.get("failed") or row.get("left_out") or f"{row['took_s']:g} s"
        shown += "" if "failed" in row or not fails(row) else ", not all of it"
        print(f"{name:26}{shown}  ({self.left_s:.0f} s left)", flush=True)
        for line in row.get("last_words", [])[-3:]:
            print("    " + line[:300], flush=True)
        self._write()

    def _write(self) -> None:
        if self.args.json:
            part = self.args.json.with_suffix(".part")
            part.write_text(json.dumps(self.result, indent=2) + "\n")
            part.replace(self.args.json)


def parsed() -> argparse.Namespace:
    """The command line; `words` is what every part gets of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("full", type=Path, help="folder of the full-size bundle")
    parser.add_argument("--budget", type=float, default=450, help="seconds (default: 450)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result here")
    add_ = "keep what FILE holds, and measure further parts on the same card"
    parser.add_argument("--add", action="store_true", help=add_)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/scanside"))
    bundle = HERE.parent / "runtime/reference/bundle"
    parser.add_argument("--kernels", type=Path, default=bundle, help="bundle with the kernels")
    help_ = "folder of wheels to install first, without a network"
    parser.add_argument("--wheels", type=Path, metavar="DIR", help=help_)
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 16))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many timed runs")
    parser.add_argument("--previews", type=int, default=5000, help="in a row, for steadiness")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--prepare-s", type=float, default=100, help="most time to prepare")
    prepared_ = "take weights and language model as a run before left them in the scratch folder"
    parser.add_argument("--prepared", action="store_true", help=prepared_)
    fuse_ = "parts of the graphs to make one operator each (default: all of export/fusing.py)"
    parser.add_argument("--fuse", nargs="*", metavar="PART", help=fuse_)
    parser.add_argument("--small", action="store_true", help="small models, to try the suite")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", default=names)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.parts = args.only
    args.preparations = [
        name
        for name in PREPARATIONS
        if name in args.parts or not (name.startswith("compiled ") or args.prepared)
    ]
    if args.preparations and not (args.small or (args.full / "manifest.json").is_file()):
        parser.error(f"{args.full} is no bundle; python benchmarks/hollow_bundle.py makes one")
    words = sys.argv[1:]
    args.words = words[: words.index("--part")] if "--part" in words else words
    return args


def main() -> int:
    """Run one part, or all."""
    args = parsed()
    if args.part:
        found = run_part(args)
        args.answer.write_text(json.dumps(found))
        return 0
    args.scratch.mkdir(parents=True, exist_ok=True)
    if args.wheels:
        install(args.wheels, args.scratch / "site")
    if args.json:
        args.json = args.json.resolve()
    found = Suite(args).run()
    return int(any(map(fails, found.values())))


def fails(row: Json) -> bool:
    """Whether a part failed, or something in it."""
    return "failed" in row or any(isinstance(r, dict) and "failed" in r for r in row.values())


if __name__ == "__main__":
    raise SystemExit(main())
