"""Malformed headers and files, given to the readers of every format; `network_fuzz.py` runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from scanside.benchmarks.malformed import changed, volume
from scanside.runtime.realtime.afni_prolog import read_prolog
from scanside.runtime.realtime.afni_sender import prolog_bytes
from scanside.runtime.realtime.dicom_volume import read_dicom
from scanside.runtime.realtime.nifti_volume import read_nifti
from scanside.runtime.realtime.par_rec import read_par_rec
from scanside.runtime.realtime.source import IncompleteVolume, UnreadableVolume
from scanside.runtime.realtime.writers import FORMATS, make_writer
from scanside.runtime.realtime.zmq_header import header_bytes, read_header

_MOST_BYTES = 1 << 20
"""That a header may promise."""
Reader = Callable[[bytes], Any]


def fuzz_headers(count: int, seed: int = 0) -> dict[str, int]:
    """Change headers and read them; how many were refused, and how many could still be read.

    Any other error than the two for bad input ends it.
    """
    rng = np.random.default_rng(seed)
    readers = [*_network_readers(), *_file_readers()]
    read = 0
    for turn in range(count):
        raw, reader = readers[turn % len(readers)]
        try:
            reader(changed(raw, rng))
            read += 1
        except (UnreadableVolume, IncompleteVolume):
            pass
    return {"sent": count, "refused": count - read, "read": read}


def _network_readers() -> list[tuple[bytes, Reader]]:
    good = volume()
    prolog = prolog_bytes(good, good.data, by_slice=False).rstrip(b"\0")
    return [
        (header_bytes(good), lambda raw: read_header(raw, _MOST_BYTES)),
        (_without_matrix(prolog), lambda raw: read_prolog(raw, _MOST_BYTES)),
        (prolog, lambda raw: read_prolog(raw, _MOST_BYTES)),
    ]


def _file_readers() -> list[tuple[bytes, Reader]]:
    """A good file of each format."""
    found: list[tuple[bytes, Reader]] = []
    for name in FORMATS:
        (suffix, file), *others = make_writer(name, "fuzz").parts(volume())
        if suffix == ".dcm":
            found.append((file, lambda raw: read_dicom(raw, arrived_s=0.0)))
        elif suffix == ".par":
            rec = others[0][1]
            found.append(
                (file, lambda raw, rec=rec: read_par_rec(raw, rec, name="1.par", arrived_s=0.0))
            )
        else:
            found.append(
                (file, lambda raw: read_nifti(raw, number=0, series="fuzz", arrived_s=0.0))
            )
    return found


def _without_matrix(prolog: bytes) -> bytes:
    """The geometry in words instead of a matrix."""
    lines = [line for line in prolog.split(b"\n") if not line.startswith(b"OBLIQUE")]
    return b"\n".join([*lines, b"XYZFIRST 7.5R 7A 6I", b""])
