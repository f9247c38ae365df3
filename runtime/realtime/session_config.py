"""What a real-time run is set up with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .patience import Patience, checked_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """One run."""

    tr_s: float
    """Repetition time in seconds."""
    volumes: int
    """Volumes of the run as the scanner counts them, those that are discarded included."""
    discard: int = 0
    """Volumes at the beginning that are left out; onsets count from the first that is kept."""
    trigger: str | None = None
    """A live marker that begins the run instead: the first kept volume is the one that it opens."""
    speed: float = 1.0
    """How many times faster than real a recorded run is played."""
    fast_s: float = 7.5
    """Seconds after the onset that the first answer about a trial knows."""
    refined_s: float = 30.0
    """The same for the second answer."""
    deadline_s: float | None = None
    """Seconds from the arrival of an answer's last volume to its end; one TR if None."""
    tasks: tuple[str, ...] = ("preview", "caption", "image")
    prompt: str = "written"
    """What conditions the image, as `Decoder.decode` takes it."""
    steps: int | None = None
    seed: int = 0
    gate: float | None = None
    """Feedback about answers of less confidence than this, 0 to 1, is withheld."""
    correct_motion: bool = True
    slice_time_s: float | None = None
    """Moment within a TR that a volume stands for; its middle if None."""
    noise_components: int = 5
    autoregressive: bool = False
    marker_duration_s: float = 3.0
    """Of a live marker that does not say."""
    lag_s: float = 0.0
    """Seconds from the end of a volume to the arrival of its file. Only live markers need it."""
    patience: Patience = Patience()

    def __post_init__(self) -> None:
        for name in ("tr_s", "speed", "fast_s", "refined_s"):
            checked_seconds(name, getattr(self, name))
        if self.deadline_s is not None:
            checked_seconds("deadline_s", self.deadline_s)
        if not self.fast_s < self.refined_s:
            raise InputError(
                f"'refined_s' must be more than 'fast_s'; got {self.refined_s:g} and "
                f"{self.fast_s:g}"
            )
        if self.discard < 0 or self.volumes - self.discard < 2:
            raise InputError(
                f"'discard' must leave at least 2 of {self.volumes} volumes; got {self.discard}"
            )
        if self.gate is not None and not 0 <= self.gate <= 1:
            raise InputError(f"'gate' must be a confidence from 0 to 1; got {self.gate:g}")
        if self.slice_time_s is not None and not 0 <= self.slice_time_s <= self.tr_s:
            raise InputError(
                f"'slice_time_s' must lie within the TR of {self.tr_s:g} s; got "
                f"{self.slice_time_s:g}"
            )
        if not (math.isfinite(self.marker_duration_s) and self.marker_duration_s >= 0):
            raise InputError(f"'marker_duration_s' must be 0 or more: {self.marker_duration_s}")

    @property
    def pace_s(self) -> float:
        """Seconds between two volumes."""
        return self.tr_s / self.speed

    @property
    def kept(self) -> int:
        """Volumes that are kept."""
        return self.volumes - self.discard

    @property
    def budget_s(self) -> float:
        """Seconds that an answer has."""
        return self.tr_s if self.deadline_s is None else self.deadline_s

    @property
    def volume_time_s(self) -> float:
        """Moment within a TR that a volume stands for."""
        return self.tr_s / 2 if self.slice_time_s is None else self.slice_time_s

    @property
    def windows_s(self) -> tuple[float, float]:
        """Seconds after the onset that each revision of an answer knows."""
        return self.fast_s, self.refined_s

    def identity(self) -> dict[str, Any]:
        """What decides the answers; a run that is resumed must have the same."""
        left_out = {"speed", "deadline_s", "gate", "patience", "lag_s", "marker_duration_s"}
        found = {name: getattr(self, name) for name in self.__slots__ if name not in left_out}
        return found | {"tasks": list(self.tasks)}
