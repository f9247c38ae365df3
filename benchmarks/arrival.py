"""How long from a volume's last byte on the disk until it is in the loop's hands, and in the fit?

    python benchmarks/arrival.py --json benchmarks/results/arrival.json

A second process plays a simulated run into a folder; both read the system's monotonic clock.
Correctness first: every volume must arrive once, in order, without a fault, and be registered.
`noticed` is when the watcher was told, `in hand` when the frame, read and checked, has left the
slots, `in fit` when it is aligned, cut into tokens of 96 or of all 288 cubes of the paper's grid,
and in the running fit with drift, motion, noise components and a trial every four seconds. A file
is stamped after it was renamed, and may be noticed before. About six minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from timing import machine, percentiles_ms, write

from scanside.runtime.bundle import Bundle
from scanside.runtime.manifest import TensorSpec
from scanside.runtime.preprocess import Preprocessor
from scanside.runtime.realtime.arrivals import Arrivals
from scanside.runtime.realtime.drift import Drift
from scanside.runtime.realtime.folder_source import FolderSource
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.glm import StreamingGlm
from scanside.runtime.realtime.glm_config import GlmConfig
from scanside.runtime.realtime.intake import Intake
from scanside.runtime.realtime.model_place import Placing
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation
from scanside.runtime.realtime.slots import Slots

GRIDS = {"64x64x36": (3.0, 3.0, 3.6), "81x104x83": (1.8, 1.8, 1.8)}
FORMATS = ("nifti", "nifti-gz", "mosaic")
FITTED = "nifti"
"""Format in which the fit is timed as well."""
CUBE, CUBES = 14, (6, 8, 6)
TR_S = 1.6
GAP_S = 4.0
ALIKE = 20
"""Volumes that are simulated; they come again, to and fro."""
PLAY = "import sys; from scanside.runtime.cli import main; raise SystemExit(main(sys.argv[1:]))"


def make_run(path: Path, grid: str, volumes: int) -> None:
    """A head that moves a little, with drift and noise."""
    x, y, z = (int(size) for size in grid.split("x"))
    simulated = SimulatedRun(Simulation(shape=(x, y, z), voxel_mm=GRIDS[grid], volumes=ALIKE))
    some = list(simulated.volumes())
    to_and_fro = [*some, *some[-2:0:-1]]
    data = np.stack([to_and_fro[n % len(to_and_fro)] for n in range(volumes)], axis=-1)
    image = nib.Nifti1Image(data, simulated.affine)
    image.header.set_zooms((*GRIDS[grid], TR_S))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


class Fit:
    """Registration, tokens and running fit for so many cubes around the middle of the grid."""

    def __init__(self, cubes: int, volumes: int, threads: int) -> None:
        spec = Bundle.open("reference").manifest.encoder
        places = np.stack(np.unravel_index(np.arange(np.prod(CUBES)), CUBES), axis=-1)
        from_middle = np.linalg.norm(places - (np.array(CUBES) - 1) / 2, axis=1)
        active = np.sort(np.argsort(from_middle, kind="stable")[:cubes])
        shape = (1, cubes, CUBE**3)
        spec = replace(
            spec,
            normalisation="none",
            inputs={"tokens": TensorSpec(shape=shape, dtype="float32")},
        )
        preprocessor = Preprocessor(spec, {"active": active}, 1.0, threads)
        affine = np.array(spec.geometry.affine, np.float64)
        self._intake = Intake(preprocessor, affine, None, Placing(), threads=threads)
        self._glm = StreamingGlm(
            self._intake.elements.size,
            GlmConfig(drift=Drift(volumes=volumes, tr_s=TR_S), slice_time_s=TR_S / 2),
        )
        for onset_s in np.arange(3.0, (volumes - 1) * TR_S, GAP_S):
            self._glm.add_event(float(onset_s), 3.0)

    def take(self, frame: Frame) -> None:
        """Take in a volume."""
        if not self._intake.take(frame, frame.number, self._glm).registered:
            raise SystemExit(f"volume {frame.number} was not registered; not timed")


def arrivals_s(
    run: Path, folder: Path, form: str, volumes: int, pace_s: float, fit: Fit | None
) -> dict[str, Any]:
    """Seconds from the stamp of each file to notice, to hand and to the fit."""
    folder.mkdir()
    source = FolderSource(folder, pace_s=pace_s)
    receiver = Arrivals(source, Slots(tr_s=TR_S, pace_s=pace_s, volumes=volumes))
    words = ["replay", run, "--to", folder, "--speed", TR_S / pace_s, "--format", form]
    command = [sys.executable, "-P", "-c", PLAY, *map(str, words)]
    told_path = folder.with_suffix(".jsonl")
    moments: dict[int, tuple[float, float, float]] = {}
    with told_path.open("w") as told, subprocess.Popen(command, stdout=told) as player:
        for arrival in receiver:
            if not isinstance(arrival, Frame):
                raise SystemExit(f"{form}: {arrival}; no figure is worth anything")
            in_hand_s = time.perf_counter()
            if fit is not None:
                fit.take(arrival)
            moments[arrival.number] = arrival.arrived_s, in_hand_s, time.perf_counter()
        player.wait()
    source.close()
    if list(moments) != list(range(volumes)):
        raise SystemExit(f"{form}: {len(moments)} of {volumes} volumes came")
    tellings = [json.loads(line) for line in told_path.read_text().splitlines()]
    at_s = {t["number"]: t["at_s"] for t in tellings if t["event"] == "file"}
    names = ("noticed_ms", "in_hand_ms", "in_fit_ms")[: 2 if fit is None else 3]
    return {
        name: percentiles_ms([moments[n][i] - at_s[n] for n in at_s])
        for i, name in enumerate(names)
    }


def main() -> None:
    """Every grid in every format, and the fit for each number of cubes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--pace-ms", type=float, default=200.0)
    parser.add_argument("--cubes", type=int, nargs="+", default=[96, 288])
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    question = "from a volume's last byte on the disk to the loop's hands, and into the fit"
    result: dict[str, Any] = {"question": question, **machine()}
    result |= {"pace_ms": args.pace_ms, "threads": args.threads, "arrival": {}}
    with tempfile.TemporaryDirectory() as folder:
        for grid in args.grids:
            run = Path(folder) / f"{grid}.nii"
            make_run(run, grid, args.volumes)
            for form in args.formats:
                for cubes in args.cubes if form == FITTED else [0]:
                    name = f"{grid} {form}" + (f", {cubes} cubes" if cubes else "")
                    fit = Fit(cubes, args.volumes, args.threads) if cubes else None
                    where = Path(folder) / name.replace(" ", "-")
                    found = arrivals_s(run, where, form, args.volumes, args.pace_ms / 1e3, fit)
                    result["arrival"][name] = found
                    print(name, {k: v.get("p99", v["max"]) for k, v in found.items()}, flush=True)
    write(result, args.json)


if __name__ == "__main__":
    main()
