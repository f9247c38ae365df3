"""Contenders in processes of their own that take turns, run by run.

A contender reads an order a line from stdin and answers each with one line of JSON. Before the
first order it does its work once, so that the time from its start to its first line is a cold
start. Between two runs there is a pause, for a thread pool may spin a little after its work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PAUSE_S = 0.02
Json = dict[str, Any]


class Worker:
    """One process.

    Parameters
    ----------
    command : sequence of str
        Behind the interpreter's name.
    threads : int
        Of OpenMP; what a contender does not take from there it must be told in its command.
    """

    def __init__(self, command: Sequence[str], threads: int) -> None:
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self._command = command
        self.first = self._read()
        self.cold_s = time.perf_counter() - began

    def ask(self, order: str) -> Json:
        """The answer to one order."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()

    def _read(self) -> Json:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise SystemExit(f"{' '.join(self._command)}: ended with {self._process.returncode}")
        return json.loads(line)


@dataclass(slots=True)
class Runs:
    """What a contender did."""

    seconds: list[float] = field(default_factory=list[float])
    answers: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Seconds to each answer on the way."""
    peak_mib: float = 0.0

    def keep(self, answer: Json) -> None:
        """Take in one run."""
        self.seconds.append(answer["seconds"])
        for name, seconds in answer["answers"].items():
            self.answers.setdefault(name, []).append(seconds)
        self.peak_mib = max(self.peak_mib, answer["peak_mib"])


def by_turns(
    workers: dict[str, Worker], inputs: Sequence[int], rounds: int, warm_up: int, seed: int = 0
) -> dict[str, Runs]:
    """All of them on the same input in every round, in an order drawn anew.

    Parameters
    ----------
    inputs : sequence of int
        Numbers of inputs, used in turn.
    """
    rng, found = np.random.default_rng(seed), {name: Runs() for name in workers}
    for number in range(-warm_up, rounds):
        for name in rng.permutation(list(workers)):
            answer = workers[name].ask(f"run {inputs[number % len(inputs)]}")
            if number >= 0:
                found[name].keep(answer)
            time.sleep(PAUSE_S)
    return found


def in_blocks(
    names: Iterable[str], start: Any, inputs: Sequence[int], rounds: int, warm_up: int
) -> dict[str, Runs]:
    """One in memory at a time, all its runs in a row: for what is too large to stand side by side.

    Parameters
    ----------
    start : callable
        Starts the contender of a name.
    """
    found: dict[str, Runs] = {}
    for name in names:
        worker, found[name] = start(name), Runs()
        for number in range(-warm_up, rounds):
            answer = worker.ask(f"run {inputs[number % len(inputs)]}")
            if number >= 0:
                found[name].keep(answer)
        worker.close()
    return found
