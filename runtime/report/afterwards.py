"""The page at the end of a run: it may fail, and the run must not notice."""

from __future__ import annotations

from pathlib import Path

from ..errors import ScansideError
from ..realtime.run_folder import SUMMARY


def report_after(folder: Path) -> tuple[Path | None, str]:
    """Write the page of a run that is over, whatever happens.

    Parameters
    ----------
    folder : Path
        Of the run. Without a summary the disk took nothing more: that has been told, and no page
        is tried.

    Returns
    -------
    path : Path or None
        The page.
    trouble : str
        Why there is none, in a sentence; empty if there is one, or none was tried.
    """
    if not (folder / SUMMARY).is_file():
        return None, ""
    try:
        from .page import write_report

        return write_report(folder), ""
    except ScansideError as exc:
        why = str(exc)
    except Exception as exc:  # whatever is wrong with a page, the run is over and well
        why = f"internal error ({type(exc).__name__}: {exc})"
    return None, f"the run is over and complete, its page is not there: {why}"
