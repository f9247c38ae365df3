"""Export that measures several ways to compile a checkpoint and keeps the one that fits.

Both what is asked for depend on what only a measurement knows: the score on the model, the latency
on this machine. So every option is compiled, scored on held-out trials, timed on this machine's
CPU, and the whole table goes into the manifest of the one that is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime import Decoder
from ..runtime.bench import Neighbours, summarise_ms, surroundings
from ..runtime.errors import InputError
from ..runtime.stages import MOST_THREADS
from .bundle_writer import REFERENCE, check_free, progress, put_in_place, resolve, scratch_beside
from .candidates import Candidates, read_json, write_candidates, write_json
from .choice import Bounds, Measured, choose, front
from .compile_graph import PRECISIONS, Precision
from .held_out import Scores, Trial, mean_scores, read_trials, scored
from .measuring import latencies, peak_mib, size_mib
from .quantize import check_quantization
from .schedules import STEPS

DEFAULT_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
"""Without fp16, which a CPU computes in float32 with casts between."""
DEFAULT_QUANTIZATIONS = ("q8_0", "q4_k_m")
DEFAULT_STEPS = (1, 2, 4, 8, 20)


def export_chosen(
    checkpoint: str | Path,
    out: str | Path,
    bounds: Bounds,
    *,
    trials: str | Path | None = None,
    precisions: Sequence[Precision] = (),
    quantizations: Sequence[str] = (),
    steps: Sequence[int] = (),
    threads: int = 2,
) -> Path:
    """Compile a checkpoint in the way that meets the bounds best.

    Parameters
    ----------
    checkpoint, out : str or Path
        As `export_bundle` takes them.
    bounds : Bounds
        Target latency, least score, or both.
    trials : str or Path, optional
        Folder of held-out trials with their truth, as `held_out.py` describes it. The reference
        checkpoint needs none: trials of its world are made.
    precisions, quantizations, steps : sequence
        To choose from; by default fp32 and int8, q8_0 and q4_k_m, 1 to 20 steps.
    threads : int
        CPU threads with which options are timed.

    Returns
    -------
    out : Path
        Its manifest holds under `choice` the table that it was chosen from.

    Raises
    ------
    InputError
        A wrong argument, no trials, or no option that meets the bounds; nothing is written.
    """
    precisions = precisions or DEFAULT_PRECISIONS
    quantizations = quantizations or DEFAULT_QUANTIZATIONS
    steps = tuple(dict.fromkeys(steps or DEFAULT_STEPS))
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(f"'precision' must be of {', '.join(PRECISIONS)}; got {precision!r}")
    for quantize in quantizations:
        check_quantization(quantize)
    unknown = [count for count in steps if count not in STEPS]
    if unknown:
        raise InputError(f"'steps' must be of {', '.join(map(str, STEPS))}; got {unknown[0]}")
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"'threads' must be 1 to {MOST_THREADS}; got {threads}")
    label, out = str(checkpoint), Path(out).absolute()
    check_free(out)
    given = None if trials is None else read_trials(Path(trials))
    if given is None and label != "reference":
        raise InputError(
            "'trials' is missing: a score needs held-out trials with their truth; give a folder "
            "with trials.json, which names a volume, a picture and a caption for each"
        )
    with scratch_beside(out) as scratch:
        root = resolve(label, scratch)
        known = given or _reference_trials(scratch)
        name = label if root == REFERENCE or ":" in label else root.name
        candidates = write_candidates(root, scratch, precisions, quantizations, name)
        rows, load = measure(candidates, known, steps, threads)
        chosen = choose(rows, bounds)
        option = chosen.option
        progress(f"chose {option}: {chosen.latency_ms['p95']:.1f} ms, {chosen.score:.3f}")
        folder = candidates.bundles[option.precision, option.quantize]
        manifest = read_json(folder)
        manifest["diffusion"]["steps"] = option.steps
        manifest["choice"] = _told(bounds, chosen, rows, candidates) | {
            "trials": len(known),
            "threads": threads,
            **surroundings(),
            **load,
        }
        write_json(folder, manifest)
        put_in_place(folder, out)
    return out


def measure(
    candidates: Candidates, trials: Sequence[Trial], steps: Sequence[int], threads: int
) -> tuple[list[Measured], Mapping[str, Any]]:
    """A row for each option, and who else computed while they were timed."""
    volumes = [trial.volume for trial in trials]
    scores: dict[tuple[str, str], dict[int, Scores]] = {}
    sizes: dict[tuple[str, str], dict[str, float]] = {}
    for kind, bundle in candidates.bundles.items():
        progress(f"{', '.join(kind)}: {len(trials)} trials are scored")
        with Decoder.open(bundle, threads=threads) as decoder:
            scores[kind], _ = scored(decoder, trials, steps)
        sizes[kind] = {
            "memory_mib": peak_mib(bundle, volumes[0], threads),
            "size_mib": size_mib(bundle),
        }
    with Neighbours() as neighbours:
        seconds = latencies(candidates.bundles, volumes, steps, threads=threads, say=progress)
    rows: list[Measured] = []
    for option, found in seconds.items():
        kind = option.precision, option.quantize
        parts = scores[kind][option.steps]
        rows.append(
            Measured(
                option=option,
                trial_scores=mean_scores(parts),
                scores={name: float(values.mean()) for name, values in parts.items()},
                latency_ms=summarise_ms(found),
                **sizes[kind],
            )
        )
    return rows, neighbours.as_dict()


def _reference_trials(scratch: Path) -> list[Trial]:
    from .reference.scored_trials import write_scored_trials

    progress("held-out trials of the reference world")
    return read_trials(write_scored_trials(scratch / "trials"))


def _told(
    bounds: Bounds, chosen: Measured, rows: Sequence[Measured], candidates: Candidates
) -> dict[str, Any]:
    """What was asked for, what was taken, and from what."""
    best = front(rows)
    return {
        "target_latency_ms": bounds.target_latency_ms,
        "min_score": bounds.min_score,
        "chosen": chosen.as_dict(),
        "rows": [row.as_dict() | {"front": row in best} for row in rows],
        "refused": candidates.refused,
    }
