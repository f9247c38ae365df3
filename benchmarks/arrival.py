"""How long from a volume's last byte on the disk to the frame in the loop's hands?

    python benchmarks/arrival.py --json benchmarks/results/arrival.json

A second process plays a run of random voxels into a folder; both read the system's monotonic clock.
Correctness first: every volume must arrive once, in order, without a fault. `noticed` is when the
watcher was told, `in hand` when the frame, read and checked, has left the slots. A file is stamped
after it was renamed, and may be noticed before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from timing import machine, percentiles_ms, write

from scanside.runtime.realtime.arrivals import Arrivals
from scanside.runtime.realtime.folder_source import FolderSource
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.slots import Slots

GRIDS = {"64x64x36": (64, 64, 36), "81x104x83": (81, 104, 83)}
FORMATS = ("nifti", "nifti-gz", "mosaic")
TR_S = 1.6
PLAY = "import sys; from scanside.runtime.cli import main; raise SystemExit(main(sys.argv[1:]))"


def make_run(path: Path, shape: tuple[int, int, int], volumes: int) -> None:
    """A run that compresses about as well as a real one: smooth in the head, little beside it."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 40, (*shape, volumes)).astype("i2")
    inside = tuple(slice(n // 5, n - n // 5) for n in shape)
    data[inside] += 800
    image = nib.Nifti1Image(data, np.diag([3.0, 3, 3, 1]))
    image.header.set_zooms((3, 3, 3, TR_S))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def arrivals_s(run: Path, folder: Path, form: str, volumes: int, pace_s: float) -> dict[str, Any]:
    """Seconds from the stamp of each file to notice and to hand."""
    folder.mkdir()
    source = FolderSource(folder, pace_s=pace_s)
    receiver = Arrivals(source, Slots(tr_s=TR_S, pace_s=pace_s, volumes=volumes))
    words = ["replay", run, "--to", folder, "--speed", TR_S / pace_s, "--format", form]
    command = [sys.executable, "-P", "-c", PLAY, *map(str, words)]
    told_path = folder.with_suffix(".jsonl")
    in_hand: dict[int, tuple[float, float]] = {}
    with told_path.open("w") as told, subprocess.Popen(command, stdout=told) as player:
        for arrival in receiver:
            if not isinstance(arrival, Frame):
                raise SystemExit(f"{form}: {arrival}; no figure is worth anything")
            in_hand[arrival.number] = arrival.arrived_s, time.perf_counter()
        player.wait()
    source.close()
    if list(in_hand) != list(range(volumes)):
        raise SystemExit(f"{form}: {len(in_hand)} of {volumes} volumes came")
    tellings = [json.loads(line) for line in told_path.read_text().splitlines()]
    at_s = {t["number"]: t["at_s"] for t in tellings if t["event"] == "file"}
    return {
        "noticed_ms": percentiles_ms([in_hand[n][0] - at_s[n] for n in at_s]),
        "in_hand_ms": percentiles_ms([in_hand[n][1] - at_s[n] for n in at_s]),
    }


def main() -> None:
    """Every grid in every format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--pace-ms", type=float, default=200.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    question = "from a volume's last byte on the disk to the frame in the loop's hands"
    result: dict[str, Any] = {"question": question, **machine()}
    result |= {"pace_ms": args.pace_ms, "arrival": {}}
    with tempfile.TemporaryDirectory() as folder:
        for grid, shape in GRIDS.items():
            run = Path(folder) / f"{grid}.nii"
            make_run(run, shape, args.volumes)
            for form in FORMATS:
                where = Path(folder) / f"{grid}-{form}"
                found = arrivals_s(run, where, form, args.volumes, args.pace_ms / 1e3)
                result["arrival"][f"{grid} {form}"] = found
    write(result, args.json)


if __name__ == "__main__":
    main()
