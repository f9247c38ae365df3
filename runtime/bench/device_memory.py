"""How much memory of the device is in use while a bundle decodes."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from ...kernels.cuda_driver import Device, call
from ..devices import stage_devices


class DeviceMemory:
    """Watches the first GPU, if any stage is meant to run on one; use it in a `with` statement.

    The driver knows what all processes use together, so nothing else may run on the GPU.
    """

    def __init__(self, device: str) -> None:
        self._watched = any(name != "cpu" for name in stage_devices(device).values())
        self._device: Any = None
        self._free_before = 0
        self.most_bytes: int | None = None
        """Most that was in use at any look, over what was in use before."""

    def __enter__(self) -> DeviceMemory:
        if self._watched:
            self._device = Device.open()
            self._free_before = self._free()
            self.most_bytes = 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._device is not None:
            self._device.release()
            self._device = None

    def look(self) -> None:
        """Take note of what is in use now."""
        if self._device is not None and self.most_bytes is not None:
            self.most_bytes = max(self.most_bytes, self._free_before - self._free())

    def _free(self) -> int:
        with self._device.current():
            free, _ = call("cuMemGetInfo")
        return int(free)
