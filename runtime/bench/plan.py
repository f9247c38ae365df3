"""What `scanside bench` measures, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..manifest import Manifest
from ..request import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One benchmark; the defaults suit a bundle that decodes in less than a second."""

    bundle: str
    """A bundle's folder, or "reference"."""
    beside: tuple[str, ...] = ()
    """Further bundles, which take turns with it."""
    volumes: tuple[Path, ...] = ()
    """Beta volumes, in turn; by default the trials that come with the reference bundle, or the
    bundle's golden volume."""
    tasks: tuple[str, ...] = ()
    """By default preview, caption and image, as far as the bundle can."""
    steps: int | None = None
    """Denoising steps; None for the bundle's."""
    runs: int = 500
    """Timed rounds; in each every variant decodes once."""
    warm_up: int = 50
    """Rounds before, not timed."""
    cold: int = 10
    """New processes, after one more that is not timed."""
    tr_s: tuple[float, ...] = (0.8, 1.0, 1.5, 2.0)
    """Repetition times; the share of answers that come later than each is told."""
    device: str = "cpu"
    threads: int = 2
    seed: int = 0
    """Of the order of the variants; the noise of a picture has the round's number as its seed."""

    def __post_init__(self) -> None:
        for name, least in (("runs", 1), ("warm_up", 0), ("cold", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"'{name}' must be at least {least}; got {getattr(self, name)}")
        if any(not tr > 0 for tr in self.tr_s):
            raise InputError(f"'tr_s' must be above 0 seconds; got {min(self.tr_s)}")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise InputError(f"'tasks' must be of {', '.join(TASKS)}; got {unknown[0]!r}")
        twice = {self.bundle, *self.beside}
        if len(twice) <= len(self.beside):
            raise InputError("'beside' names a bundle twice; the noise check does that by itself")

    def tasks_of(self, manifest: Manifest) -> tuple[str, ...]:
        """The tasks asked for, or all of the usual ones that a bundle can do."""
        if self.tasks:
            return self.tasks
        able = {
            "preview": manifest.diffusion is not None,
            "caption": manifest.language is not None,
            "image": manifest.diffusion is not None,
        }
        return tuple(task for task, can in able.items() if can)

    def prompt_of(self, manifest: Manifest) -> str:
        """What conditions the picture: the text that the bundle writes, or none."""
        return "none" if manifest.language is None else "written"
