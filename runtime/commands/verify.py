"""`scanside verify BUNDLE`: every byte against its hash, every stage against its golden output."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ..bundle import Bundle
from ..devices import stage_devices
from ..golden import Check
from ..verification import verify
from .decode import DEVICE_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder, or 'reference'")
    parser.add_argument("--device", default="cpu", metavar="D", help=DEVICE_HELP)
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="CPU threads (default: 2)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> int:
    """Print a table; 0 if everything agrees, 1 if not."""
    devices = stage_devices(args.device)
    bundle = Bundle.open(args.bundle, always_hash=True)
    checks = verify(bundle, devices, args.threads)
    passed = all(check.passed for check in checks)
    if args.json:
        document = {
            "bundle": bundle.sha256,
            "passed": passed,
            "checks": [asdict(check) for check in checks],
        }
        print(json.dumps(document, ensure_ascii=False))
    else:
        print(_table(checks))
        print(f"{bundle.manifest.name} {bundle.sha256[:12]}: {'verified' if passed else 'FAILED'}")
    return 0 if passed else 1


def _table(checks: list[Check]) -> str:
    rows = [(c.what, "ok" if c.passed else "FAILED", c.measured, c.allowed) for c in checks]
    rows.insert(0, ("stage", "", "found", "allowed"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
