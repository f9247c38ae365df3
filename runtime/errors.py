"""What can go wrong, as a user can mend it.

    ScansideError
    ├── InputError        (ValueError)    a volume, a question or an argument that cannot be used
    ├── BundleError       (ValueError)    a bundle that is damaged, incomplete or too new
    ├── CheckpointError   (ValueError)    a checkpoint that export cannot compile
    ├── DeviceError       (RuntimeError)  a device that is asked for and is not there
    └── MissingExtraError (ImportError)   a part of the installation that is missing

Every message says what was found, what was expected, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CheckpointError",
    "DeviceError",
    "InputError",
    "MissingExtraError",
    "ScansideError",
]


class ScansideError(Exception):
    """Base of every error that scanside raises on purpose."""


class InputError(ScansideError, ValueError):
    """A volume, a question or an argument that cannot be used."""


class BundleError(ScansideError, ValueError):
    """A bundle that is damaged, incomplete, or newer than this version reads."""


class CheckpointError(ScansideError, ValueError):
    """A checkpoint that export cannot compile."""


class DeviceError(ScansideError, RuntimeError):
    """A device that was asked for and cannot be used."""


class MissingExtraError(ScansideError, ImportError):
    """A part of the installation that is missing; the message holds the pip line that adds it."""
