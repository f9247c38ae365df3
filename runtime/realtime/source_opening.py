"""Which source a run's operator means, and its opening.

`folder:DIR` and `file:PATH`, or either path by itself; `afni:`, `zmq:` and `dicom:` with the port
to listen at, and before it the address of this machine if others are to reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .address import keep_within, own_address
from .file_source import FileSource
from .folder_source import FolderSource
from .listening import Peers
from .memory import Memory
from .session_config import SessionConfig
from .source import Source

if TYPE_CHECKING:
    from .run_setup import RunRequest

PATHS = ("folder", "file")
NETWORK = ("afni", "zmq", "dicom")
"""Kinds that are files, and kinds that listen."""


def split_source(text: str) -> tuple[str, str]:
    """Kind of a source and where it is: a path, or `[HOST:]PORT`."""
    kind, colon, rest = text.partition(":")
    if colon and kind in PATHS + NETWORK:
        return kind, rest
    return ("file" if Path(text).is_file() else "folder"), text


def source_identity(text: str) -> str:
    """What names a source in a run's journal: the same for the same place, however it is worded."""
    kind, place = split_source(text)
    if kind in NETWORK:
        return f"{kind}:{own_address(place, _words(kind))}"
    return f"{kind}:{Path(place).resolve()}"


def open_source(
    request: RunRequest, config: SessionConfig, memory: Memory, clock: Callable[[], float]
) -> Source:
    """The source; an InputError if it cannot be used."""
    kind, place = split_source(request.source)
    if kind in NETWORK:
        return _open_network(request, config, kind, place, clock)
    if kind == "file":
        return FileSource(place, pace_s=config.pace_s, at_once=memory.reached, clock=clock)
    try:
        return FolderSource(
            place,
            pace_s=config.pace_s,
            first_number=request.first_number,
            existing="take" if memory.resumed else request.existing,
            pattern=request.pattern,
            polling=request.polling,
            clock=clock,
        )
    except InputError as exc:
        if "already holds" in str(exc):
            raise InputError(
                f"{place} already holds a run; empty it, or say with '--existing' whether its "
                "files are of this run (take) or not (ignore)"
            ) from exc
        raise


def _open_network(
    request: RunRequest,
    config: SessionConfig,
    kind: str,
    place: str,
    clock: Callable[[], float],
) -> Source:
    address, peers = own_address(place, _words(kind)), Peers.parse(request.peers)
    keep_within(address, _words(kind), network=request.network)
    if kind == "zmq":
        from .zmq_source import ZmqSource

        return ZmqSource(address, token=request.access.token, clock=clock)
    if kind == "afni":
        from .afni_source import AfniSource

        return AfniSource(address, pace_s=config.pace_s, peers=peers, clock=clock)
    from .dicom_source import DicomSource

    return DicomSource(
        address,
        pace_s=config.pace_s,
        first_number=request.first_number,
        peers=peers,
        clock=clock,
    )


def _words(kind: str) -> str:
    return f"'source' {kind}:"
