"""DLPack by hand: enough of its C structures to lend and to borrow memory without a framework.

https://dmlc.github.io/dlpack/latest/python_spec.html, the unversioned structure that every library
still takes and gives.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

CPU, CUDA, CUDA_HOST = 1, 2, 3
"""Kinds of device that are known here."""
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}
_NAME = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
_get = ctypes.pythonapi.PyCapsule_GetPointer
_get.restype, _get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]

_lent: dict[int, tuple[Any, ...]] = {}
"""What lent memory is kept alive by, until whoever borrowed it says that it is done."""


@_Deleter
def _returned(managed: Any) -> None:
    _lent.pop(ctypes.addressof(managed.contents), None)


@_Destructor
def _dropped(capsule: int) -> None:
    """A capsule that nobody took: its name is unchanged."""
    if _is_valid(capsule, _NAME):
        _lent.pop(_get_raw(capsule, _NAME), None)


_get_raw = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
"""As `_get`, for a capsule that has no reference any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Contiguous memory as DLPack describes it."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: tuple[int, int]
    """Kind and number."""


def lend(memory: Described, owner: Any) -> Any:
    """A capsule `dltensor` for contiguous memory, which `owner` keeps alive.

    Parameters
    ----------
    memory : Described
    owner : object
        Held until the borrower is done.
    """
    dims = len(memory.shape)
    shape = (ctypes.c_int64 * max(dims, 1))(*memory.shape)
    steps = [math.prod(memory.shape[axis + 1 :]) for axis in range(dims)]
    strides = (ctypes.c_int64 * max(dims, 1))(*steps)
    managed = _Managed()
    managed.tensor = _Tensor(
        data=memory.pointer,
        device=_Device(*memory.device),
        ndim=dims,
        dtype=_Type(_KINDS[memory.dtype.kind], 8 * memory.dtype.itemsize, 1),
        shape=ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
        strides=ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64)),
        byte_offset=0,
    )
    managed.deleter = _returned
    address = ctypes.addressof(managed)
    _lent[address] = (managed, shape, strides, owner)
    return _new(address, _NAME, _dropped)


def borrow(capsule: Any) -> Described:
    """What a capsule describes; it stays valid for as long as the capsule is kept.

    Raises
    ------
    TypeError
        No capsule `dltensor`, or elements that NumPy has no type for.
    ValueError
        The memory is not contiguous in C order.
    """
    try:
        address = _get(capsule, _NAME)
    except (ValueError, ctypes.ArgumentError) as exc:
        raise TypeError(f"expected a DLPack capsule; got {type(capsule).__name__}") from exc
    tensor = ctypes.cast(address, ctypes.POINTER(_Managed)).contents.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    wanted = [math.prod(shape[axis + 1 :]) for axis in range(tensor.ndim)]
    if tensor.strides and any(
        tensor.strides[axis] != wanted[axis] for axis in range(tensor.ndim) if shape[axis] > 1
    ):
        raise ValueError(f"expected contiguous memory of shape {shape}; got other strides")
    letters = {code: letter for letter, code in _KINDS.items()}
    letter = letters.get(tensor.dtype.code)
    if letter is None or tensor.dtype.lanes != 1:
        raise TypeError(f"DLPack type {tensor.dtype.code} of {tensor.dtype.bits} bits is not known")
    return Described(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        dtype=np.dtype(f"{letter}{tensor.dtype.bits // 8}"),
        device=(tensor.device.kind, tensor.device.number),
    )
