"""How many bytes a volume may have: what the run's own volumes have had, and some more.

A sender's header is only believed within this bound, before any memory is taken for it.
"""

from __future__ import annotations

MAX_VOLUME_BYTES = 1 << 28
"""No volume of any run is larger: 256 MiB are 512 x 512 x 256 voxels of 4 bytes."""
_SLACK = 2
"""The first volume may lack slices, and real numbers take twice the bytes of integers."""


class Allowance:
    """The bound for one source."""

    def __init__(self) -> None:
        self.bytes = MAX_VOLUME_BYTES
        """Most that the next volume may have."""
        self._largest = 0

    def came(self, size: int) -> None:
        """Take a volume of so many bytes as the measure."""
        self._largest = max(self._largest, size)
        self.bytes = min(MAX_VOLUME_BYTES, _SLACK * self._largest)
