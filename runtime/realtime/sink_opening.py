"""Which sink a text names, checked first and opened when the run begins.

| text | what it is |
|---|---|
| `jsonl:PATH`, `jsonl:-` | JSON lines, in a file or on standard output |
| `files:DIR` | files that a program polls |
| `ws:[HOST:]PORT` | WebSocket, server-sent events, latest state and pictures |
| `udp:[HOST:]PORT` | datagrams |
| `zmq:[HOST:]PORT` | ZeroMQ, published |
| `lsl`, `lsl:NAME` | a stream of the Lab Streaming Layer |
| `afni:HOST[:PORT]` | floats for AFNI's real-time receiver |

Without a host it is this machine alone; anything beyond it must be asked for (`network`).
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .access import Access, check_access
from .address import Address, keep_within, resolved_address
from .afni_outlet import PORT, AfniOutlet
from .files_outlet import FilesOutlet, check_folder
from .lsl_outlet import LslOutlet
from .sinks import JsonLines, Outlet
from .udp_outlet import UdpOutlet

KINDS = (
    "jsonl:PATH, jsonl:-, files:DIR, ws:[HOST:]PORT, udp:[HOST:]PORT, zmq:[HOST:]PORT, lsl[:NAME] "
    "or afni:HOST[:PORT]"
)
_FIND_OUT = ("lsl", "ws", "zmq", "afni")
"""Kinds of which only opening tells whether they can be opened, and leaves nothing behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What sinks need to know besides their text."""

    network: bool = False
    """Whether anything beyond this machine may be reached."""
    access: Access = Access()
    """Who may subscribe to `ws`."""
    folder: Path | None = None
    """Of the run, for its pictures."""
    resumes: bool = False
    """Whether an earlier life of the run has used the same sinks."""


def check_sink(text: str, outgoing: Outgoing) -> None:
    """Refuse a sink that cannot be opened, without opening it.

    Raises
    ------
    InputError
        An unknown kind, a folder that cannot be written, an address beyond this machine without
        leave, or `ws` beyond it without token and TLS.
    """
    kind, rest = _split(text)
    if kind == "jsonl":
        folder = Path(rest).resolve().parent
        if rest != "-" and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise InputError(f"'sink' {text}: {folder} is no folder that can be written")
    elif kind == "files":
        check_folder(Path(rest), resumes=outgoing.resumes)
    elif kind != "lsl":
        address = _address(text, outgoing)
        if kind == "ws":
            check_access(outgoing.access, address, text)


def try_sink(text: str, outgoing: Outgoing) -> None:
    """For a preflight: open what only opening can tell about, and close it again."""
    check_sink(text, outgoing)
    if _split(text)[0] in _FIND_OUT:
        with closing(open_outlet(text, outgoing)):
            pass


def open_outlet(text: str, outgoing: Outgoing) -> Outlet:
    """Open the way out that a text names; an InputError if that cannot be.

    Parameters
    ----------
    text : str
        As in the table above.
    outgoing : Outgoing
    """
    kind, rest = _split(text)
    if kind == "jsonl":
        return JsonLines(1 if rest == "-" else rest)
    if kind == "files":
        return FilesOutlet(Path(rest), outgoing.folder, resumes=outgoing.resumes)
    if kind == "lsl":
        return LslOutlet(rest or "scanside", local=not outgoing.network)
    address = _address(text, outgoing)
    if kind == "udp":
        return UdpOutlet(address)
    if kind == "afni":
        return AfniOutlet(address)
    if kind == "zmq":
        from .zmq_outlet import ZmqOutlet

        return ZmqOutlet(address)
    from .ws_outlet import WsOutlet

    return WsOutlet(address, outgoing.access, outgoing.folder)


def _split(text: str) -> tuple[str, str]:
    kind, _, rest = text.partition(":")
    if kind == "lsl" or (rest and kind in ("jsonl", "files", "ws", "udp", "zmq", "afni")):
        return kind, rest
    raise InputError(f"'sink' must be {KINDS}; got {text!r}")


def _address(text: str, outgoing: Outgoing) -> Address:
    kind, rest = _split(text)
    what = f"'sink' {text}:"
    address = resolved_address(rest, what, PORT if kind == "afni" else None)
    keep_within(address, what, network=outgoing.network)
    return address
