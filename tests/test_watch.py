"""`scanside watch` as it is typed: whole runs, preflight, bad input, kills, a full disk, LSL."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pylsl
import pytest

from scanside.runtime.cli import main
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation

VOLUMES = 30
CODE = "import sys; from scanside.runtime.cli import main; raise SystemExit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated run, run_bold.nii, with its events beside it."""
    path = tmp_path_factory.mktemp("simulated") / "run_bold.nii"
    SimulatedRun(
        Simulation(shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=VOLUMES, gap_s=11.0)
    ).write(path)
    return path


def events_of(recorded: Path) -> Path:
    return recorded.with_name("run_events.tsv")


def words(source: str, recorded: Path, out: Path, *more: str) -> list[str]:
    """A command line whose answers do not depend on how fast the machine is."""
    return [
        *("watch", "reference", "--source", source, "--events", str(events_of(recorded))),
        *("--out", str(out), "--task", "caption", "--prompt", "none", "--threads", "1"),
        *("--deadline", "1000", *more),
    ]


def live(folder: Path, recorded: Path, out: Path, *more: str) -> list[str]:
    return words(f"folder:{folder}", recorded, out, "--tr", "1.6", "--volumes", str(VOLUMES), *more)


def captions(out: Path) -> dict[tuple[int, int], tuple[str, float]]:
    """Caption and confidence of each answer, each there once."""
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len({(row["trial"], row["revision"]) for row in rows}) == len(rows)
    return {
        (row["trial"], row["revision"]): (row["caption"], row["confidence"]["value"])
        for row in rows
    }


def spawn(arguments: list[str], **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CODE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def written(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the run's files."""
    folder = tmp_path_factory.mktemp("written") / "incoming"
    assert main(["replay", str(recorded), "--to", str(folder), "--speed", "1000"]) == 0
    return folder


@pytest.fixture(scope="module")
def uninterrupted(recorded: Path, written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    assert main(live(written, recorded, out, "--existing", "take")) == 0
    return out


def test_a_recorded_run_prints_one_json_object(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = words(f"file:{recorded}", recorded, tmp_path / "out", "--speed", "1000", "--json")
    assert main(arguments) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert printed.err == ""
    assert summary["volumes"]["received"] == VOLUMES
    assert summary["answers"]["answered"] == len(captions(tmp_path / "out"))
    assert {"volume", "beta", "answer first_token"} <= set(summary["latency_ms"])


@pytest.mark.parametrize("records", [VOLUMES // 3, 2 * VOLUMES // 3 + 8])
def test_killed_and_begun_again_a_run_gives_the_same_answers(
    recorded: Path, written: Path, uninterrupted: Path, tmp_path: Path, records: int
):
    out = tmp_path / "out"
    arguments = live(written, recorded, out, "--existing", "take")
    journal = out / "journal.jsonl"
    with spawn(arguments) as first:
        while first.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= records:
                os.kill(first.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        first.wait()
    assert first.returncode == -signal.SIGKILL
    assert main(arguments) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["resumed"] == 1
    assert captions(out) == captions(uninterrupted)


def test_lsl_delivers_every_answer_once(recorded: Path, tmp_path: Path):
    folder, out, name = tmp_path / "incoming", tmp_path / "out", "scanside-test-watch"
    folder.mkdir()
    codes: list[int] = []
    arguments = live(folder, recorded, out, "--sink", f"lsl:{name}")
    watching = threading.Thread(target=lambda: codes.append(main(arguments)))
    watching.start()
    (found,) = pylsl.resolve_byprop("name", name, timeout=120)
    inlet = pylsl.StreamInlet(found)
    inlet.open_stream(timeout=60)
    played = tmp_path / "played"
    assert main(["replay", str(recorded), "--to", str(played), "--speed", "1000"]) == 0
    for file in sorted(played.iterdir()):
        os.replace(file, folder / file.name)
    messages: list[dict[str, object]] = []
    while not (messages and messages[-1]["event"] == "end"):
        over = not watching.is_alive()
        sample, _ = inlet.pull_sample(timeout=1.0)
        if sample is not None:
            messages.append(json.loads(sample[0]))
        elif over:
            break
    watching.join()
    inlet.close_stream()
    assert codes == [0]
    assert [message["seq"] for message in messages] == list(range(len(messages)))
    given = [(m["trial"], m["revision"]) for m in messages if m["event"] == "answer"]
    assert sorted(given) == sorted(captions(out))


def test_a_full_disk_stops_writing_and_not_decoding(
    recorded: Path, written: Path, uninterrupted: Path, tmp_path: Path
):
    def little_room() -> None:  # a write beyond it fails as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    arguments = live(written, recorded, tmp_path / "out", "--existing", "take", "--json")
    with spawn(arguments, preexec_fn=little_room) as process:
        printed, said = process.communicate()
    assert (process.returncode, said) == (0, "")
    summary = json.loads(printed)
    assert summary["faults"]["disk"]["count"] == 1
    assert "decoding goes on" in summary["faults"]["disk"]["detail"]
    assert summary["answers"]["answered"] == len(captions(uninterrupted))


def test_the_preflight_has_one_line_for_each_thing_and_changes_nothing(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    arguments = words(
        f"file:{recorded}", recorded, out, "--check", "--sink", f"jsonl:{tmp_path / 'told.jsonl'}"
    )
    code = main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["source", "events", "sinks", "disk", "budget"]
    # a busy machine may be too slow for one TR, and then says so
    assert all(line.startswith("ok") for line in lines[:4])
    assert code == (0 if lines[4].startswith("ok") else 1)
    assert list(tmp_path.iterdir()) == []


def test_the_preflight_fails_for_what_would_fail(
    recorded: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = main(live(written, recorded, tmp_path / "out", "--check", "--json"))
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    assert not found["checks"]["source"]["fine"]
    assert "already holds a run" in found["checks"]["source"]["found"]
    assert found["checks"]["events"]["fine"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tr", "2.0"), "--tr is 2 s, but the header"),
        (("--sink", "tcp:9000"), "--sink must be jsonl:PATH"),
        (("--sink", "ws:0.0.0.0:9000"), "0.0.0.0 is beyond this machine; say --network"),
        (("--sink", "ws:0.0.0.0:9000", "--network"), "give --tls-certificate and --tls-key"),
        (("--sink", "udp:nobody"), "must be PORT or HOST:PORT, ports 1 to 65535"),
        (("--sink", "afni:127.0.0.1:1"), "start realtime_receiver.py first"),
        (("--token-file", "nowhere"), "nowhere cannot be read as the file of a token"),
        (("--gate", "2"), "--gate must be a confidence from 0 to 1"),
        (("--discard", "29"), "--discard must leave at least 2"),
        (("--window", "9", "8"), "--window must be more than"),
        (("--trial-type", "house"), "holds no event of type 'house'"),
        (("--transform", "nowhere.mat"), "nowhere.mat: cannot be read"),
        (("--former", "nowhere"), "no saved normalisation"),
    ],
)
def test_a_wrong_argument_is_a_sentence_and_changes_nothing(
    recorded: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    said: str,
):
    assert main(words(f"file:{recorded}", recorded, tmp_path / "out", *more)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["below a file", "where nobody may write"])
def test_an_output_folder_that_cannot_be_written_is_a_sentence(
    recorded: Path, capsys: pytest.CaptureFixture[str], where: str
):
    # of root, too, whom permissions do not keep out
    out = recorded / "out" if where == "below a file" else Path("/proc/out")
    assert main(words(f"file:{recorded}", recorded, out)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{out} cannot be written" in printed.err
    assert printed.err.count("\n") == 1


def test_a_folder_needs_what_its_headers_do_not_say_beforehand(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "incoming"
    folder.mkdir()
    assert main(words(f"folder:{folder}", recorded, tmp_path / "out")) == 1
    assert "give --tr and --volumes" in capsys.readouterr().err


def test_onsets_that_count_from_the_session_are_refused(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = events_of(recorded).read_text().splitlines()
    shifted = [rows[0]]
    for row in rows[1:]:
        onset, rest = row.split("\t", 1)
        shifted.append(f"{float(onset) + 3600}\t{rest}")
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "run_events.tsv").write_text("\n".join(shifted) + "\n")
    arguments = words(f"file:{recorded}", moved / "run_bold.nii", tmp_path / "out")
    assert main(arguments) == 1
    assert "subtract this run's start" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_run_is_refused(
    recorded: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(live(written, recorded, tmp_path / "out")) == 1
    assert "already holds a run; empty it, or say with '--existing'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_resumed_must_be_the_same(
    recorded: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    with spawn(live(written, recorded, out, "--existing", "take")) as first:
        while first.poll() is None and not (out / "journal.jsonl").exists():
            time.sleep(0.005)
        while first.poll() is None and (out / "journal.jsonl").read_bytes().count(b"\n") < 3:
            time.sleep(0.005)
        first.kill()
    assert main(live(written, recorded, out, "--existing", "take", "--discard", "2")) == 1
    assert "of a run with discard 0, not 2" in capsys.readouterr().err


def test_replay_simulates_a_run_with_its_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "sim_bold.nii"
    arguments = ["replay", f"reference:{path}", "--volumes", "6", "--grid", "12x14x10"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "event": "simulated",
        "file": str(path),
        "events": str(tmp_path / "sim_events.tsv"),
    }
    assert (tmp_path / "sim_events.tsv").read_text().startswith("onset\tduration\ttrial_type\n")
    assert main(arguments) == 1
    assert "is there already" in capsys.readouterr().err
