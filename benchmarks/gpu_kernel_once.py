"""One launch of every kernel of ours, for compute-sanitizer: the compiled resample kernel for every
type of volume and token, the small arithmetic between graphs, and what looks at pictures.

compute-sanitizer --tool memcheck python benchmarks/gpu_kernel_once.py BUNDLE/kernels
"""

from __future__ import annotations

import sys

import gpu_smoke
import numpy as np
from resample_problem import INTER, MAPPINGS, SHAPES, SLOPE, make_problem, random_volumes

from scanside.kernels.host_to_host import HostResampler

STORED = ("int16", "uint16", "float16", "float32")


def main() -> int:
    """Launch; tokens that stayed as they were are an error."""
    for mapping in MAPPINGS:
        problem = make_problem(SHAPES["subj02"], mapping, 96)
        for dtype in ("float32", "float16"):
            gpu = HostResampler(
                sys.argv[1],
                problem.geometry,
                dtype=dtype,
                mean=problem.mean,
                inv_std=problem.inv_std,
            )
            for stored in STORED:
                volumes = random_volumes(2, problem.shape, "int16").astype(stored)
                out = np.full((2, *problem.geometry.shape), np.nan, dtype)
                gpu(
                    volumes.transpose(0, 3, 2, 1),
                    out,
                    model_to_source=problem.matrix,
                    slope=SLOPE,
                    inter=INTER,
                )
                if np.isnan(out).any():
                    raise SystemExit(f"{mapping}, {stored} to {dtype}: tokens were not written")
            gpu.close()
    gpu_smoke.arithmetic()
    gpu_smoke.looks()
    if gpu_smoke.failures:
        raise SystemExit("; ".join(gpu_smoke.failures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
