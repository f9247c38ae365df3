"""Replayed volumes as Philips PAR/REC, one pair for each volume or one for a whole run.

The geometry of a PAR is three angles and an offset of the volume's middle along Philips' axes
(posterior, superior, left), inverted here from the affine as nibabel composes it:
https://nipy.org/nibabel/reference/nibabel.parrec.html
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .dicom_writing import axes, stored
from .volume_writer import WrittenVolume

_RAS_TO_PSL = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
_TRANSVERSE = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Rows, columns and slices of a transverse picture to those axes."""


class ParRecWriter:
    """One pair for each volume, the header first."""

    suffix = ".par"

    def parts(self, volume: WrittenVolume) -> list[tuple[str, bytes]]:
        """Ending of each file's name, and the whole file; errors are those of `par_rec_files`."""
        par, rec = par_rec_files([volume])
        return [(self.suffix, par), (".rec", rec)]


def par_rec_files(volumes: Sequence[WrittenVolume]) -> tuple[bytes, bytes]:
    """PAR and REC of some volumes of a run.

    Raises
    ------
    InputError
        Axes that are not at right angles, which a PAR cannot say.
    """
    first = volumes[0]
    columns, rows, slices = first.data.shape
    directions, spacing = axes(first.affine)
    flip = np.linalg.det(directions) < 0  # a PAR knows right-handed axes only
    affine = first.affine @ np.diag([1.0, -1, 1, 1]) if flip else first.affine
    if flip:
        affine[:3, 3] -= affine[:3, 1] * (rows - 1)
    angles = _angles(affine[:3, :3] / spacing)
    middle = (np.array(first.data.shape) - 1) / 2
    lines: list[str] = []
    pixels: list[NDArray[np.uint16]] = []
    for dynamic, volume in enumerate(volumes):
        values, slope, inter = _unsigned(volume)
        for k in range(slices):
            offset = _offset(affine, [*middle[:2], k])
            lines.append(
                f"{k + 1} 1 {dynamic + 1} 1 0 2 {len(lines)} 16 100 {columns} {rows} "
                f"{inter:.10g} {slope:.10g} 1.0 1070 1860 {angles} {offset} "
                f"{spacing[2]:.8f} 0.0 0 1 0 2 {spacing[0]:.8f} {spacing[1]:.8f} 30.0 "
                f"{volume.acquired_s:.4f} 0.0 0.0 1 90.0 0 0 0 39 0.0 1 1 4 0 0.0 0.0 0.0 1"
            )
            plane = values[:, ::-1, k] if flip else values[:, :, k]
            pixels.append(plane.T)
    counted = {"slices": slices, "dynamics": len(volumes)}
    placed = {"angles": angles, "offset": _offset(affine, middle)}
    head = _HEAD.format(tr_ms=first.tr_s * 1e3, **placed, **counted)
    text = "\n".join([head, *lines, "", _END, ""])
    return text.encode(), np.stack(pixels).astype("<u2").tobytes()


def _angles(directions: NDArray[np.float64]) -> str:
    """Degrees about Philips' axes: rotations about the second, the first, the third in turn."""
    turn = _RAS_TO_PSL @ directions @ _TRANSVERSE.T
    ap = np.arcsin(np.clip(turn[2, 1], -1, 1))
    fh = np.arctan2(-turn[2, 0], turn[2, 2])
    rl = np.arctan2(-turn[0, 1], turn[1, 1])
    return " ".join(f"{angle:.8f}" for angle in np.degrees([ap, fh, rl]))


def _offset(affine: NDArray[np.float64], voxel: ArrayLike) -> str:
    """Where a voxel lies, mm along Philips' axes."""
    return " ".join(f"{mm:.6f}" for mm in _RAS_TO_PSL @ (affine @ np.append(voxel, 1.0))[:3])


def _unsigned(volume: WrittenVolume) -> tuple[NDArray[np.uint16], float, float]:
    """(X, Y, Z) with slope and intercept; a REC has no sign."""
    values, slope, inter = stored(volume)
    low = int(values.min()) if values.dtype.kind == "i" else 0
    return (values.astype(np.int32) - low).astype(np.uint16), slope, inter + slope * low


_END = "# === END OF DATA DESCRIPTION FILE ==============================================="
_HEAD = """\
# === DATA DESCRIPTION FILE ======================================================
#
# Dataset name: replay
#
# CLINICAL TRYOUT             Research image export tool     V4.2
#
# === GENERAL INFORMATION ========================================================
#
.    Patient name                       :   -
.    Examination name                   :   -
.    Protocol name                      :   replay
.    Examination date/time              :   2000.01.01 / 12:00:00
.    Series Type                        :   Image   MRSERIES
.    Acquisition nr                     :   1
.    Reconstruction nr                  :   1
.    Scan Duration [sec]                :   0
.    Max. number of cardiac phases      :   1
.    Max. number of echoes              :   1
.    Max. number of slices/locations    :   {slices}
.    Max. number of dynamics            :   {dynamics}
.    Max. number of mixes               :   1
.    Patient position                   :   Head First Supine
.    Preparation direction              :   Anterior-Posterior
.    Technique                          :   FEEPI
.    Scan resolution  (x, y)            :   80  80
.    Scan mode                          :   MS
.    Repetition time [ms]               :   {tr_ms:.6f}
.    FOV (ap,fh,rl) [mm]                :   240.000  130.000  240.000
.    Water Fat shift [pixels]           :   7.686
.    Angulation midslice(ap,fh,rl)[degr]:   {angles}
.    Off Centre midslice(ap,fh,rl) [mm] :   {offset}
.    Flow compensation <0=no 1=yes> ?   :   0
.    Presaturation     <0=no 1=yes> ?   :   0
.    Phase encoding velocity [cm/sec]   :   0.000000  0.000000  0.000000
.    MTC               <0=no 1=yes> ?   :   0
.    SPIR              <0=no 1=yes> ?   :   0
.    EPI factor        <0,1=no EPI>     :   39
.    Dynamic scan      <0=no 1=yes> ?   :   1
.    Diffusion         <0=no 1=yes> ?   :   0
.    Diffusion echo time [ms]           :   0.0000
.    Max. number of diffusion values    :   1
.    Max. number of gradient orients    :   1
.    Number of label types   <0=no ASL> :   0
#
# === PIXEL VALUES ===============================================================
#  DV = PV * RS + RI             FP = DV / (RS * SS)
#
# === IMAGE INFORMATION ==========================================================
#  sl ec  dyn ph ty    idx pix scan% rec size (re)scale window angulation offcentre thick gap info
#
"""
