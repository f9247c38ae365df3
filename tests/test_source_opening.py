"""How an operator words a source, what is refused beforehand, and whole runs over the network."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scanside.benchmarks.malformed import free_port
from scanside.runtime.cli import main
from scanside.runtime.errors import InputError
from scanside.runtime.realtime.access import Access
from scanside.runtime.realtime.afni_source import AfniSource
from scanside.runtime.realtime.dicom_source import DicomSource
from scanside.runtime.realtime.memory import Memory
from scanside.runtime.realtime.run_setup import RunRequest
from scanside.runtime.realtime.session_config import SessionConfig
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation
from scanside.runtime.realtime.source_opening import open_source, source_identity, split_source
from scanside.runtime.realtime.writers import FORMATS
from scanside.runtime.realtime.zmq_source import ZmqSource
from scanside.tests.patient import FILE_NAME, IDENTIFIERS, seed

VOLUMES = 30
SOURCES = {"afni": AfniSource, "zmq": ZmqSource, "dicom": DicomSource}


def opened(source: str, **fields):
    request = RunRequest(source=source, events="events.tsv", out=Path("out"), **fields)
    return open_source(request, SessionConfig(tr_s=1.6, volumes=VOLUMES), Memory(), lambda: 0.0)


def test_a_source_is_a_kind_and_a_place(tmp_path: Path):
    assert split_source("zmq:5555") == ("zmq", "5555")
    assert split_source("folder:zmq:5555") == ("folder", "zmq:5555")
    assert split_source(str(tmp_path)) == ("folder", str(tmp_path))
    # the same place is the same source, however it is worded
    assert source_identity("zmq:5555") == source_identity("zmq:localhost:5555")
    assert source_identity("dicom:[::1]:104") == "dicom:[::1]:104"


@pytest.mark.parametrize("kind", SOURCES)
def test_each_kind_opens_and_closes(kind: str):
    source = opened(f"{kind}:{free_port()}")
    assert isinstance(source, SOURCES[kind])
    assert source.poll(0.0) == []
    assert not source.exhausted
    source.close()


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "must be PORT or HOST:PORT"),
        ("here", "must be PORT or HOST:PORT"),
        ("70000", "ports 1 to 65535"),
        ("scanner.example:7954", "must be an IP address of this machine"),
        ("0.0.0.0:7954", "is beyond this machine; say --network"),
    ],
)
def test_places_that_cannot_be(kind: str, place: str, said: str):
    with pytest.raises(InputError, match=said):
        opened(f"{kind}:{place}")


@pytest.mark.parametrize("kind", SOURCES)
def test_beyond_this_machine_somebody_must_be_named(kind: str):
    place = f"{kind}:0.0.0.0:{free_port()}"
    with pytest.raises(InputError, match="is beyond this machine.*--(peer|token-file)"):
        opened(place, network=True)
    access = Access(token="a token that nobody guesses")
    opened(place, network=True, access=access, peers=("192.0.2.7",)).close()
    with pytest.raises(InputError, match="a peer must be an IP address or a network"):
        opened(place, network=True, access=access, peers=("scanner",))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "run_bold.nii"
    SimulatedRun(
        Simulation(shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=VOLUMES, gap_s=11.0)
    ).write(path)
    return path


@pytest.fixture(scope="module")
def watched(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict]:
    """Caption, confidence and beta of every answer of a run, by trial and revision."""

    def watch(source: str, *more: str) -> dict:
        out = tmp_path_factory.mktemp("out") / "run"
        events = recorded.with_name("run_events.tsv")
        words = ["watch", "reference", "--source", source, "--events", str(events), "--out"]
        words += [str(out), "--task", "caption", "--prompt", "none", "--threads", "1"]
        assert main([*words, "--deadline", "1000", "--speed", "4", *more]) == 0
        rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
        return {
            (row["trial"], row["revision"]): (
                row["caption"],
                row["confidence"]["value"],
                np.load(out / f"betas/{_beta(row)}.npy")[0],
            )
            for row in rows
        }

    return watch


@pytest.fixture(scope="module")
def wanted(watched: Callable[..., dict], recorded: Path) -> dict:
    return watched(f"file:{recorded}")


@pytest.mark.parametrize("kind", SOURCES)
def test_answers_over_a_network_are_those_from_the_file(
    watched: Callable[..., dict], wanted: dict, recorded: Path, kind: str
):
    place = f"{kind}:{free_port()}"
    replay = ["replay", str(recorded), "--to", place, "--speed", "4"]
    codes: list[int] = []

    def play() -> None:
        # the run opens its source while this waits for it
        while not codes or (codes[-1] and len(codes) < 60):
            codes.append(main(replay))
            if codes[-1]:
                threading.Event().wait(1.0)

    thread = threading.Thread(target=play)
    thread.start()
    tr_s = repr(float(np.float32(1.6)))  # as NIfTI's header has it
    found = watched(place, "--tr", tr_s, "--volumes", str(VOLUMES))
    thread.join()
    assert codes[-1] == 0
    _assert_same(found, wanted)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "nifti-gz"])
def test_answers_from_each_format_are_those_from_the_file_and_name_nobody(
    watched: Callable[..., dict],
    wanted: dict,
    recorded: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
    name: str,
):
    played, incoming = tmp_path / "played", tmp_path / "incoming"
    words = ["replay", str(recorded), "--to", str(played), "--format", name, "--speed", "1000"]
    assert main([*words, "--fault", "duplicate"]) == 0
    incoming.mkdir()
    for file in sorted(played.iterdir(), key=lambda file: file.stat().st_mtime_ns):
        seed(file)
        os.replace(file, incoming / f"{FILE_NAME}.{file.name}")
    capfd.readouterr()
    tr_s = repr(float(np.float32(1.6)))
    more = ("--tr", tr_s, "--volumes", str(VOLUMES), "--existing", "take")
    _assert_same(watched(f"folder:{incoming}", *more), wanted)
    out = max(tmp_path_factory.getbasetemp().glob("out*"), key=lambda made: made.stat().st_mtime)
    told = capfd.readouterr()
    traces = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    traces += [str(path.name).encode() for path in out.rglob("*")]
    traces += [told.out.encode(), told.err.encode()]
    assert len(traces) > 20
    for trace in traces:
        assert not [value for value in IDENTIFIERS if value.encode() in trace]


def _assert_same(found: dict, wanted: dict) -> None:
    """The same answers, but for the last digits of an affine and of a sum in another order."""
    assert len(wanted) > 0
    assert found.keys() == wanted.keys()
    for key, (_, confidence, beta) in found.items():
        assert np.corrcoef(beta, wanted[key][2])[0, 1] > 0.9999
        assert confidence == pytest.approx(wanted[key][1], abs=5e-3)
    # a doubtful caption may turn on the last digit
    assert sum(caption == wanted[key][0] for key, (caption, *_) in found.items()) >= len(found) - 1


def _beta(row: dict) -> str:
    trial, revision = row["trial"], row["revision"]
    return f"attempt-{row['attempt']}-trial-{trial:04d}-revision-{revision}"
