"""The bytes of one NIfTI file to one frame, without a copy if they are plain and native."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any

import numpy as np

from .frame import Frame
from .source import IncompleteVolume, UnreadableVolume

_HEADER_BYTES = 352
_UNITS_PER_SECOND = {"sec": 1.0, "msec": 1e3, "usec": 1e6}
_MAX_BYTES = 1 << 30
"""No volume of a run is larger; a damaged header must not make us ask for more memory."""


def read_nifti(raw: bytes, *, number: int, series: str, arrived_s: float) -> Frame:
    """Read one volume.

    Parameters
    ----------
    raw : bytes
        A whole single-file NIfTI-1 or NIfTI-2, plain or gzip, (X, Y, Z) or (X, Y, Z, 1).
    number, series, arrived_s
        As in `Frame`; the file itself does not say them.

    Raises
    ------
    IncompleteVolume
        Fewer bytes than the header promises, or no whole header.
    UnreadableVolume
        Not NIfTI, no real numbers, no orientation, more than one volume.
    """
    if raw[:2] == b"\x1f\x8b":
        raw = _inflated(raw)
    header = _header(raw)
    try:
        return _frame(raw, header, number, series, arrived_s)
    except (IncompleteVolume, UnreadableVolume):
        raise
    except Exception as exc:  # a damaged header may hold anything
        raise UnreadableVolume(f"a damaged NIfTI header ({type(exc).__name__})") from exc


def _frame(raw: bytes, header: Any, number: int, series: str, arrived_s: float) -> Frame:
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3 or 0 in shape:
        raise UnreadableVolume(f"holds an array of shape {shape}, not one volume (X, Y, Z)")
    if not (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0):
        raise UnreadableVolume("orientation unknown: qform_code and sform_code are both 0")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise UnreadableVolume(f"holds {dtype} values, not integers or real numbers")
    count, offset = int(np.prod(shape)), int(header["vox_offset"])
    wanted = offset + count * dtype.itemsize
    if wanted > _MAX_BYTES:
        raise UnreadableVolume(f"promises {wanted} bytes, more than any volume has")
    if len(raw) < wanted:
        raise IncompleteVolume(f"{len(raw)} of {wanted} bytes", number, series)
    stored = np.frombuffer(raw, dtype, count, offset).reshape(shape, order="F")
    slope, inter = header.get_slope_inter()
    return Frame(
        number=number,
        data=stored.astype(dtype.newbyteorder("="), copy=False),
        affine=np.asarray(header.get_best_affine(), np.float64),
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        tr_s=header_tr_s(header),
        series=series,
        arrived_s=arrived_s,
        acquired_s=_acquired_s(header),
    )


def header_tr_s(header: Any) -> float | None:
    """Repetition time in seconds that a nibabel NIfTI header states, None if it states none."""
    duration = float(header["pixdim"][4])
    unit = header.get_xyzt_units()[1]
    if not (np.isfinite(duration) and duration > 0):
        return None
    return duration / _UNITS_PER_SECOND.get(unit, 1.0)


def _acquired_s(header: Any) -> float | None:
    """The time offset of the volume; 0 is what everyone leaves there who does not know it."""
    offset = float(header["toffset"])
    if not np.isfinite(offset) or offset == 0:
        return None
    return offset / _UNITS_PER_SECOND.get(header.get_xyzt_units()[1], 1.0)


def _header(raw: bytes) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    if len(raw) < _HEADER_BYTES:
        raise IncompleteVolume(f"{len(raw)} bytes, no whole header")
    two = 540 in (int.from_bytes(raw[:4], order) for order in ("little", "big"))
    kind = Nifti2Header if two else Nifti1Header
    magic = raw[4:7] if two else raw[344:347]
    if magic != (b"n+2" if two else b"n+1"):
        raise UnreadableVolume("not a single-file NIfTI")
    if len(raw) < kind.sizeof_hdr:
        raise IncompleteVolume(f"{len(raw)} bytes, no whole header")
    try:
        return kind.from_fileobj(BytesIO(raw))
    except Exception as exc:  # whatever a parser makes of damaged bytes
        raise UnreadableVolume(f"a damaged NIfTI header ({type(exc).__name__})") from exc


def _inflated(raw: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        plain = stream.decompress(raw, _MAX_BYTES)
    except zlib.error as exc:
        raise UnreadableVolume(f"damaged gzip ({exc})") from exc
    if stream.unconsumed_tail:
        raise UnreadableVolume(f"inflates to more than {_MAX_BYTES} bytes")
    if not stream.eof:
        raise IncompleteVolume(f"{len(raw)} bytes of an unfinished gzip")
    return plain
