"""What does it cost to write down a volume's state, and what does synchronising with the disk add?

    python benchmarks/journal.py --json benchmarks/results/journal.json

Correctness first: what was written is read back and compared before any figure is printed. Three
ways: never synchronised while it is timed, synchronised beside the run about once a second as the
journal does by default, and synchronised after every line, which it never does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import machine, percentiles_ms, write

from scanside.runtime.realtime.journal import Journal

HEADER = {"bundle": "benchmark", "tr_s": 1.6}
NEVER_S = 3600.0


def append_s(path: Path, records: int, sync_s: float, each: bool, gap_s: float) -> list[float]:
    """Seconds for every record, with a pause between two so that the disk works beside them."""
    seconds: list[float] = []
    with Journal.create(path, HEADER, sync_s=sync_s) as journal:
        file = os.open(path, os.O_RDONLY)
        for number in range(records):
            began = time.perf_counter()
            journal.volume(number, "received", arrived_s=began, motion_mm=[0.1] * 6)
            if each:
                os.fdatasync(file)
            seconds.append(time.perf_counter() - began)
            time.sleep(gap_s)
        os.close(file)
    check(path, records)
    return seconds


def check(path: Path, records: int) -> None:
    """Every record is there again."""
    journal, past = Journal.resume(path, HEADER)
    journal.close()
    if list(past.volumes()) != list(range(records)):
        raise SystemExit("the journal lost records; no figure is worth anything")


def main() -> None:
    """Time the three ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--gap-ms", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, help="on the disk that is to be timed")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    ways = {"never": (NEVER_S, False), "each second": (1.0, False), "each line": (NEVER_S, True)}
    question = "what it costs to write down a volume's state"
    result: dict[str, Any] = {"question": question, **machine()}
    result |= {"records": args.records, "gap_ms": args.gap_ms, "append_ms": {}}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for index, (name, (sync_s, each)) in enumerate(ways.items()):
            path = Path(folder) / str(index)
            seconds = append_s(path, args.records, sync_s, each, args.gap_ms / 1e3)
            result["append_ms"][name] = percentiles_ms(seconds)
    write(result, args.json)


if __name__ == "__main__":
    main()
