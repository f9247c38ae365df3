"""What `resample.c` offers; `native.py` is its only caller, and checks the arguments."""

from typing import Any

from numpy.typing import NDArray

_Array = NDArray[Any]

def tokens(
    volumes: _Array,
    volume_type: int,
    slope: float,
    inter: float,
    out: _Array,
    out_type: int,
    corners: _Array,
    cube: int,
    grid: tuple[int, int, int],
    matrix: _Array,
    low: _Array | None,
    weight: _Array | None,
    outside: _Array | None,
    mean: _Array | None,
    inv_std: _Array | None,
    fill: float,
    threads: int,
    instruction_set: int,
    /,
) -> None: ...
def points(
    volume: _Array,
    volume_type: int,
    slope: float,
    inter: float,
    points: _Array,
    out: _Array,
    gradient: _Array | None,
    fill: float,
    threads: int,
    instruction_set: int,
    /,
) -> None: ...
def instruction_sets() -> tuple[str, ...]: ...
