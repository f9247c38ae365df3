"""A run's page and its derivatives: made from real simulated runs, whole, faulty and broken off."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scanside.runtime.cli import main
from scanside.runtime.errors import InputError
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation
from scanside.runtime.report.dataset import Names
from scanside.runtime.report.derivatives import write_derivatives
from scanside.runtime.report.page import render, write_report
from scanside.runtime.report.story import Story, read_story

VOLUMES = 30
VOID = {"meta", "img", "br", "link", "input", "hr"}
CODE = "import sys; from scanside.runtime.cli import main; raise SystemExit(main(sys.argv[1:]))"


class Reader(HTMLParser):
    """Text, addresses and ids of a page; fails on a tag that does not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    reader.text = re.sub(r"\s+", " ", reader.text)
    return reader


def words(recorded: Path, source: str, out: Path, *more: str) -> list[str]:
    return [
        *("watch", "reference", "--source", source, "--events"),
        *(str(recorded.with_name("run_events.tsv")), "--out", str(out), "--threads", "1"),
        *("--deadline", "1000", *more),
    ]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated run, run_bold.nii, with its events beside it, in a folder named as a person."""
    path = tmp_path_factory.mktemp("Doe_Jane") / "run_bold.nii"
    SimulatedRun(
        Simulation(shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=VOLUMES, gap_s=11.0)
    ).write(path)
    return path


@pytest.fixture(scope="module")
def whole(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with pictures and a heat map of each trial; its page was written at its end."""
    out = tmp_path_factory.mktemp("whole") / "out"
    task = ("--task", "preview,caption,image", "--prompt", "caption", "--steps", "1")
    assert main(words(recorded, f"file:{recorded}", out, "--speed", "1000", *task)) == 0
    assert (out / "report.html").is_file()
    assert main(["report", str(out), "--locate", "red circle", "--threads", "1"]) == 0
    return out


@pytest.fixture(scope="module")
def faulty(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that lost a volume, was killed, and was then taken up to its end."""
    folder = tmp_path_factory.mktemp("faulty")
    played, out = folder / "incoming", folder / "out"
    assert main(["replay", str(recorded), "--to", str(played), "--speed", "1000"]) == 0
    sorted(played.iterdir())[7].unlink()
    arguments = words(
        recorded,
        f"folder:{played}",
        out,
        *("--tr", "1.6", "--volumes", str(VOLUMES), "--existing", "take", "--task", "caption"),
        *("--prompt", "none", "--no-report"),
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", CODE, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as first:
        journal = out / "journal.jsonl"
        while first.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= VOLUMES // 2:
                os.kill(first.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        first.wait()
    assert first.returncode == -signal.SIGKILL
    shutil.copytree(out, folder / "broken-off")
    assert main(arguments) == 0
    assert not (out / "report.html").exists()
    return out


def check_every_trial(page: str, story: Story) -> None:
    """Every trial and answer of the journal is on the page, with what was decoded."""
    reader = read(page)
    count = 0
    for attempt, trial in story.trials():
        count += 1
        assert f"trial-{attempt.number}-{trial.number}" in reader.ids
        assert trial.event.name in reader.text
        for answer in trial.answers.values():
            assert answer.get("caption", "") in reader.text
            if "confidence" in answer:
                assert f"{answer['confidence']['value']:.2f}" in reader.text
            for why in answer["degraded"]:
                assert why in reader.text
    assert count > 1


def check_alone(page: str) -> None:
    """Nothing is outside the page, and each of its own addresses leads somewhere."""
    reader = read(page)
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in reader.addresses)
    assert {a[1:] for a in reader.addresses if a.startswith("#")} <= set(reader.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    assert not re.search(r"https?://|<script|@import|url\((?!#)", page)


def test_the_page_of_a_whole_run_holds_every_trial_and_nothing_from_outside(whole: Path):
    page = (whole / "report.html").read_text()
    story = read_story(whole)
    check_every_trial(page, story)
    check_alone(page)
    reader = read(page)
    pictures = sum(bool(a.get("preview")) + bool(a.get("image")) for a in story.answers())
    trials = len(story.last.trials)
    assert pictures == 4 * trials
    assert page.count('src="data:image/png') == pictures + 3 * trials
    for expected in (
        *("Real-time run: complete", f"{VOLUMES} of {VOLUMES} volumes", "1.6 s", "a recorded run"),
        *("shift, mm", "turn, degrees", "FD, mm", "DVARS, %", "one TR", "refined answer"),
        *("where “red circle” is", "similarity", str(story.header["bundle"])),
    ):
        assert expected in reader.text
    assert str(story.began)[:10] in reader.text


def test_gaps_faults_and_a_second_life_are_on_the_page(faulty: Path):
    story = read_story(faulty)
    page = render(story)
    check_every_trial(page, story)
    check_alone(page)
    text = read(page).text
    assert story.last.missing() == [7]
    assert story.lives == 1
    for expected in ("gap: 1", f"{VOLUMES - 1} of {VOLUMES} volumes", "1 gaps", "1 times resumed"):
        assert expected in text
    assert re.search(r"missing\s*1\s*7", text)


def test_a_run_that_is_broken_off_has_a_page_that_says_so(faulty: Path):
    story = read_story(faulty.with_name("broken-off"))
    assert story.summary is None
    page = render(story)
    check_every_trial(page, story)
    assert "broken off, or still going on" in page
    assert "No answer: the run did not get so far." in page


def test_nobody_is_named(whole: Path, faulty: Path, tmp_path: Path):
    write_derivatives(read_story(whole), tmp_path / "bids")
    written = [*tmp_path.rglob("*"), whole / "report.html"]
    found = b"".join(path.read_bytes() for path in written if path.is_file())
    found += render(read_story(faulty)).encode() + str([p.name for p in written]).encode()
    assert b"Doe_Jane" not in found  # shorter names stand in base64 by chance
    assert str(whole).encode() not in found


def validate(folder: Path) -> list[dict[str, str]]:
    """Errors of the BIDS validator."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run(
        [validator, str(folder), "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


def test_derivatives_are_valid_and_hold_what_was_decoded(whole: Path, tmp_path: Path):
    out = tmp_path / "bids"
    assert main(["report", str(whole), "--bids", str(out), "--subject", "7"]) == 0
    assert validate(out) == []
    (out / ".bidsignore").unlink()  # what it hides is what the standard has no names for
    hidden = {issue["location"] for issue in validate(out)}
    names = r"(_statmap|_heatmap)\.(nii\.gz|json)$|/figures/|/sha256sums.txt$"
    assert hidden
    assert all(re.search(names, location) for location in hidden)

    story = read_story(whole)
    stem = out / "sub-7" / "func" / "sub-7_task-decoding_run-1"
    rows = Path(f"{stem}_events.tsv").read_text().splitlines()
    head = rows[0].split("\t")
    table = [dict(zip(head, row.split("\t"), strict=True)) for row in rows[1:]]
    assert len(table) == len(story.last.trials)
    sidecar = json.loads(Path(f"{stem}_events.json").read_text())
    assert set(head) <= set(sidecar)
    for row in table:
        trial = story.last.trials[int(row["trial"])]
        assert trial.best is not None
        assert row["decoded_caption"] == trial.best["caption"]
        assert float(row["onset"]) == trial.event.onset_s
        assert float(row["duration"]) == 3.0
        assert (out / row["decoded_image"]).read_bytes() == (
            whole / trial.best["image"]
        ).read_bytes()


def test_betas_are_what_the_decoder_read_where_the_model_lies(whole: Path, tmp_path: Path):
    out = tmp_path / "bids"
    story = read_story(whole)
    write_derivatives(story, out, Names(session="a"))
    func = out / "sub-01" / "ses-a" / "func"
    stem = "sub-01_ses-a_task-decoding_run-1"
    with np.load(whole / "betas" / "grid.npz") as held:
        voxels = held["voxels"]
    for revision, window in enumerate(("fast", "refined")):
        for k, stat in enumerate(("effect", "variance")):
            path = func / f"{stem}_desc-{window}_stat-{stat}_statmap.nii.gz"
            image = nib.load(path)
            told = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
            assert told["Trials"] == sorted(story.last.trials)
            np.testing.assert_allclose(image.affine, story.last.model_to_world, atol=1e-5)
            for place, trial in enumerate(told["Trials"]):
                kept = story.beta(0, trial, revision)
                assert kept is not None
                found = np.asarray(image.dataobj[..., place])
                np.testing.assert_array_equal(found[tuple(voxels.T)], kept[k])
                assert np.count_nonzero(found) <= len(voxels)
    heat = nib.load(func / f"{stem}_desc-redCircle_heatmap.nii.gz")
    assert heat.shape[-1] == len(story.last.trials)
    assert np.asarray(heat.dataobj).max() == pytest.approx(1.0)


def test_a_broken_off_run_keeps_the_same_betas(faulty: Path):
    story = read_story(faulty)
    for answer in story.answers():
        if answer["state"] != "impossible":
            assert story.beta(0, answer["trial"], answer["revision"]) is not None


def test_one_file_holds_the_hash_of_every_other(whole: Path, tmp_path: Path):
    out = tmp_path / "bids"
    files = write_derivatives(read_story(whole), out)
    lines = [line.split("  ") for line in (out / "sha256sums.txt").read_text().splitlines()]
    on_disk = {path for path in out.rglob("*") if path.is_file()}
    assert {out / name for _, name in lines} | {out / "sha256sums.txt"} == on_disk == set(files)
    for digest, name in lines:
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"subject": "a-b"}, "'subject' must be letters and digits"),
        ({"task": ""}, "'task' must be letters and digits"),
        ({"run": 0}, "'run' must be 1 or more"),
    ],
)
def test_labels_that_bids_does_not_take_are_refused(names: dict[str, object], said: str):
    with pytest.raises(InputError, match=said):
        Names(**names)  # type: ignore[arg-type]


def test_a_folder_that_holds_something_is_left_alone(whole: Path, tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="holds something already"):
        write_derivatives(read_story(whole), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_is_no_run_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no journal.jsonl; name a folder" in capsys.readouterr().err


def test_a_damaged_journal_is_a_sentence(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"0", b"1", 1)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    assert main(["report", str(tmp_path)]) == 1
    assert "is damaged in line" in capsys.readouterr().err


def test_without_matplotlib_the_run_stays_and_the_extra_is_named(
    recorded: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    assert (
        main(
            words(
                recorded,
                f"file:{recorded}",
                out,
                *("--speed", "1000", "--task", "caption", "--prompt", "none", "--json"),
            )
        )
        == 0
    )
    printed = capsys.readouterr()
    assert json.loads(printed.out)["ending"] == "complete"
    assert "pip install 'scanside[plot]'" in printed.err
    assert printed.err.count("\n") == 1
    assert not (out / "report.html").exists()
    # derivatives need no plot
    write_derivatives(read_story(whole), tmp_path / "bids")


def test_a_page_that_cannot_be_written_leaves_nothing(whole: Path, tmp_path: Path):
    with pytest.raises(InputError, match="cannot be written"):
        write_report(whole, tmp_path / "nowhere" / "page.html")
    assert list(tmp_path.iterdir()) == []
