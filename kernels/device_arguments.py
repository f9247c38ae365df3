"""Arrays in device memory, checked by name and packed as the driver takes them. Needs no device."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import checked_matrix
from .geometry import Geometry
from .launch_plan import LaunchPlan, launch_plan
from .variants import ARGUMENTS, SCRATCH

_CTYPES: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceArray:
    """Memory of a device, described; it belongs to whoever allocated it."""

    pointer: int
    """Address of the first element."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None = None
    """In bytes; None where the memory is contiguous in C order."""

    @classmethod
    def of(cls, array: Any) -> DeviceArray:
        """Describe an array of CuPy, Numba or PyTorch, which share `__cuda_array_interface__`."""
        described = getattr(array, "__cuda_array_interface__", None)
        if described is None:
            raise TypeError(f"expected an array in device memory; got {type(array).__name__}")
        return cls(
            pointer=described["data"][0],
            shape=tuple(described["shape"]),
            dtype=np.dtype(described["typestr"]),
            strides=described.get("strides"),
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """The strides in bytes, whether or not they were given."""
        return self.contiguous_steps if self.strides is None else tuple(self.strides)

    @property
    def contiguous_steps(self) -> tuple[int, ...]:
        """The strides in bytes of contiguous memory of this shape."""
        steps = [self.dtype.itemsize]
        for size in self.shape[:0:-1]:
            steps.append(steps[-1] * size)
        return tuple(reversed(steps))


def check_device_arrays(
    volumes: DeviceArray,
    tokens: DeviceArray,
    geometry: Geometry,
    volume_dtype: np.dtype[Any],
    dtype: np.dtype[Any],
) -> None:
    """Refuse what the kernel would read or write wrongly."""
    if len(volumes.shape) not in (3, 4) or 0 in volumes.shape:
        raise ValueError(
            "'volumes' must have three axes, or four with the batch first, none empty; got shape "
            f"{volumes.shape}"
        )
    if volumes.dtype != volume_dtype:
        raise TypeError(f"'volumes' must be {volume_dtype}, as prepared; got {volumes.dtype}")
    if any(step % volume_dtype.itemsize for step in (*volumes.steps, volumes.pointer)):
        raise ValueError(
            f"'volumes' must lie at whole elements of {volume_dtype.itemsize} bytes; got strides "
            f"{volumes.steps} from {volumes.pointer:#x}"
        )
    shape = (*volumes.shape[:-3], *geometry.shape)
    if tokens.shape != shape or tokens.dtype != dtype:
        raise ValueError(f"'tokens' must be {shape} {dtype}; got {tokens.shape} {tokens.dtype}")
    unlike = zip(tokens.steps, tokens.contiguous_steps, tokens.shape, strict=True)
    if any(step != wanted and size > 1 for step, wanted, size in unlike):
        raise ValueError(
            f"'tokens' must be contiguous device memory, strides {tokens.contiguous_steps}; got "
            f"{tokens.steps}"
        )
    for name, array in (("volumes", volumes), ("tokens", tokens)):
        if not array.pointer and 0 not in array.shape:
            raise ValueError(f"'{name}' is a null pointer")


def plan_launch(
    geometry: Geometry,
    volumes: DeviceArray,
    model_to_source: NDArray[np.float64],
    *,
    slope: float,
    inter: float,
    fill: float,
    mean: bool,
    inv_std: bool,
) -> LaunchPlan:
    """The plan for device volumes, with the matrix and the numbers checked by name."""
    shape_only = np.broadcast_to(np.float32(0), volumes.shape)
    matrix = checked_matrix(model_to_source, shape_only, geometry)
    batch = len(volumes.shape) == 4
    return launch_plan(
        geometry,
        shape=volumes.shape if batch else (1, *volumes.shape),
        strides=volumes.steps if batch else (0, *volumes.steps),
        model_to_source=matrix,
        slope=slope,
        inter=inter,
        fill=fill,
        mean=mean,
        inv_std=inv_std,
    )


def packed(plan: LaunchPlan, pointers: Sequence[int]) -> tuple[list[Any], Any]:
    """Arguments as C values, and the table of their addresses that the driver reads.

    Parameters
    ----------
    plan : LaunchPlan
    pointers : sequence of int
        Addresses in the order of the contract.

    Returns
    -------
    values : list of ctypes values
        To be kept for as long as the table is used.
    table : array of void pointers
    """
    kinds = [_CTYPES[kind] for _, kind, count in ARGUMENTS for _ in range(count) if "*" not in kind]
    values = [ctypes.c_uint64(pointer) for pointer in pointers]
    values += [kind(value) for kind, value in zip(kinds, plan.flat(), strict=True)]
    values += [ctypes.c_uint64(0) for _ in SCRATCH]
    table = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    return values, table
