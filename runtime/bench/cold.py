"""Cold start: from the start of a process to each answer, and the memory that it needs.

Cold means a new process, not a machine that has just been switched on: the files are in the
system's page cache, and their hashes are remembered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

from ..bundle import Bundle
from ..errors import ScansideError
from .load import Neighbours
from .plan import Plan

_MODULE = f"{__package__}.first_answers"


@dataclass(slots=True, kw_only=True)
class ColdRun:
    """What new processes took, by bundle as the plan names it."""

    seconds: dict[str, dict[str, list[float]]] = field(
        default_factory=dict[str, dict[str, list[float]]]
    )
    """From the start of the process to imported, opened, preview, first_token, image, total."""
    bytes: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    """Most memory of any of the processes."""
    neighbours: Neighbours = field(default_factory=Neighbours)


def start_cold(
    plan: Plan, bundles: Sequence[Bundle], volume: Path, say: Callable[[str], None]
) -> ColdRun:
    """Start `plan.cold` processes for each bundle, in turn.

    Raises
    ------
    ScansideError
        A process fails; the message is its own.
    """
    found = ColdRun()
    names = (plan.bundle, *plan.beside)
    commands = [_command(plan, bundle, volume) for bundle in bundles]
    if plan.cold:
        for command in commands:
            _first_answers(command)  # fills the page cache
    with found.neighbours:
        for number in range(plan.cold):
            for name, command in zip(names, commands, strict=True):
                seconds, memory = _first_answers(command)
                for answer, value in seconds.items():
                    found.seconds.setdefault(name, {}).setdefault(answer, []).append(value)
                most = found.bytes.setdefault(name, memory)
                found.bytes[name] = {key: max(most[key], memory[key]) for key in most}
            say(f"cold start {number + 1} of {plan.cold}")
    return found


def _command(plan: Plan, bundle: Bundle, volume: Path) -> list[str]:
    manifest = bundle.manifest
    words = [sys.executable, "-P", "-m", _MODULE, str(bundle.root), str(volume)]
    words += ["--tasks", ",".join(plan.tasks_of(manifest)), "--prompt", plan.prompt_of(manifest)]
    words += ["--device", plan.device, "--threads", str(plan.threads)]
    return words if plan.steps is None else [*words, "--steps", str(plan.steps)]


def _first_answers(command: list[str]) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds until each word came, and the memory that was told at the end."""
    seconds: dict[str, float] = {}
    memory: dict[str, int] = {}
    with TemporaryFile("w+") as errors:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    memory = json.loads(line)
                else:
                    seconds[line.strip()] = time.perf_counter() - began
        if process.returncode != 0:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise ScansideError(f"a new process that was to decode failed: {last}")
    return seconds, memory
