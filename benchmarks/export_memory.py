"""How much memory does an export of the full size need?

    python benchmarks/export_memory.py random:paper-pictures FOLDER \\
        --json benchmarks/results/export_memory.json

Exports into FOLDER/bundle in a process of its own and notes its peak. With a checkpoint's name of
random weights these are written into FOLDER/checkpoint first, by another process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from timing import machine, write

RANDOM = (
    "import sys; from pathlib import Path; "
    "from scanside.export.random_checkpoint import write_random_checkpoint as w; "
    "w(sys.argv[1], Path(sys.argv[2]))"
)
EXPORT = "from scanside.runtime.cli import main; raise SystemExit(main())"


def child(*command: str) -> tuple[float, float]:
    """Run Python in a process; seconds, and the largest peak in MiB of all children so far."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-P", *command], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return time.perf_counter() - began, peak


def main() -> int:
    """Export, measure, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--quantize", default="f16")
    fuse_ = "with cuda the target is cuda, too (default: none)"
    parser.add_argument("--fuse", choices=["none", "cuda"], default="none", help=fuse_)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about, checkpoint, writing_mib = machine(), args.checkpoint, 0.0
    args.folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.startswith("random:"):
        path = args.folder / "checkpoint"
        if not path.exists():
            _, writing_mib = child("-c", RANDOM, checkpoint.removeprefix("random:"), str(path))
        checkpoint = str(path)
    bundle = args.folder / "bundle"
    words = ["export", checkpoint, str(bundle), "--precision", args.precision]
    words += ["--quantize", args.quantize, "--fuse", args.fuse]
    words += ["--targets", "cuda" if args.fuse == "cuda" else "cpu"]
    seconds, peak = child("-c", EXPORT, *words)
    manifest = json.loads((bundle / "manifest.json").read_text())
    result = {
        "question": "peak memory of an export at full size",
        **about,
        "checkpoint": args.checkpoint,
        "precision": args.precision,
        "quantization": args.quantize,
        "fused": args.fuse,
        "peak_mib": round(peak, 1),
        "writing_random_weights_mib": round(writing_mib, 1),
        "seconds": round(seconds, 1),
        "mib": {
            name: round(file["bytes"] / 2**20, 1)
            for name, file in manifest["files"].items()
            if file["bytes"] > 2**20
        },
        "parity": manifest["parity"],
    }
    if peak <= writing_mib:
        raise SystemExit("writing the weights took more than the export; run again on the folder")
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
