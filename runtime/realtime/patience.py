"""How long to wait for what. Every wait is finite and counted in TRs."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what, in TRs."""

    late_trs: float = 2.0
    """A volume is late when it is this much overdue."""
    missing_trs: float = 10.0
    """And given up when it is this much overdue."""
    stall_trs: float = 4.0
    """The run stalls when the next volume is this much overdue."""
    end_trs: float = 30.0
    """A run in which nothing comes for so long is over."""
    begin_trs: float = 600.0
    """A run whose first volume does not come within this time is over."""

    def __post_init__(self) -> None:
        for wait in fields(self):
            trs = getattr(self, wait.name)
            if not (math.isfinite(trs) and trs > 0):
                raise InputError(f"'{wait.name}' must be a finite number of TRs above 0; got {trs}")
        if not self.late_trs <= self.missing_trs <= self.end_trs:
            raise InputError(
                "'late_trs', 'missing_trs' and 'end_trs' must not decrease; got "
                f"{self.late_trs:g}, {self.missing_trs:g} and {self.end_trs:g}"
            )


def checked_seconds(name: str, seconds: float) -> float:
    """The seconds, if they are finite and above 0."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"'{name}' must be a finite number of seconds above 0; got {seconds}")
    return seconds
