"""TensorRT and TensorRT-RTX as Python modules: found, named, and made to say what went wrong.

Both bring the same classes. Their calls answer a failure with None or False, and say the reason in
a log; here the log is kept, so that an error can quote it.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import DeviceError, MissingExtraError
from .driver import Driver
from .fingerprint import BACKENDS

MODULES = {
    "rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
    "tensorrt": ("tensorrt_bindings", "tensorrt", "tensorrt_lean_bindings", "tensorrt_lean"),
}
"""Names under which each is imported, the first that is whole. The lean ones run engines that were
built to be version-compatible, and build none."""
_CURE = {
    "rtx": "run pip install 'scanside[rtx]'",
    "tensorrt": "run pip install tensorrt, whose libraries come from NVIDIA's own package index",
}
_MAJORS = (14, 13, 12, 11)
TENSORRT_MAJORS = (10, 11)
"""Of TensorRT, that the adapter is written for."""


@dataclass(slots=True)
class Log:
    """What a library said since the last failure."""

    sink: Any = None
    """The library's own logger object, which its calls take."""
    messages: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Severity and text."""

    def said(self) -> str:
        """Its errors in one line, and forget them; its warnings where there are no errors."""
        for wanted in (("INTERNAL_ERROR", "ERROR"), ("WARNING",)):
            texts = [_plain(text) for severity, text in self.messages if severity in wanted]
            if texts:
                self.messages.clear()
                return "; ".join(dict.fromkeys(texts))
        return "it gave no reason"


def _plain(text: str) -> str:
    """A message without the place in the library's source that it comes from."""
    text = re.sub(r"^\[[^\]]*\]\s*|\bIn \w+ at \S+:\d+\s*|\(In \w+ at \S+:\d+\s*", "", text)
    return " ".join(text.split()).rstrip(".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """TensorRT or TensorRT-RTX, imported."""

    backend: str
    api: Any
    """The module."""
    version: str
    cuda_major: int | None
    """Of the CUDA that it was built for; None where the installation does not tell."""

    @property
    def builds(self) -> bool:
        """Whether it can build engines: the lean runtime cannot."""
        return hasattr(self.api, "Builder")

    @property
    def name(self) -> str:
        """For messages: name and version."""
        return f"{BACKENDS[self.backend]} {self.version}"

    @property
    def major(self) -> int:
        """10 of 10.13.3."""
        return int(self.version.split(".")[0])

    def log(self, *, verbose: bool = False) -> Log:
        """A logger that keeps warnings and errors, or everything."""
        log = Log()
        most = self.api.ILogger.Severity.VERBOSE if verbose else self.api.ILogger.Severity.WARNING

        class Sink(self.api.ILogger):
            def __init__(self, api: Any) -> None:
                api.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if int(severity) <= int(most):
                    log.messages.append((severity.name, msg))

        log.sink = Sink(self.api)
        return log

    def need_driver(self, driver: Driver) -> None:
        """DeviceError where the driver is for an older CUDA than the library."""
        if self.cuda_major and driver.cuda[0] < self.cuda_major:
            raise DeviceError(
                f"{self.name} is built for CUDA {self.cuda_major}, and the driver is for CUDA "
                f"{driver.cuda[0]}.{driver.cuda[1]}; install a newer NVIDIA driver, or the "
                f"library's packages for CUDA {driver.cuda[0]} (their names end in "
                f"cu{driver.cuda[0]})"
            )


def library(backend: str) -> Library:
    """Import a library.

    Parameters
    ----------
    backend : {"rtx", "tensorrt"}

    Raises
    ------
    MissingExtraError
        It is not installed, or its shared libraries are not; the message says what to install.
    DeviceError
        A TensorRT that the adapter is not written for.
    """
    api = _imported(backend)
    found = Library(
        backend=backend,
        api=api,
        version=str(api.__version__),
        cuda_major=_cuda_major(str(api.__name__).removesuffix("_bindings")),
    )
    if backend == "tensorrt" and found.major not in TENSORRT_MAJORS:
        raise DeviceError(
            f"{found.name} is installed, and this version of scanside is written for TensorRT 10 "
            "and 11; install one of them, or use device='cuda'"
        )
    return found


def _imported(backend: str) -> Any:
    reason = ""
    for name in MODULES[backend]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as exc:
            reason = reason or str(exc)
        except ImportError as exc:  # a shared library under it is missing
            reason = str(exc)
    raise MissingExtraError(
        f"{BACKENDS[backend]} is not installed, or not whole ({reason}); {_CURE[backend]}"
    )


def _cuda_major(module: str) -> int | None:
    """The pip packages carry it in their names."""
    for major in _MAJORS:
        try:
            version(f"{module}_cu{major}_bindings")
        except PackageNotFoundError:
            continue
        return major
    return None
