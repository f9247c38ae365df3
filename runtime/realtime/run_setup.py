"""Everything a run needs, opened and checked before its first volume; nothing is written yet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..decoder import Decoder
from ..errors import InputError
from .access import Access
from .folder_source import Existing
from .intake import Intake
from .live_markers import LslMarkers, Markers
from .model_place import Placing
from .run_file import open_run
from .session_config import SessionConfig
from .source_opening import source_identity, split_source
from .stimuli import Stimulus, check_inside, chosen, read_events

_LIVE = "lsl:"
_TR_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A run as its operator words it."""

    source: str
    """As `source_opening` names it."""
    events: str
    """An events.tsv, or `lsl:NAME` for markers of a live stream."""
    out: Path
    markers: str | None = None
    """LSL stream in which the trigger comes, if the events are a file."""
    network: bool = False
    """Whether sinks and LSL streams may reach beyond this machine."""
    sinks: tuple[str, ...] = ()
    """As `sink_opening` names them."""
    access: Access = Access()
    """Who may subscribe to a sink that serves; its token is also that of a ZeroMQ source."""
    peers: tuple[str, ...] = ()
    """Addresses or networks that may send volumes, besides this machine."""
    trial_types: tuple[str, ...] = ()
    """Those that are answered; all if none is named."""
    former: Path | None = None
    """Folder of a former run, whose statistics this one begins with."""
    placing: Placing = Placing()
    existing: Existing = "refuse"
    pattern: str = "*"
    first_number: int = 1
    polling: bool = False
    threads: int = 2

    @property
    def live_events(self) -> bool:
        """Whether trials become known during the run."""
        return self.events.startswith(_LIVE)

    @property
    def stream(self) -> str | None:
        """The LSL stream that is listened to, if any."""
        return self.events.removeprefix(_LIVE) if self.live_events else self.markers


def complete_config(request: RunRequest, given: dict[str, Any]) -> SessionConfig:
    """The run's configuration; TR and length come from a recorded run's header if not given.

    Raises
    ------
    InputError
        They are not known, or a TR that disagrees with the header.
    """
    kind, path = split_source(request.source)
    if kind == "file":
        recorded = open_run(path)
        tr_s = given.setdefault("tr_s", recorded.tr_s) or recorded.tr_s
        stated = recorded.tr_s
        if stated is not None and tr_s and abs(stated - tr_s) > _TR_TOLERANCE * tr_s:
            raise InputError(
                f"'tr_s' is {tr_s:g} s, but the header of {path} says {stated:g} s; correct it, or "
                "the header"
            )
        given["tr_s"] = tr_s
        if given.get("volumes") is None:
            given["volumes"] = recorded.volumes
    lacking = [
        flag for flag, name in (("--tr", "tr_s"), ("--volumes", "volumes")) if not given.get(name)
    ]
    if lacking:
        raise InputError(
            f"give {' and '.join(lacking)}: {request.source} does not say it beforehand"
        )
    if given.get("trigger") is not None and request.stream is None:
        raise InputError("'trigger' comes in an LSL stream; name it with --markers")
    return SessionConfig(**given)


def read_stimuli(
    request: RunRequest, config: SessionConfig
) -> tuple[list[Stimulus], frozenset[int] | None]:
    """Trials that are known before the run, and which of them are answered.

    Raises
    ------
    InputError
        Events that cannot be read, or lie outside the run.
    """
    if request.live_events:
        return [], None
    stimuli = read_events(Path(request.events))
    check_inside(stimuli, config.kept * config.tr_s, request.events)
    return stimuli, chosen(stimuli, request.trial_types, request.events)


def open_markers(request: RunRequest) -> Markers | None:
    """Live markers, if events or the trigger come that way."""
    if request.stream is None:
        return None
    return LslMarkers(request.stream, local=not request.network)


def header_of(request: RunRequest, config: SessionConfig, bundle: Bundle) -> dict[str, Any]:
    """What a run that is resumed must have in common with its earlier life."""
    events = request.events
    if not request.live_events:
        events = hashlib.sha256(Path(events).read_bytes()).hexdigest()
    return {
        "bundle": bundle.sha256,
        "source": source_identity(request.source),
        "events": events,
        "trial_types": list(request.trial_types),
        "former": request.former and str(request.former),
        "transform": request.placing.transform and str(request.placing.transform),
        "model_image": request.placing.model_image and str(request.placing.model_image),
        **config.identity(),
    }


def make_intake(decoder: Decoder, request: RunRequest, config: SessionConfig) -> Intake:
    """The intake for the bundle's encoder."""
    spec = decoder.bundle.manifest.encoder
    return Intake(
        decoder.stages.preprocessor,
        np.array(spec.geometry.affine, np.float64),
        decoder.bundle.arrays(spec.arrays).get("inv_std"),
        request.placing,
        correct_motion=config.correct_motion,
        threads=request.threads,
    )


def golden_clip(bundle: Bundle) -> float | None:
    """Length of the CLIP vector of the bundle's golden volume."""
    golden = bundle.manifest.golden
    if golden is None:
        return None
    clip = bundle.arrays(golden.outputs).get("clip")
    return None if clip is None else float(np.linalg.norm(clip))
