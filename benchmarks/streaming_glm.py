"""What does the streaming fit cost for each volume and beta, beside refitting with nilearn?

    python benchmarks/streaming_glm.py --json benchmarks/results/streaming_glm.json

Tokens of 96 and of 288 cubes; TR 1.6 s, a trial every 4 s, drift, motion and five noise components.
The fit is timed on a run of 200 volumes and on one ten times as long, at the beginning, in the
middle and at the end. nilearn refits the first 200 volumes with the same design, as a real-time
system does that keeps all volumes: FirstLevelModel on images, and its solver alone on the matrix.
Correctness first: nothing is printed before the betas agree.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.glm.first_level import FirstLevelModel, run_glm
from numpy.typing import NDArray
from timing import machine, percentiles_ms, write

from scanside.runtime.realtime.design import Event, Regressors, lss_design
from scanside.runtime.realtime.drift import Drift
from scanside.runtime.realtime.glm import StreamingGlm
from scanside.runtime.realtime.glm_config import GlmConfig
from scanside.runtime.realtime.hrf import Response

TR_S, VOLUMES, CUBE = 1.6, 200, 14
NOISE_VOXELS = 2000
LEAST_R = {"ols": 0.999, "ar1": 0.99}
REFIT_CUBES = 96
"""nilearn's images of 288 cubes would take several gigabytes; its matrix does not."""


class Run:
    """A run of any length that needs the memory of a few volumes only.

    A volume is a random pattern that comes again, with drift, responses and noise that do not.
    """

    def __init__(self, cubes: int, volumes: int) -> None:
        self.elements, self.volumes = cubes * CUBE**3, volumes
        rng = np.random.default_rng(0)
        self._noise = rng.normal(0, 10, (13, self.elements)).astype(np.float32)
        self._patterns = rng.normal(0, 30, (4, self.elements)).astype(np.float32)
        self._weights = rng.normal(size=(volumes, 4)).astype(np.float32)
        self._order = rng.integers(0, 13, (volumes, 2))
        self.motion = np.cumsum(rng.normal(0, [0.1] * 3 + [2e-3] * 3, (volumes, 6)), axis=0)
        shared = rng.normal(size=(volumes, 5)) @ rng.normal(0, 30, (5, NOISE_VOXELS))
        self.outside = rng.normal(1000 + shared, 30).astype(np.float32)
        onsets = np.arange(6.01, volumes * TR_S - 10, 4.0)
        self.events = [Event(float(onset), 3.0) for onset in onsets]
        self.drift = Drift(volumes=volumes, tr_s=TR_S)

    def volume(self, frame: int) -> NDArray[np.float32]:
        """(E,) tokens: brightness, four slow patterns, and noise of a unit autoregression."""
        a, b = self._order[frame]
        before = self._order[frame - 1, 0] if frame else a
        out = self._noise[a] + np.float32(0.3) * self._noise[before] + self._noise[b][::-1]
        for weight, pattern in zip(self._weights[frame], self._patterns, strict=True):
            out += weight * pattern
        return out + np.float32(1000 + 0.1 * frame)


def stream(run: Run, autoregressive: bool) -> tuple[StreamingGlm, dict[str, Any]]:
    """Run the fit; seconds of each volume, and of a beta after every tenth."""
    config = GlmConfig(drift=run.drift, autoregressive=autoregressive)
    glm = StreamingGlm(run.elements, config)
    for event in run.events:
        glm.add_event(event.onset_s, event.duration_s)
    update: list[float] = []
    beta: list[float] = []
    for frame in range(run.volumes):
        values = run.volume(frame)
        began = time.perf_counter()
        glm.add_volume(frame, values, motion=run.motion[frame], noise=run.outside[frame])
        update.append(time.perf_counter() - began)
        if frame >= 30 and frame % 10 == 0:
            trial = glm.open_trials[len(glm.open_trials) // 2]
            began = time.perf_counter()
            glm.beta(trial)
            beta.append(time.perf_counter() - began)
    third = run.volumes // 3
    parts = {"begin": update[:third], "middle": update[third : 2 * third], "end": update[-third:]}
    return glm, {
        "cubes": run.elements // CUBE**3,
        "volumes": run.volumes,
        "noise": "ar1" if autoregressive else "ols",
        "update_ms": percentiles_ms(update),
        "update_p50_ms": {name: percentiles_ms(some)["p50"] for name, some in parts.items()},
        "beta_ms": percentiles_ms(beta),
        "memory_mib": round(glm.memory_bytes / 2**20, 1),
    }


def same_design(run: Run, glm: StreamingGlm, trial: int) -> NDArray[np.float64]:
    """The design that the fit holds at its end, with the noise components that it has found."""
    regressors = Regressors(Response.glover(TR_S), TR_S)
    for event in run.events:
        regressors.add(event)
    scores = np.array([glm.noise_scores(values) for values in run.outside])
    found = scores.any(axis=0)
    nuisance = np.concatenate([run.motion, scores[:, found]], axis=1)
    return lss_design(regressors, trial, range(run.volumes), run.drift, nuisance)


def refit(run: Run, glm: StreamingGlm, noise: str, repeats: int) -> dict[str, Any]:
    """Seconds of nilearn's fits of all volumes, and how well the betas agree."""
    trial = glm.open_trials[len(glm.open_trials) // 2]
    design = same_design(run, glm, trial)
    matrix = np.stack([run.volume(frame) for frame in range(run.volumes)])
    solver: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        labels, results = run_glm(matrix, design, noise_model=noise)
        solver.append(time.perf_counter() - began)
    theirs = np.empty(run.elements)
    for label, result in results.items():
        theirs[labels == label] = result.theta[0]
    r = float(np.corrcoef(glm.beta(trial).values, theirs)[0, 1])
    if not r >= LEAST_R[noise]:
        raise SystemExit(f"betas of nilearn's {noise} correlate by {r:.5f} only; not timed")
    row: dict[str, Any] = {"r": round(r, 6), "solver_s": [round(s, 3) for s in solver]}
    if run.elements == REFIT_CUBES * CUBE**3:
        row["model_s"] = [round(first_level(run, matrix, design, noise), 3) for _ in range(repeats)]
    return row


def first_level(
    run: Run, matrix: NDArray[np.float32], design: NDArray[np.float64], noise: str
) -> float:
    """Seconds of FirstLevelModel, images in memory."""
    side = (CUBE * 8, CUBE * 4, CUBE * 3)  # 96 cubes
    images = nib.Nifti1Image(np.moveaxis(matrix.reshape(-1, *side), 0, -1), np.eye(4))
    mask = nib.Nifti1Image(np.ones(side, np.uint8), np.eye(4))
    names = ["trial", *(f"c{n}" for n in range(1, design.shape[1]))]
    frame = pd.DataFrame(design, columns=names, index=np.arange(run.volumes) * TR_S)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        model = FirstLevelModel(
            t_r=TR_S, mask_img=mask, noise_model=noise, signal_scaling=False, n_jobs=1
        )
        model.fit(images, design_matrices=frame)
        model.compute_contrast("trial", output_type="effect_size")
        return time.perf_counter() - began


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cubes", type=int, nargs="+", default=[96, 288])
    parser.add_argument("--noise", nargs="+", choices=["ols", "ar1"], default=["ols", "ar1"])
    parser.add_argument("--long", type=int, default=2000, help="volumes of the long run")
    parser.add_argument("--repeats", type=int, default=3, help="of nilearn's fits")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    rows: list[dict[str, Any]] = []
    for cubes in args.cubes:
        for noise in args.noise:
            glm, row = stream(short := Run(cubes, VOLUMES), noise == "ar1")
            row["nilearn"] = refit(short, glm, noise, args.repeats)
            ours_s = (row["update_ms"]["p50"] + row["beta_ms"]["p50"]) / 1000
            for name in ("solver", "model"):
                if (seconds := row["nilearn"].get(f"{name}_s")) is not None:
                    row[f"times_{name}"] = round(float(np.median(seconds)) / ours_s, 1)
                    per_volume = row["update_ms"]["p50"] / 1000
                    row[f"times_{name}_volume"] = round(float(np.median(seconds)) / per_volume, 1)
            del glm
            _, row["long"] = stream(Run(cubes, args.long), noise == "ar1")
            rows.append(row)
            print(
                f"{cubes} cubes, {noise}: update p50 {row['update_ms']['p50']} p99 "
                f"{row['update_ms']['p99']} ms (of {args.long} volumes: "
                f"{row['long']['update_p50_ms']}), beta p50 {row['beta_ms']['p50']} ms; nilearn "
                f"{row['nilearn']}",
                flush=True,
            )
    result = {
        "question": "cost of the streaming fit, beside refitting with nilearn",
        **about,
        "tr_s": TR_S,
        "rows": rows,
        "times": "nilearn's median seconds over ours, for one volume and one beta; _volume: for "
        "taking in one volume alone",
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
