"""Keeps the process in memory while a run goes on.

Between two volumes nothing is computed, and a system that is short of memory, or a virtual machine
whose host takes idle pages back, moves out just what the next volume needs: half a second was seen
for a beta that takes 20 ms. Locked pages stay. It needs the right to lock (`ulimit -l unlimited`).
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Generator
from contextlib import contextmanager

_CURRENT, _FUTURE, _ON_FAULT = 1, 2, 4
"""Of Linux: pages that are there, those to come, and both only once they are used."""


@contextmanager
def locked_memory() -> Generator[bool]:
    """Lock all memory of this process meanwhile; gives whether it could be."""
    locked = may_lock() and _libc().mlockall(_CURRENT | _FUTURE | _ON_FAULT) == 0
    try:
        yield locked
    finally:
        if locked:
            _libc().munlockall()


def may_lock() -> bool:
    """Whether memory can be locked without a limit; with one, later allocations would fail."""
    if sys.platform != "linux":
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        return True
    return os.geteuid() == 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
