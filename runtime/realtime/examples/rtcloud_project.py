"""An RT-Cloud project script whose analysis is a scanside decoder.

Put it into `rt-cloud/projects/scanside/scanside.py` with a `conf/scanside.toml` that names

    subjectName = "001"        # BIDS entities
    taskName = "scenes"
    runNum = 1
    imgDir = "/data/dicom"     # as RT-Cloud takes them
    dicomNamePattern = "001_000005_{TR:06d}.dcm"
    minExpectedDicomSize = 300000
    numVolumes = 192
    trS = 1.5
    onsetsS = [12.0, 24.0]     # of the trials, from the first volume, in seconds
    bundle = "/data/bundle"    # made by `scanside export`, or "reference"

RT-Cloud brings volumes and takes results; it knows nothing of motion, drift or noise, and neither
does `activity` below, which is a difference of means. For registration, single-trial betas with
variance, normalisation over trials, deadlines and a run that survives a crash use `scanside watch`
instead: it reads the same files and needs no server.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.funcs import squeeze_image
from numpy.typing import NDArray

from scanside.runtime import Decoder  # pyright: ignore

HERE = os.path.dirname(os.path.realpath(__file__))
PEAK_S = (4.5, 9.0)
"""Seconds after an onset between which the response is averaged."""
BASELINE_S = 6.0
"""Seconds before an onset that it is compared with."""


def activity(volumes: Sequence[NDArray[Any]], tr_s: float, onset_s: float) -> NDArray[np.float32]:
    """How much brighter the brain is after an onset than before it, in percent.

    Parameters
    ----------
    volumes : sequence of (X, Y, Z) arrays
        Those of the run so far.
    tr_s, onset_s : float
        Seconds.

    Returns
    -------
    beta : (X, Y, Z) float32
    """
    at_s = (np.arange(len(volumes)) + 0.5) * tr_s - onset_s
    after = (at_s >= PEAK_S[0]) & (at_s < PEAK_S[1])
    before = (at_s >= -BASELINE_S) & (at_s < 0)
    stack = np.stack([np.asarray(volume, np.float32) for volume in volumes])
    rest = stack[before].mean(axis=0)
    change = stack[after].mean(axis=0) - rest
    return np.where(rest > 0.1 * rest.max(), 100 * change / np.maximum(rest, 1), 0)


def do_run(cfg: Any, bids: Any, subject: Any, decoder: Any) -> list[dict[str, Any]]:
    """Decode each trial once its response has passed; what was told to the presentation computer.

    Parameters
    ----------
    cfg : object
        The fields above.
    bids, subject : object
        RT-Cloud's bidsInterface and subjInterface.
    decoder : Decoder
    """
    entities = {"subject": cfg.subjectName, "task": cfg.taskName, "run": int(cfg.runNum)}
    stream = bids.initDicomBidsStream(
        cfg.imgDir, cfg.dicomNamePattern, cfg.minExpectedDicomSize, anonymize=True, **entities
    )
    volumes: list[NDArray[Any]] = []
    waiting = list(enumerate(cfg.onsetsS))
    told: list[dict[str, Any]] = []
    for number in range(cfg.numVolumes):
        incremental = bids.getIncremental(stream, volIdx=number + 1, timeout=10)
        image = squeeze_image(incremental.image)
        volumes.append(np.asanyarray(image.dataobj))
        while waiting and (number + 1) * cfg.trS >= waiting[0][1] + PEAK_S[1]:
            trial, onset_s = waiting.pop(0)
            beta = nib.Nifti1Image(activity(volumes, cfg.trS, onset_s), image.affine)
            result = decoder.decode(beta, "caption", deadline_s=cfg.trS)
            values = {"trial": trial, "caption": result.caption, "degraded": result.degraded}
            subject.setResultDict(f"trial-{trial}", values)
            told.append(values)
    bids.closeStream(stream)
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """As RT-Cloud starts a project's script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", "-c", default=os.path.join(HERE, "conf", "scanside.toml"))
    parser.add_argument("--runs", "-r", default="")
    parser.add_argument("--scans", "-s", default="")
    args = parser.parse_args(argv)

    sys.path.append(os.path.dirname(os.path.dirname(HERE)))
    from rtCommon.clientInterface import ClientInterface  # pyright: ignore
    from rtCommon.utils import loadConfigFile  # pyright: ignore

    cfg: Any = loadConfigFile(args.config)
    clients: Any = ClientInterface()
    with Decoder.open(cfg.bundle) as decoder:
        do_run(cfg, clients.bidsInterface, clients.subjInterface, decoder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
