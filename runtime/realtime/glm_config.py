"""What the running fit of a scan is set up with."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from .drift import Drift


@dataclass(frozen=True, slots=True, kw_only=True)
class GlmConfig:
    """What explains a run beside the trial in question."""

    drift: Drift
    """Also tells the TR."""
    slice_time_s: float = 0.0
    """Moment within a TR that a volume stands for."""
    motion: bool = True
    """Six regressors of motion."""
    noise_components: int = 5
    """0 to 5, from voxels outside the mask."""
    autoregressive: bool = False
    """Prewhiten noise that follows itself, each element with its own coefficient. Twice the
    memory."""
    hold: int = 16
    """Volumes within which a late one, a late marker or a late verdict still counts; also those
    that noise components are learnt from."""
    open_s: float = 60.0
    """Seconds from its onset in which a trial's beta can be asked for; each open trial takes memory
    for one value for each element."""
    volumes_per_column: int = 4
    """One nuisance regressor at most for so many volumes."""
    dtype: str = "float32"
    """Of the sums over elements: float32, or float64 for comparison."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise_components <= 5:
            raise InputError(f"'noise_components' must be 0 to 5; got {self.noise_components}")
        least = 2 * self.noise_components + 2
        if self.hold < least:
            raise InputError(
                f"'hold' must be at least {least} to learn {self.noise_components} noise "
                f"components; got {self.hold}"
            )
        if not self.open_s > 0:
            raise InputError(f"'open_s' must be positive; got {self.open_s}")
        if self.volumes_per_column < 1:
            raise InputError(f"'volumes_per_column' must be at least 1: {self.volumes_per_column}")
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"'dtype' must be float32 or float64; got {self.dtype}")
