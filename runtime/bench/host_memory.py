"""How much memory of the host a process has needed."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def host_memory() -> dict[str, int]:
    """Bytes of this process: `peak` so far, and now `anonymous` and `mapped` from files.

    Mapped pages, for example of a language model's weights, can be dropped and read again; where
    the system does not tell them apart there is only the peak.
    """
    if not _STATUS.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak": peak if sys.platform == "darwin" else 1024 * peak}
    # not getrusage, which begins with what the parent held when it forked
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines())
    found = {key: value.split() for key, value in lines}
    names = {"peak": "VmHWM", "anonymous": "RssAnon", "mapped": "RssFile"}
    return {name: 1024 * int(found[key][0]) for name, key in names.items() if key in found}
