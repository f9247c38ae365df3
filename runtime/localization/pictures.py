"""Heat maps as pictures: slices over an anatomy or over the volume itself, and a glass brain.

Drawn by nilearn, the optional `plot` extra; nothing of it is imported before a picture is wanted.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, MissingExtraError
from .location import Image, Location

SLICES = 5
"""Along each axis, where the map is hot."""
_COLOURS = "hot"
_DARKEST = 0.15
"""From which share of the largest value on heat is drawn: below it the background is seen."""
_DPI = 120


def draw_slices(
    location: Location, background: Image, path: Path, provenance: Mapping[str, object]
) -> None:
    """Write a PNG of slices with the heat map over them, a colour bar and the concept's name.

    Parameters
    ----------
    location : Location
    background : nibabel image
        An anatomy, or the volume itself, in the same millimetres.
    path : Path
    provenance : mapping
        Text fields of the PNG, `scanside:<key>`.

    Raises
    ------
    InputError
        The map is 0 everywhere: there is nothing to show.
    MissingExtraError
        The extra `plot` is not installed.
    """
    top = _top(location)
    with _plotting() as plotting:
        display = plotting.plot_stat_map(
            location.heat,
            bg_img=_calm(background),
            display_mode="mosaic",
            cut_coords=SLICES,
            threshold=_DARKEST * top,
            vmax=top,
            vmin=0,
            cmap=_COLOURS,
            colorbar=True,
            black_bg=True,
            title=_title(location),
            transparency=0.75,
        )
        _save(display, path, provenance)


def draw_glass(location: Location, path: Path, provenance: Mapping[str, object]) -> None:
    """Write a PNG of a glass brain; its outline is that of MNI space, for orientation alone.

    Parameters and errors are those of `draw_slices`.
    """
    top = _top(location)
    with _plotting() as plotting:
        display = plotting.plot_glass_brain(
            location.heat,
            display_mode="lyrz",
            threshold=_DARKEST * top,
            vmax=top,
            vmin=0,
            cmap=f"{_COLOURS}_r",
            colorbar=True,
            title=_title(location),
        )
        _save(display, path, provenance)


@contextmanager
def _plotting() -> Generator[Any]:
    """nilearn's plotting, without a window and without its advice."""
    try:
        from matplotlib import pyplot, rc_context

        with warnings.catch_warnings(), rc_context():
            warnings.simplefilter("ignore")
            import nilearn.plotting

            pyplot.switch_backend("Agg")
            yield nilearn.plotting
    except ImportError as exc:
        raise MissingExtraError(
            f"{exc.name} is not installed; run pip install 'scanside[plot]'"
        ) from exc


def _top(location: Location) -> float:
    top = float(location.heat.get_fdata(dtype=np.float32).max())
    if top <= 0:
        raise InputError(
            f"nothing in this volume speaks for {location.concept!r}, so there is no heat to draw"
        )
    return top


def _calm(background: Image) -> Image:
    """The image without outliers, which would leave everything else in one grey."""
    import nibabel as nib

    data = background.get_fdata(dtype=np.float32)
    inside = data[np.isfinite(data) & (data != 0)]
    if not inside.size:
        return background
    low, high = np.quantile(inside, [0.02, 0.98])
    shown = np.where(data == 0, 0, np.clip(data, low, high) - low)  # what lies outside is black
    return nib.Nifti1Image(shown.astype(np.float32), background.affine)


def _title(location: Location) -> str:
    return f"{location.concept}  (similarity {location.similarity:.2f})"


def _save(display: Any, path: Path, provenance: Mapping[str, object]) -> None:
    fields = {"Software": "scanside"}
    fields |= {f"scanside:{key}": str(value) for key, value in provenance.items()}
    display.frame_axes.figure.savefig(path, format="png", dpi=_DPI, metadata=fields)
    display.close()
