"""How exact and how fast is motion correction, beside SimpleITK's rigid registration?

    python benchmarks/motion.py --json benchmarks/results/motion.json

A head whose motion is known (simulated_head.py), noise of 2 %, on a common grid of 64 x 64 x 36 and
on NSD's. "jumps": every volume anywhere within 3 mm and 3 degrees, registered from the reference's
place. "run": a restless subject, each volume registered from where the one before was. Both are
given the same volumes and starts, one after the other in one process with the same number of
threads. Nothing is timed as a success that is not within 0.05 mm and 0.05 degrees.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from simulated_head import CENTRE_MM, SimulatedHead, error, random_walk, rigid
from timing import machine, percentiles_ms, write

from scanside.runtime.realtime.registration import Registration
from scanside.runtime.volume import Volume

Matrix = NDArray[np.float64]
Register = Callable[[Volume, Matrix], Matrix]

GRIDS: dict[str, tuple[tuple[int, int, int], tuple[float, float, float]]] = {
    "64x64x36": ((64, 64, 36), (3.0, 3.0, 3.6)),
    "81x104x83": ((81, 104, 83), (1.8, 1.8, 1.8)),
}
LIMIT_MM, LIMIT_DEGREES = 0.05, 0.05
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ours(reference: Volume, threads: int) -> Register:
    registration = Registration(reference, threads=threads)

    def register(volume: Volume, start: Matrix) -> Matrix:
        return registration.register(volume, start).matrix

    return register


def to_sitk(volume: Volume) -> sitk.Image:
    """ITK counts the first axis fastest, and its world runs to the left and to the back."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))
    lps = LPS @ volume.affine
    edges = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(edges.tolist())
    image.SetDirection((lps[:3, :3] / edges).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def simpleitk(reference: Volume, threads: int) -> Register:
    """SimpleITK as its examples set it up for two images of one kind: mean squares, gradient
    descent with physical scales, two levels."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    fixed = to_sitk(reference)
    centre = (CENTRE_MM * (-1, -1, 1)).tolist()

    def register(volume: Volume, start: Matrix) -> Matrix:
        lps = LPS @ start @ LPS
        transform = sitk.Euler3DTransform()
        transform.SetCenter(centre)
        transform.SetMatrix(lps[:3, :3].ravel().tolist(), 1e-6)
        transform.SetTranslation((lps[:3, :3] @ centre + lps[:3, 3] - centre).tolist())
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMeanSquares()
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=1.0,
            minStep=1e-4,
            numberOfIterations=100,
            gradientMagnitudeTolerance=1e-8,
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([2, 1])
        method.SetSmoothingSigmasPerLevel([2.0, 1.0])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(fixed, to_sitk(volume))
        found = np.eye(4)
        found[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
        shift = np.array(transform.GetTranslation())
        found[:3, 3] = shift + centre - found[:3, :3] @ centre
        return LPS @ found @ LPS

    return register


def measure(
    register: Register, volumes: list[Volume], truth: list[Matrix], warm: bool
) -> tuple[list[float], NDArray[np.float64]]:
    """Seconds of each volume, and how far it is off: (volumes, 2) millimetres and degrees."""
    seconds, off, start = [], [], np.eye(4)
    for volume, true in zip(volumes, truth, strict=True):
        began = time.perf_counter()
        found = register(volume, start)
        seconds.append(time.perf_counter() - began)
        off.append(error(found, true))
        start = found if warm else start
    return seconds, np.array(off)


def summarise(
    seconds: list[float], off: NDArray[np.float64], about: dict[str, Any]
) -> dict[str, Any]:
    row = about | {"ms": percentiles_ms(seconds)}
    for axis, name in enumerate(("mm", "degrees")):
        row[f"error_{name}"] = {
            "p50": round(float(np.median(off[:, axis])), 4),
            "p95": round(float(np.percentile(off[:, axis], 95)), 4),
            "max": round(float(off[:, axis].max()), 4),
        }
    row["within_limits"] = bool((off < (LIMIT_MM, LIMIT_DEGREES)).all())
    return row


def measure_grid(name: str, count: int, rival_count: int, threads: int) -> list[dict[str, Any]]:
    """Rows of both, for jumps and for a run."""
    shape, voxel_mm = GRIDS[name]
    head = SimulatedHead(shape, voxel_mm)
    rng = np.random.default_rng(0)

    def scan(moved: Matrix) -> Volume:
        return Volume(data=head.volume(moved, rng), affine=head.affine)

    reference = scan(np.eye(4))
    contestants = {"scanside": ours(reference, threads), "SimpleITK": simpleitk(reference, threads)}
    jumps = rng.uniform(-3, 3, (count, 6))
    motions = {"jumps": jumps, "run": random_walk(count, rng)}
    rows: list[dict[str, Any]] = []
    for motion, parameters in motions.items():
        truth = [rigid(row, CENTRE_MM) for row in parameters]
        volumes = [scan(moved) for moved in truth]
        for who, register in contestants.items():
            some = count if who == "scanside" else min(rival_count, count)
            register(volumes[0], np.eye(4))  # warms up
            seconds, off = measure(register, volumes[:some], truth[:some], motion == "run")
            about = {"grid": name, "motion": motion, "who": who, "volumes": some}
            rows.append(summarise(seconds, off, about | {"threads": threads}))
            show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    ms, mm, degrees = row["ms"], row["error_mm"], row["error_degrees"]
    print(
        f"{row['grid']:>10} {row['motion']:>6} {row['who']:>10}: "
        f"p50 {ms.get('p50', nan):8.1f} ms, p99 {ms.get('p99', nan):8.1f} ms, "
        f"max {ms['max']:8.1f} ms; "
        f"off by {mm['p50']:.4f} (max {mm['max']:.4f}) mm, "
        f"{degrees['p50']:.4f} (max {degrees['max']:.4f}) degrees",
        flush=True,
    )


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grids", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--rival-volumes", type=int, default=20, help="SimpleITK takes longer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    rows = [
        row
        for name in args.grids
        for row in measure_grid(name, args.volumes, args.rival_volumes, args.threads)
    ]
    result = {
        "question": "motion of a simulated head, beside SimpleITK's rigid registration",
        **about,
        "SimpleITK": sitk.Version.VersionString(),
        "limits": {"mm": LIMIT_MM, "degrees": LIMIT_DEGREES},
        "rows": rows,
    }
    write(result, args.json)
    return 0 if all(row["within_limits"] for row in rows if row["who"] == "scanside") else 1


if __name__ == "__main__":
    raise SystemExit(main())
