"""Keeps numpy's products of matrices on one thread while a run goes on.

They are small there, and OpenBLAS's other threads wait for the next one by spinning: with a volume
every tenth of a second they took a whole core from the decoder beside them.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def calm_blas() -> Generator[None]:
    """One thread for BLAS in this process meanwhile; engines and kernels keep theirs."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
