"""Engines on disk: found by fingerprint, judged, and only then handed out.

Engines that were made at export lie in the bundle, under `engines/<backend>/`, and are listed in
its manifest. Engines that are built on site lie in the user's cache, in folders of the same form;
a bundle is never written to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..bundle import REFERENCE, Bundle
from ..errors import BundleError, DeviceError
from ..user_cache import HashMemory, cache_folder
from .engine_record import Record
from .fingerprint import BACKENDS, Fingerprint, Validity, Verdict, graph_sha256, judge
from .graph_file import GraphFile

FOLDER = "engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An engine that was found for a stage, and whether it may run here."""

    path: Path
    """Of the engine."""
    record: Record | None
    """None where the record itself cannot be read."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """A folder of engines of one backend."""

    folder: Path
    backend: str
    listed: dict[str, str] | None = None
    """SHA-256 by file name, of a bundle's manifest; None for the user's own folder."""

    def records(self, stage: str) -> Iterator[tuple[Path, Record | BundleError]]:
        """The engines of a graph with their records, or what is wrong with a record."""
        for path in sorted(self.folder.glob(f"{stage}-*.json")):
            try:
                record = Record.read(path)
            except BundleError as exc:
                yield path.with_suffix(".plan"), exc
                continue
            if record.stage == stage:  # "vae" is a beginning of "vae-tiny"
                yield path.with_suffix(".plan"), record

    def candidates(self, stage: str, here: Fingerprint) -> Iterator[Candidate]:
        """Every engine of a graph, judged; those that were changed are invalid."""
        for plan, record in self.records(stage):
            if isinstance(record, BundleError):
                verdict = Verdict(Validity.INVALID, str(record))
                yield Candidate(path=plan, record=None, verdict=verdict)
                continue
            verdict = judge(record.fingerprint, here)
            if verdict.usable and (fault := self._fault(plan, record)):
                verdict = Verdict(Validity.INVALID, fault)
            yield Candidate(path=plan, record=record, verdict=verdict)

    def _fault(self, plan: Path, record: Record) -> str:
        """Why an engine's bytes are not those that its record is about; empty if they are."""
        if not plan.is_file():
            return "its file is missing"
        if plan.stat().st_size != record.size_bytes:
            return f"it was changed: it has {plan.stat().st_size} bytes, not {record.size_bytes}"
        if self.listed is not None and self.listed.get(plan.name) != record.sha256:
            return "the bundle's manifest does not list it"
        memory = HashMemory()
        found = memory.sha256(plan)
        memory.save()
        if found != record.sha256:
            return f"it was changed: its SHA-256 is {found[:12]}…, not {record.sha256[:12]}…"
        return ""

    def store(self, record: Record, plan: bytes) -> Path:
        """Write an engine and its record, the record last, each in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{record.name}.plan"
        _write(target, plan)
        _write(target.with_suffix(".json"), record.to_json().encode())
        return target


def _write(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def user_shelf(backend: str) -> Shelf:
    """The user's own engines."""
    return Shelf(folder=cache_folder() / FOLDER / backend, backend=backend)


def bundle_shelf(bundle: Bundle, backend: str) -> Shelf:
    """The engines that came with a bundle."""
    inside = f"{FOLDER}/{backend}/"
    files = bundle.manifest.files.items()
    listed = {name[len(inside) :]: f.sha256 for name, f in files if name.startswith(inside)}
    return Shelf(folder=bundle.root / FOLDER / backend, backend=backend, listed=listed)


def engines_on_disk(bundle: Bundle, backend: str, stage: str) -> list[Record | BundleError]:
    """Every record of a graph's name, whatever it was made for; the user's before the bundle's."""
    shelves = (user_shelf(backend), bundle_shelf(bundle, backend))
    return [record for shelf in shelves for _, record in shelf.records(stage)]


@dataclass(slots=True, kw_only=True)
class Search:
    """What was found for a stage."""

    best: Candidate | None = None
    others: list[Candidate] = field(default_factory=list[Candidate])


def search(bundle: Bundle, stage: str, here: Fingerprint) -> Search:
    """Look for an engine: a valid one first, then one that is usable; the user's before the
    bundle's."""
    found: list[Candidate] = []
    for shelf in (user_shelf(here.backend), bundle_shelf(bundle, here.backend)):
        found += shelf.candidates(stage, here)
    order = [Validity.VALID, Validity.SUBOPTIMAL]
    usable = [c for wanted in order for c in found if c.verdict.validity is wanted]
    best = usable[0] if usable else None
    return Search(best=best, others=[candidate for candidate in found if candidate is not best])


def need_engine(bundle: Bundle, stage: str, here: Fingerprint) -> Candidate:
    """The best engine of a graph, whose file is called `stage`.onnx.

    Raises
    ------
    DeviceError
        There is none that may run here; the message says why of each that was found, and how to
        make one.
    """
    found = search(bundle, stage, here)
    if found.best:
        return found.best
    name = BACKENDS[here.backend]
    cure = f"run scanside build {typed(bundle)} --backend {here.backend}"
    # the user's folder also holds engines of other bundles' graphs
    near = [c for c in found.others if c.record is None or c.record.fingerprint.onnx == here.onnx]
    if not near:
        raise DeviceError(
            f"there is no {name} engine of the {stage} for {here.gpu or 'this GPU'} "
            f"({here.capabilities[0]}); {cure}"
        )
    reasons = "; ".join(f"{c.path.name}: {c.verdict.reason}" for c in near)
    raise DeviceError(f"no {name} engine of the {stage} may run here ({reasons}); {cure}")


def hash_of_graph(path: Path) -> str:
    """The hash that stands for a graph in fingerprints: of the file, and of its weights' files.

    Raises
    ------
    BundleError
        No graph, or a file with weights that is missing.
    """
    memory = HashMemory()
    hashes: dict[Path, str] = {}
    for file in (path, *GraphFile.read(path).external):
        if not file.is_file():
            raise BundleError(f"{file} is missing, which holds weights of {path.name}")
        hashes[file] = memory.sha256(file)
    memory.save()
    return graph_sha256(path, hashes)


def typed(bundle: Bundle) -> str:
    """A bundle as it is named on the command line."""
    return "reference" if bundle.root == REFERENCE else str(bundle.root)
