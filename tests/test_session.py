"""A whole real-time run: simulated brains in, answers of the shipped bundle out, faults on the way.

A scanner and a session share one simulated clock that only they move, so nothing here waits for a
volume and nothing depends on how busy the machine is. Answers are decoded for real, on their own
thread.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scanside.runtime import Decoder
from scanside.runtime.errors import BundleError, InputError
from scanside.runtime.realtime.faults import FaultRequest, Mishap, plan_run
from scanside.runtime.realtime.folder_source import FolderSource
from scanside.runtime.realtime.memory import Memory
from scanside.runtime.realtime.replay import Manner, Player
from scanside.runtime.realtime.run import Run
from scanside.runtime.realtime.run_file import RunFile
from scanside.runtime.realtime.run_setup import RunRequest
from scanside.runtime.realtime.session_config import SessionConfig
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation
from scanside.runtime.realtime.stimuli import read_events
from scanside.runtime.realtime.view import lines
from scanside.runtime.realtime.volume_writer import NiftiWriter

TR_S = 1.6
VOLUMES = 36
SIMULATION = Simulation(
    shape=(22, 26, 20),
    voxel_mm=(7.0, 7.0, 7.0),
    volumes=VOLUMES,
    tr_s=TR_S,
    gap_s=11.0,
    noise_percent=0.2,
    motion_mm=0.3,
)
FOREVER_S = 1e6


class Rig:
    """A replayed run and the session that watches it."""

    def __init__(
        self,
        decoder: Decoder,
        recorded: Path,
        folder: Path,
        faults: tuple[str, ...] = (),
        *,
        seed: int = 0,
        sinks: tuple[str, ...] = (),
        header_tr_s: float = TR_S,
        **config: Any,
    ) -> None:
        self.now_s = 1000.0
        self.decoder = decoder
        self.incoming = folder / "incoming"
        self.out = folder / "out"
        self.plan = plan_run(VOLUMES, [FaultRequest.parse(text) for text in faults], seed)
        self.player = Player(
            RunFile(recorded),
            self.plan,
            NiftiWriter(),
            self.incoming,
            Manner(tr_s=header_tr_s),
            clock=self.clock,
            sleep=self.sleep,
        )
        self.request = RunRequest(
            source=f"folder:{self.incoming}",
            events=str(recorded.with_name("run_events.tsv")),
            out=self.out,
            sinks=sinks,
            threads=1,
        )
        given = {"tasks": ("caption",), "prompt": "none", "deadline_s": FOREVER_S, **config}
        self.config = SessionConfig(tr_s=TR_S, volumes=VOLUMES, **given)
        self.run = self.open()

    def open(self) -> Run:
        """A session, new or taken up again."""

        def source(memory: Memory) -> FolderSource:
            return FolderSource(
                self.incoming,
                pace_s=TR_S,
                watch=False,
                rescan_trs=0.0,
                existing="take" if memory.resumed else "refuse",
                clock=self.clock,
            )

        return Run(self.decoder, self.request, self.config, clock=self.clock, source=source)

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass; the session acts on what comes."""
        end = self.now_s + seconds
        while self.now_s < end:
            self.now_s = min(self.now_s + 0.2 * TR_S, end)
            self.run.session.step(0.0)

    def play(self) -> dict[str, Any]:
        """The whole run; its summary."""
        for _ in self.tellings():
            pass
        return self.finish()

    def tellings(self) -> Iterator[dict[str, Any]]:
        """The run file by file, for tests that interrupt it."""
        for telling in self.player.play():
            yield telling
            self.run.session.step(0.0)

    def finish(self) -> dict[str, Any]:
        while not self.run.session.ending:
            self.sleep(TR_S)
        return self.run.finish()

    def kill(self) -> None:
        """What `kill -9` leaves: nothing is finished, nothing is told."""
        self.run.session.abandon()
        self.run.journal.close()


def answers(out: Path) -> dict[tuple[int, int, int], dict[str, Any]]:
    """Answers of a run's folder, each of which must be there once."""
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    found = {(row["attempt"], row["trial"], row["revision"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def said(out: Path, attempt: int = 0) -> dict[tuple[int, int], tuple[str, str | None]]:
    """What was answered in one attempt: state and caption by trial and revision."""
    return {
        key[1:]: (row["state"], row.get("caption"))
        for key, row in answers(out).items()
        if key[0] == attempt
    }


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder.open("reference", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated run, run_bold.nii, with its events beside it."""
    path = tmp_path_factory.mktemp("simulated") / "run_bold.nii"
    SimulatedRun(SIMULATION).write(path)
    return path


@pytest.fixture
def rig(decoder: Decoder, recorded: Path, tmp_path: Path) -> Callable[..., Rig]:
    def make(*faults: str, **config) -> Rig:
        return Rig(decoder, recorded, tmp_path, faults, **config)

    return make


@pytest.fixture(scope="module")
def clean(decoder: Decoder, recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A run without faults, played once."""
    made = Rig(decoder, recorded, tmp_path_factory.mktemp("clean"))
    made.summary = made.play()
    return made


def test_every_trial_is_answered_twice_and_the_summary_says_so(clean: Rig, recorded: Path):
    trials = len(read_events(recorded.with_name("run_events.tsv")))
    found = answers(clean.out)
    assert set(found) == {(0, trial, revision) for trial in range(trials) for revision in (0, 1)}
    assert {row["state"] for row in found.values()} == {"answered"}
    summary = json.loads((clean.out / "summary.json").read_text())
    assert summary == clean.summary
    assert summary["ending"] == "complete"
    assert summary["faults"] == {}
    assert summary["answers"]["answered"] == 2 * trials
    assert summary["volumes"]["received"] == summary["volumes"]["planned"]
    assert summary["missed_deadlines"] == 0


def test_an_answer_says_what_it_knows_and_how_sure_it_is(clean: Rig):
    for (_, _, revision), row in answers(clean.out).items():
        assert row["window"] == ("fast", "refined")[revision]
        assert row["caption"]
        assert set(row["confidence"]) == {"value", "signal", "clip", "text"}
        assert all(0 <= sign <= 1 for sign in row["confidence"].values())
    last = max(answers(clean.out))
    assert any("the run ends" in note for note in answers(clean.out)[last]["degraded"])


def test_the_view_shows_volumes_motion_and_the_latest_answer(clean: Rig):
    shown = "\n".join(lines(clean.run.session, clean.now_s))
    assert f"volume   {clean.config.volumes} of {clean.config.volumes}" in shown
    assert "mm" in shown
    assert "answer   trial" in shown


@pytest.mark.parametrize("kind", Mishap)
def test_a_fault_is_named_and_answers_that_it_does_not_touch_stay_the_same(
    rig, clean: Rig, kind: Mishap
):
    played = rig("truncate:0.9" if kind is Mishap.TRUNCATE else kind)
    summary = played.play()
    (truth,) = played.plan.truths
    assert str(truth.seen_as) in summary["faults"]
    lost = {Mishap.DROP, Mishap.TRUNCATE, Mishap.SHORT}
    received = summary["volumes"]["planned"] - len(truth.numbers) * (kind in lost)
    assert summary["volumes"]["received"] == received
    attempt = int(kind is Mishap.RESTART)
    found, wanted = said(played.out, attempt), said(clean.out)
    assert set(found) == set(wanted)
    # a window that closed before the fault knows nothing of it; later ones differ by what is lost
    stimuli = played.run.session.parts.stimuli
    first = min(truth.numbers)
    windows = played.config.windows_s
    untouched = [
        key
        for key in wanted
        if kind is Mishap.RESTART or (stimuli[key[0]].onset_s + windows[key[1]]) / TR_S < first
    ]
    assert {key: found[key] for key in untouched} == {key: wanted[key] for key in untouched}


def test_three_faults_at_once_are_all_named(rig):
    played = rig("drop", "duplicate", "delay", seed=3)
    summary = played.play()
    assert {"missing", "duplicate", "late"} <= set(summary["faults"])
    assert summary["answers"]["failed"] == summary["answers"]["dropped"] == 0


@pytest.mark.parametrize("files", [9, 25])
def test_a_run_that_was_broken_off_goes_on_with_the_same_answers(
    rig, clean: Rig, monkeypatch: pytest.MonkeyPatch, files: int
):
    played = rig()
    seen = 0
    for telling in played.tellings():
        seen += telling["event"] == "file"
        if seen == files and telling["event"] == "file":
            played.kill()
            played.run = played.open()
    summary = played.finish()
    assert summary["resumed"] == 1
    assert said(played.out) == said(clean.out)
    now, before = answers(played.out), answers(clean.out)
    # volumes are taken in with the motion that was written down, so that betas are the same ones
    assert {k: v["confidence"] for k, v in now.items()} == {
        k: v["confidence"] for k, v in before.items()
    }


def test_a_run_that_is_over_is_not_begun_again(clean: Rig):
    with pytest.raises(InputError, match="a run that is over"):
        clean.open()


def test_a_gate_withholds_feedback_and_keeps_the_record(rig, tmp_path: Path):
    told = tmp_path / "feedback.jsonl"
    played = rig(gate=1.0, sinks=(f"jsonl:{told}",))
    summary = played.play()
    messages = [json.loads(line) for line in told.read_text().splitlines()]
    given = [message for message in messages if message["event"] == "answer"]
    assert len(given) == len(answers(played.out)) == summary["answers"]["withheld"]
    assert all(message["withheld"] and "caption" not in message for message in given)
    assert all(row["caption"] for row in answers(played.out).values())
    assert not any(message["event"] in ("token", "preview") for message in messages)


def test_pictures_and_text_come_as_they_are_made(rig, tmp_path: Path):
    told = tmp_path / "feedback.jsonl"
    played = rig(
        sinks=(f"jsonl:{told}",), tasks=("preview", "caption", "image"), prompt="caption", steps=1
    )
    played.play()
    messages = [json.loads(line) for line in told.read_text().splitlines()]
    assert [message["seq"] for message in messages] == list(range(len(messages)))
    assert messages[-1]["event"] == "end"
    row = answers(played.out)[0, 0, 0]
    about = [m for m in messages if (m.get("trial"), m.get("revision")) == (0, 0)]
    assert [m["event"] for m in about][0] == "preview"
    assert "".join(m["text"] for m in about if m["event"] == "token") == row["caption"]
    assert {k: v for k, v in about[-1].items() if k != "seq"} == row
    assert (played.out / row["image"]).read_bytes()[:4] == b"\x89PNG"


def test_a_consumer_that_takes_nothing_costs_its_own_messages_only(rig, clean: Rig):
    played = rig(sinks=("jsonl:/dev/full",))
    summary = played.play()
    (sink,) = summary["sinks"]
    assert sink["trouble"]
    assert sink["sent"] == 0
    assert said(played.out) == said(clean.out)


def test_answers_that_cannot_be_in_time_are_shortened_or_dropped_and_say_so(rig):
    played = rig(deadline_s=1e-9)
    summary = played.play()
    found = answers(played.out)
    assert summary["missed_deadlines"] == sum(row["missed_deadline"] for row in found.values())
    assert summary["answers"]["dropped"] + summary["answers"]["answered"] == len(found)
    for row in found.values():
        assert not row.get("caption")
        assert any("deadline" in note or "late before it" in note for note in row["degraded"])


def test_discarded_volumes_move_the_onsets(rig):
    played = rig(discard=3)
    for _ in played.tellings():
        pass
    summary = played.finish()
    assert summary["volumes"]["discarded"] == 3
    assert played.run.session.tally.of("volumes") == summary["volumes"]["planned"] - 3


def test_motion_that_is_not_corrected_is_said(rig):
    played = rig(correct_motion=False)
    assert any("not corrected" in note for note in played.play()["notes"])


def test_a_first_volume_with_another_tr_ends_the_run_and_leaves_nothing(rig, tmp_path: Path):
    played = rig(header_tr_s=2.4)
    for _ in played.player.play():
        break  # the files come while the session is not asked
    with pytest.raises(InputError, match=r"header says 2.4 s; .*correct '--tr'"):
        played.run.play()
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_statistics_is_refused_in_a_sentence(
    decoder: Decoder, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = decoder.bundle.manifest.encoder
    monkeypatch.setattr(type(spec), "normalisation", "none")
    with pytest.raises(BundleError, match="no normalisation for betas of a run"):
        Rig(decoder, recorded, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_run_can_begin_with_the_statistics_of_a_former_one(rig, clean: Rig):
    played = rig()
    played.kill()
    (played.out / "journal.jsonl").unlink()
    for name in ("answers.jsonl", "pictures", "betas"):
        path = played.out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    played.request = replace(played.request, former=clean.out)
    played.run = played.open()
    played.play()
    assert set(said(played.out)) == set(said(clean.out))
