"""A brain volume as it is stored: raw values, scaling and place.

Stored integers stay integers; their slope and intercept travel beside them and are applied once, in
the resample kernel. Whatever cannot be decoded is refused here, in one sentence.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

VolumeSource: TypeAlias = Any
"""A path, a nibabel image, a pair (array, affine), or a Volume."""

_KERNEL_TYPES = ("int16", "uint16", "float16", "float32")
_STORED_AS = {"int8": "int16", "uint8": "int16", "bool": "int16"}
"""Where small integers go that the kernel does not read; everything else becomes float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Volume:
    """One volume: `data * slope + inter` in the units of the bundle's input."""

    data: NDArray[Any]
    """(X, Y, Z) int16, uint16, float16 or float32 in native byte order, any memory layout."""
    affine: NDArray[np.float64]
    """(4, 4) voxel centres to millimetres, right-anterior-superior."""
    slope: float = 1.0
    inter: float = 0.0
    name: str = "volume"
    """What error messages call it."""


def load_volume(source: VolumeSource, index: int | None = None) -> Volume:
    """Read and check one volume.

    Parameters
    ----------
    source : path, nibabel image, or (array, affine)
        (X, Y, Z), or (X, Y, Z, T) with an index; real numbers; any orientation.
    index : int, optional
        Which volume of a 4-D source, from 0; may be left out when there is only one.

    Raises
    ------
    InputError
        No such file, not NIfTI, truncated, wrong number of dimensions, index outside, unknown
        orientation, all zero, or voxels that are NaN or infinite.
    """
    if isinstance(source, Volume):
        volume = source
    elif isinstance(source, str | os.PathLike):
        volume = _from_file(Path(source), index)
    elif isinstance(source, tuple) and len(source) == 2:
        volume = _from_array(np.asarray(source[0]), source[1], index)
    elif hasattr(source, "dataobj") and hasattr(source, "affine"):
        with _reading("volume"):
            volume = _from_image(source, index, "volume")
    elif isinstance(source, np.ndarray):
        raise InputError(
            "'volume' is an array without its affine; pass the pair (array, affine), affine 4x4"
        )
    else:
        raise InputError(
            "'volume' must be a path, a nibabel image or a pair (array, affine); "
            f"got {type(source).__name__}"
        )
    _check_values(volume)
    return volume


def _from_file(path: Path, index: int | None) -> Volume:
    import nibabel as nib

    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a NIfTI file (.nii or .nii.gz)")
    with _reading(str(path)):
        image: Any = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise InputError(
                f"{path} is not NIfTI but {type(image).__name__}; convert it to .nii or .nii.gz"
            )
        return _from_image(image, index, str(path))


@contextmanager
def _reading(name: str) -> Generator[None]:
    """Turns what nibabel and the file system raise into one sentence; a nibabel image may read its
    file as late as here.
    """
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        yield
    except InputError:
        raise
    except ImageFileError as exc:
        raise InputError(
            f"{name} is not a NIfTI file (.nii or .nii.gz), or is cut off within its header"
        ) from exc
    except FileNotFoundError as exc:
        raise InputError(f"{name} can no longer be read: {exc.filename} is gone") from exc
    except PermissionError as exc:
        raise InputError(f"{name} cannot be read: permission denied") from exc
    except (EOFError, OSError, zlib.error) as exc:
        raise InputError(
            f"{name} is truncated or damaged ({exc}); copy it again from its source"
        ) from exc
    except (ValueError, HeaderDataError) as exc:
        # fewer bytes than the header promises, or a header that makes no sense
        raise InputError(
            f"{name} is truncated or its header is damaged ({exc}); copy it again from its source"
        ) from exc


def _from_image(image: Any, index: int | None, name: str) -> Volume:
    from nibabel.arrayproxy import ArrayProxy

    if hasattr(image, "header") and not _has_orientation(image.header):
        raise InputError(
            f"{name}: its orientation is unknown, for qform_code and sform_code are both 0; "
            "write the affine into the header, or pass the pair (array, affine)"
        )
    index = _checked_index(tuple(image.shape), index, name)
    proxy = image.dataobj
    if isinstance(proxy, ArrayProxy):
        data, slope, inter = _read_stored(proxy, index), proxy.slope, proxy.inter
    else:
        data, slope, inter = _pick(np.asarray(proxy), index), 1.0, 0.0
    affine = _checked_affine(image.affine, name)
    return Volume(
        data=_kernel_type(data, name),
        affine=affine,
        slope=float(slope),
        inter=float(inter),
        name=name,
    )


def _has_orientation(header: Any) -> bool:
    if "sform_code" not in header:
        return True
    return int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0


def _read_stored(proxy: Any, index: int | None) -> NDArray[Any]:
    """Stored values of one volume; of a 4-D file only that volume is kept in memory."""
    from nibabel.fileslice import fileslice
    from nibabel.openers import ImageOpener

    where = (slice(None),) * 3 if index is None else (..., index)
    with ImageOpener(proxy.file_like) as stream:
        data = fileslice(stream, where, proxy.shape, proxy.dtype, proxy.offset, order="F")
        if index is None:
            # gzip compares its checksum only when it reaches the end
            while stream.read(1 << 20):
                pass
    return data


def _from_array(data: NDArray[Any], affine: Any, index: int | None) -> Volume:
    index = _checked_index(data.shape, index, "volume")
    return Volume(
        data=_kernel_type(_pick(data, index), "volume"),
        affine=_checked_affine(affine, "volume"),
    )


def _pick(data: NDArray[Any], index: int | None) -> NDArray[Any]:
    return data if index is None else data[..., index]


def _checked_index(shape: Sequence[int], index: int | None, name: str) -> int | None:
    """The index on the fourth axis, None where there is no such axis."""
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(
            f"{name} has shape {tuple(shape)}; expected (X, Y, Z), or (X, Y, Z, T) with an index"
        )
    count = shape[3] if len(shape) == 4 else 1
    if index is None and count > 1:
        raise InputError(f"{name} holds {count} volumes; say which by its index, 0 to {count - 1}")
    if index is not None and not 0 <= index < count:
        raise InputError(
            f"{name} has no volume {index}; it holds {count}, so the index is 0 to {count - 1}"
        )
    return (index or 0) if len(shape) == 4 else None


def _checked_affine(affine: Any, name: str) -> NDArray[np.float64]:
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise InputError(
            f"{name}: the affine must be a finite 4x4 matrix; got shape {matrix.shape}"
        )
    if np.linalg.matrix_rank(matrix[:3, :3]) < 3:
        raise InputError(f"{name}: the affine is singular, so voxels have no extent")
    return matrix


def _kernel_type(data: NDArray[Any], name: str) -> NDArray[Any]:
    """The array in a type that the kernel reads; no copy where it already is."""
    if data.dtype.kind not in "biuf":
        raise InputError(f"{name} holds {data.dtype} values; expected integers or real numbers")
    native = data.dtype.newbyteorder("=")
    target = native if native.name in _KERNEL_TYPES else np.dtype(_STORED_AS.get(native.name, "f4"))
    with np.errstate(over="ignore"):  # what overflows is infinite, and counted as such
        return data.astype(target, copy=False)


def _check_values(volume: Volume) -> None:
    data, name = volume.data, volume.name
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        nan, infinite = int(np.isnan(data).sum()), int(np.isinf(data).sum())
        raise InputError(
            f"{name} has {nan} NaN and {infinite} infinite voxels of {data.size}; "
            "expected finite numbers only, so mask or interpolate them first"
        )
    if not data.any():
        raise InputError(f"{name} is all zero: every one of its {data.size} voxels is 0")
