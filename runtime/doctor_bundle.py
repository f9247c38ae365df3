"""What doctor says of a bundle on GPUs: the memory that it takes, and its engines, judged."""

from __future__ import annotations

from pathlib import Path

from .bundle import Bundle
from .devices import stage_devices
from .engines.driver import Card
from .engines.engine_cache import engines_on_disk, hash_of_graph, search, typed
from .engines.engine_record import Record
from .engines.fingerprint import BACKENDS, Fingerprint
from .errors import DeviceError, MissingExtraError
from .graphs import graphs_of
from .memory_plan import plan_memory


def memory_report(bundle: Bundle, card: Card | None) -> dict[str, str]:
    """The sum for every backend with all stages on the GPU, and whether it fits the card.

    Parameters
    ----------
    bundle : Bundle
    card : Card, optional
        The GPU that is here.
    """
    found: dict[str, str] = {}
    for backend in ("cuda", *BACKENDS):
        plan = plan_memory(bundle, stage_devices(backend))
        found[backend] = plan.as_text()
        if card is None:
            continue
        cure = plan.cure(card.memory_bytes)
        found[backend] += f"; too much for {card.name}: {cure}" if cure else f"; fits {card.name}"
    return found


def engine_report(bundle: Bundle, card: Card | None) -> dict[str, str]:
    """The engines of every graph, those of the user's cache before those of the bundle.

    Parameters
    ----------
    bundle : Bundle
    card : Card, optional
        The GPU that is here, by which they are judged; without one it is only said what they were
        made for.
    """
    found: dict[str, str] = {}
    for backend in BACKENDS:
        build = f"scanside build {typed(bundle)} --backend {backend}"
        rows: dict[str, str] = {}
        for _, file in graphs_of(bundle.manifest):
            path = bundle.path(file)
            said = (
                _judged(bundle, backend, path, card) if card else _made_for(bundle, backend, path)
            )
            if said:
                rows[f"{backend} {path.stem}"] = said
        if not rows:
            found[backend] = f"none; {build} makes them"
        elif any(said == _NONE for said in rows.values()):
            rows[backend] = f"{build} makes those that are missing"
        found |= rows
    return found


_NONE = "none"


def _judged(bundle: Bundle, backend: str, path: Path, card: Card) -> str:
    """The best engine of a graph here, or why there is none; nothing if there is none at all."""
    if not engines_on_disk(bundle, backend, path.stem):
        return ""
    try:
        here = _here(backend, path, card)
    except (DeviceError, MissingExtraError) as exc:
        return f"not judged: {exc}"
    found = search(bundle, path.stem, here)
    if found.best:
        verdict = found.best.verdict
        reason = f": {verdict.reason}" if verdict.reason else ""
        return f"{verdict.validity.value}{reason} ({found.best.path.name})"
    near = [c for c in found.others if c.record is None or c.record.fingerprint.onnx == here.onnx]
    return "; ".join(f"invalid: {c.verdict.reason} ({c.path.name})" for c in near) or _NONE


def _here(backend: str, path: Path, card: Card) -> Fingerprint:
    """What an engine of a graph has to match on this GPU."""
    from .engines.rtx import rtx_here
    from .engines.tensorrt import tensorrt_here
    from .engines.tensorrt_library import library

    lib = library(backend)
    return rtx_here(lib, path, card) if backend == "rtx" else tensorrt_here(lib, path, card)


def _made_for(bundle: Bundle, backend: str, path: Path) -> str:
    """What engines of a graph were made for; nothing if there is none of this graph."""
    found = [e for e in engines_on_disk(bundle, backend, path.stem) if isinstance(e, Record)]
    if not found:
        return ""
    graph = hash_of_graph(path)
    told: list[str] = []
    for record in found:
        made = record.fingerprint
        if made.onnx == graph:
            where = f" on {made.gpu}" if made.gpu else ""
            kinds = ", ".join(made.capabilities)
            told.append(f"for {kinds}{where}, by {BACKENDS[made.backend]} {made.version}")
    return "; ".join(told) or _NONE
