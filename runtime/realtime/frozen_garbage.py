"""Keeps Python's collector from looking through all libraries while a run goes on.

A full collection goes through every object that there is, which stops all threads for a tenth of a
second, and any thread that makes many objects brings one about: a subscriber who floods did. What
is there before the run lives as long as the run, so it is put aside.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def frozen_garbage() -> Generator[None]:
    """Collections in this process look only at what has been made since, meanwhile."""
    gc.freeze()  # without a collection before: it would cost the first volume what it is to save
    try:
        yield
    finally:
        gc.unfreeze()
