"""One whole benchmark: verify, decode in turn, start cold, and put it into one document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import REFERENCE, Bundle
from ..devices import stage_devices
from ..errors import BundleError, InputError
from ..verification import verify
from .cold import ColdRun, start_cold
from .plan import Plan
from .ratios import LEAST_ROUNDS, Noise, compared, noise_of
from .summary import summarise_ms
from .surroundings import surroundings
from .warm import AGAIN, Times, Variant, WarmRun, decode_in_turn

Json = dict[str, Any]
MIB = 2**20
ANSWERS = ("preview", "first_token", "text", "image", "total")
"""What a volume is waited for, in the order in which it comes."""


def measure(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Json:
    """Measure a bundle, and others beside it.

    Parameters
    ----------
    plan : Plan
    say : callable
        Is told how far it is.

    Returns
    -------
    document : dict
        What `--json` writes.

    Raises
    ------
    BundleError
        A bundle whose verification fails; nothing is timed then.
    InputError
        A volume that cannot be used, or a task that a bundle cannot do.
    """
    about = surroundings()
    named: dict[str, Bundle] = {}
    checks: dict[str, int] = {}
    for where in (plan.bundle, *plan.beside):
        say(f"verifying {where}")
        named[where] = Bundle.open(where, always_hash=True)
        checks[where] = _verified(plan, where, named[where])
    bundles = list(named.values())
    _check_tasks(plan, named)
    volumes = plan.volumes or default_volumes(bundles[0])
    cold = start_cold(plan, bundles, volumes[0], say)
    warm = decode_in_turn(plan, bundles, volumes, say)
    say("")
    noise = _noises(warm.variants)
    return {
        "question": f"latency of {plan.bundle} from a volume's arrival to each answer",
        **about,
        **_plan(plan, bundles, volumes),
        "bundles": {where: _bundle(named[where], checks[where]) for where in named},
        "warm": _warm(plan, warm),
        "noise": {
            answer: {"factor": round(found.factor, 4), "rounds": found.rounds}
            for answer, found in noise.items()
        },
        "ratios": _ratios(warm.variants, noise),
        "cold": _cold(cold),
    }


def default_volumes(bundle: Bundle) -> tuple[Path, ...]:
    """The shipped trials for the shipped bundle, a bundle's golden volume for any other."""
    golden = bundle.manifest.golden
    assert golden is not None, "a bundle without it is not verified"
    trials = REFERENCE.parent / "trials"
    if bundle.root.resolve() == REFERENCE.resolve() and trials.is_dir():
        found = tuple(sorted(trials.glob("*.nii.gz")))
        if found:
            return found
    return (bundle.path(golden.volume),)


def _verified(plan: Plan, where: str, bundle: Bundle) -> int:
    checks = verify(bundle, stage_devices(plan.device), plan.threads)
    failed = [f"{c.what} ({c.measured}, allowed {c.allowed})" for c in checks if not c.passed]
    if failed:
        raise BundleError(
            f"{where} is not timed, for it does not answer as it did at export: "
            f"{', '.join(failed)}. scanside verify {where} shows all; export it again"
        )
    return len(checks)


def _check_tasks(plan: Plan, named: Mapping[str, Bundle]) -> None:
    lists = {where: plan.tasks_of(bundle.manifest) for where, bundle in named.items()}
    first, *others = lists.items()
    for where, tasks in others:
        if tasks != first[1]:
            raise InputError(
                f"'beside' names {where}, which does {', '.join(tasks)}, but {first[0]} does "
                f"{', '.join(first[1])}; name with 'tasks' what both can do"
            )


def _plan(plan: Plan, bundles: Sequence[Bundle], volumes: Sequence[Path]) -> Json:
    return {
        "device": plan.device,
        "threads": plan.threads,
        "tasks": list(plan.tasks_of(bundles[0].manifest)),
        "steps": plan.steps,
        "seed": plan.seed,
        "runs": plan.runs,
        "warm_up": plan.warm_up,
        "volumes": [path.name for path in volumes],
    }


def _bundle(bundle: Bundle, checks: int) -> Json:
    files = {name: spec.size_bytes for name, spec in bundle.manifest.files.items()}
    manifest = (bundle.root / "manifest.json").stat().st_size
    return {
        "name": bundle.manifest.name,
        "sha256": bundle.sha256,
        "checks_passed": checks,
        "bytes": sum(files.values()) + manifest,
        "files": files,
    }


def _warm(plan: Plan, warm: WarmRun) -> Json:
    device = {} if warm.device_bytes is None else {"device_mib": _mib(warm.device_bytes)}
    rows = {name: _variant(plan, variant) for name, variant in warm.variants.items()}
    return {**warm.neighbours.as_dict(), **device, "variants": rows}


def _variant(plan: Plan, variant: Variant) -> Json:
    total = float(np.median(variant.answers["total"]))
    return {
        "bundle": str(variant.decoder.bundle.sha256),
        "arrival": variant.arrival,
        "answers_ms": _summaries(variant.answers, ANSWERS),
        "stages_ms": _summaries(variant.stages),
        "engines_ms": _summaries(variant.engines),
        "own_ms": summarise_ms(variant.own),
        "own_share": round(float(np.median(variant.own)) / total, 4),
        "missed": {
            f"{tr:g}": {
                answer: float(np.mean(np.asarray(variant.answers[answer]) > tr))
                for answer in ANSWERS
                if answer in variant.answers
            }
            for tr in plan.tr_s
        },
        "degraded": variant.degraded,
    }


def _summaries(times: Times, order: Sequence[str] = ()) -> dict[str, Json]:
    names = [*(n for n in order if n in times), *(n for n in times if n not in order)]
    return {name: summarise_ms(times[name]) for name in names}


def _noises(variants: Mapping[str, Variant]) -> dict[str, Noise]:
    once, again = variants["file"].answers, variants[f"file{AGAIN}"].answers
    found = {answer: noise_of(once[answer], again[answer]) for answer in ANSWERS if answer in once}
    return {answer: noise for answer, noise in found.items() if noise is not None}


def _ratios(variants: Mapping[str, Variant], noise: Mapping[str, Noise]) -> list[Json]:
    """Every variant against the first, for every answer."""
    base, rows = variants["file"].answers, list[Json]()
    for name, variant in variants.items():
        if name in ("file", f"file{AGAIN}"):
            continue
        for answer in ANSWERS:
            if answer not in base:
                continue
            row: Json = {"answer": answer, "of": name, "to": "file"}
            ratio = compared(variant.answers[answer], base[answer], noise.get(answer))
            row |= {"needs": LEAST_ROUNDS} if ratio is None else ratio.as_dict()
            rows.append(row)
    return rows


def _cold(cold: ColdRun) -> Json:
    rows = {
        where: {
            "answers_ms": _summaries(cold.seconds[where]),
            "memory_mib": {name: _mib(value) for name, value in cold.bytes[where].items()},
        }
        for where in cold.seconds
    }
    return {**cold.neighbours.as_dict(), "bundles": rows}


def _mib(size: int) -> float:
    return round(size / MIB, 1)
