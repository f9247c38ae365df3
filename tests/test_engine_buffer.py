"""Memory described: what is lent is the same memory, and it is held for as long as it is used."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from scanside.runtime.engines import dlpack
from scanside.runtime.engines.buffer import Buffer
from scanside.runtime.errors import InputError


class Watched(np.ndarray):
    """An array that a weak reference may watch."""


def watched(array: np.ndarray) -> np.ndarray:
    return array.view(Watched)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int16", "uint8", "bool"])
def test_numpy_reads_and_writes_the_memory_that_is_lent(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    lent = np.from_dlpack(Buffer.of_host(array))
    assert lent.shape == array.shape
    assert lent.dtype == array.dtype
    assert np.array_equal(lent, array)
    array[1, 2, 3] = 0
    assert lent[1, 2, 3] == 0


def test_memory_of_another_library_is_borrowed_where_it_lies() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffer = Buffer.from_dlpack(array)
    assert buffer.pointer == array.ctypes.data
    assert (buffer.shape, buffer.dtype, buffer.device) == ((2, 3), np.float32, (dlpack.CPU, 0))
    assert buffer.nbytes == 24
    assert not buffer.on_gpu


def test_lent_memory_lives_until_the_borrower_is_done() -> None:
    array = watched(np.zeros(3, np.float32))
    alive = weakref.ref(array)
    lent = np.from_dlpack(Buffer.of_host(array))
    del array
    gc.collect()
    assert alive() is not None
    del lent
    gc.collect()
    assert alive() is None


def test_a_capsule_that_nobody_takes_gives_the_memory_back() -> None:
    array = watched(np.zeros(3, np.float32))
    alive = weakref.ref(array)
    capsule = Buffer.of_host(array).__dlpack__()
    del array
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None


def test_a_scalar_and_an_empty_array_go_over_too() -> None:
    for array in (np.array(3.0, np.float32), np.zeros((0, 4), np.float32)):
        assert np.array_equal(np.from_dlpack(Buffer.of_host(array)), array)


def test_memory_with_gaps_is_refused() -> None:
    wide = np.zeros((4, 6), np.float32)
    with pytest.raises(InputError, match="contiguous"):
        Buffer.of_host(wide[:, ::2])
    with pytest.raises(InputError, match="contiguous memory of shape"):
        Buffer.from_dlpack(wide[:, ::2])


def test_a_type_without_a_name_here_is_refused() -> None:
    with pytest.raises(InputError, match="DLPack type 5 of 64 bits is not known"):
        Buffer.from_dlpack(np.zeros(3, np.complex64))


def test_a_part_is_the_same_memory_and_never_reaches_past_the_end() -> None:
    array = np.arange(8, dtype=np.float32)
    buffer = Buffer.of_host(array)
    part = buffer.part(8, (2, 2))
    assert np.array_equal(np.from_dlpack(part), [[2, 3], [4, 5]])
    assert np.from_dlpack(buffer.part(4, (4,), np.uint8)).view(np.float32) == 1
    for first in (-4, 20):
        with pytest.raises(InputError, match="do not lie inside a buffer of 32"):
            buffer.part(first, (2, 2))


def test_only_memory_of_a_gpu_has_the_cuda_interface() -> None:
    assert not hasattr(Buffer.of_host(np.zeros(1)), "__cuda_array_interface__")
    on_gpu = Buffer(
        pointer=4096, shape=(2, 3), dtype=np.dtype("float16"), device=(dlpack.CUDA, 0), stream=7
    )
    assert on_gpu.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": "<f2",
        "data": (4096, False),
        "strides": None,
        "stream": 7,
        "version": 3,
    }
