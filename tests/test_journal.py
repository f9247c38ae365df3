"""The journal: what was written is there again, whatever happened to the process or the disk."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scanside.runtime.realtime.journal import Journal, Past

HEADER = {"bundle": "abc", "tr_s": 1.6}


def written(path: Path) -> bytes:
    with Journal.create(path, HEADER) as journal:
        journal.volume(0, "received", arrived_s=0.1 + 0.2)
        journal.volume(1, "missing")
        journal.trial(0, 0, "answered", text="a red círcle\n")
        journal.volume(1, "received")
        journal.trial(0, 1, "answered", text="two")
    return path.read_bytes()


def resumed(path: Path) -> Past:
    journal, past = Journal.resume(path, HEADER)
    journal.close()
    return past


def test_everything_comes_back_exactly(tmp_path: Path):
    written(tmp_path / "j")
    past = resumed(tmp_path / "j")
    assert (past.header, past.torn_bytes, len(past.records)) == (HEADER, 0, 5)
    assert past.volumes()[0]["arrived_s"] == 0.1 + 0.2
    assert past.volumes()[1]["state"] == "received"
    assert past.trials()[0, 0]["text"] == "a red círcle\n"
    assert past.trials()[0, 1]["text"] == "two"


def test_every_line_is_json_for_other_programs(tmp_path: Path):
    lines = written(tmp_path / "j").decode().splitlines()
    assert [json.loads(line)["kind"] for line in lines][:3] == ["run", "volume", "volume"]


def test_a_file_torn_at_any_byte_of_its_last_line_keeps_all_others(tmp_path: Path):
    whole = written(tmp_path / "j")
    last = whole[:-1].rindex(b"\n") + 1
    for length in range(last, len(whole)):
        torn = tmp_path / "torn"
        torn.write_bytes(whole[:length])
        past = resumed(torn)
        assert (len(past.records), past.torn_bytes) == (4, length - last)
        assert torn.read_bytes() == whole[:last]


def test_a_journal_goes_on_after_a_torn_line(tmp_path: Path):
    path = tmp_path / "j"
    whole = written(path)
    path.write_bytes(whole[:-5])
    journal, _ = Journal.resume(path, HEADER)
    journal.trial(0, 1, "answered", text="two")
    journal.close()
    assert path.read_bytes() == whole


def test_a_journal_torn_in_its_first_line_begins_anew(tmp_path: Path):
    path = tmp_path / "j"
    first = written(path).splitlines(keepends=True)[0]
    for length in (0, 1, len(first) - 1):
        path.write_bytes(first[:length])
        assert resumed(path).records == ()
        assert path.read_bytes() == first


def test_a_tail_of_zeros_after_a_power_cut_is_cut_off(tmp_path: Path):
    path = tmp_path / "j"
    whole = written(path)
    path.write_bytes(whole + bytes(300))
    assert resumed(path).torn_bytes == 300
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["flip", "lose", "swap"])
def test_damage_in_the_middle_is_refused_and_named(tmp_path: Path, damage: str):
    path = tmp_path / "j"
    lines = written(path).splitlines(keepends=True)
    if damage == "flip":
        lines[2] = lines[2].replace(b"missing", b"massing")
    elif damage == "lose":
        del lines[2]
    else:
        lines[2], lines[3] = lines[3], lines[2]
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="is damaged in line 3 of"):
        resumed(path)


def test_another_run_is_refused_and_says_what_differs(tmp_path: Path):
    written(tmp_path / "j")
    with pytest.raises(ValueError, match=r"a run with tr_s 1.6, not 2.0; resume with the same"):
        Journal.resume(tmp_path / "j", HEADER | {"tr_s": 2.0})


def test_a_journal_that_is_there_is_never_overwritten(tmp_path: Path):
    whole = written(tmp_path / "j")
    with pytest.raises(ValueError, match="is there already: resume that run"):
        Journal.create(tmp_path / "j", HEADER)
    assert (tmp_path / "j").read_bytes() == whole
    with pytest.raises(ValueError, match="cannot be taken up again: No such file"):
        resumed(tmp_path / "none")


def test_two_runs_never_write_the_same_journal(tmp_path: Path):
    with Journal.create(tmp_path / "j", HEADER):
        with pytest.raises(ValueError, match="is being written by another run"):
            resumed(tmp_path / "j")
    resumed(tmp_path / "j")


def test_a_restart_of_the_run_leaves_the_former_attempt_behind(tmp_path: Path):
    with Journal.create(tmp_path / "j", HEADER) as journal:
        journal.volume(0, "received")
        journal.trial(0, 0, "answered")
        journal.append("restart", series="6")
        journal.volume(3, "received")
    past = resumed(tmp_path / "j")
    assert (list(past.volumes()), list(past.trials())) == ([3], [])
    assert len(past.records) == 4


def test_numbers_that_json_cannot_say_are_a_mistake_of_the_caller(tmp_path: Path):
    with Journal.create(tmp_path / "j", HEADER) as journal:
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.volume(0, "received", motion_mm=float("nan"))
        assert journal.volume(0, "received")
    assert len(resumed(tmp_path / "j").records) == 1


def test_a_killed_process_leaves_all_that_it_reported(tmp_path: Path):
    code = (
        "import sys\n"
        "from scanside.runtime.realtime.journal import Journal\n"
        f"journal = Journal.create(sys.argv[1], {HEADER!r})\n"
        "for number in range(10**9):\n"
        "    journal.volume(number, 'received', filler='x' * (number % 97))\n"
        "    print(number, flush=True)\n"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "j")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    reported = [int(writer.stdout.readline()) for _ in range(200)][-1]
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split("\n")[:-1]
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    reported = int(rest[-1]) if rest else reported
    numbers = list(resumed(tmp_path / "j").volumes())
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > reported


def test_a_full_disk_ends_the_journal_once_and_leaves_it_readable(tmp_path: Path):
    """The limit on a file's size makes the system take a piece of a line and refuse the rest."""
    path = tmp_path / "j"
    journal = Journal.create(path, HEADER)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
    try:
        assert journal.volume(0, "received")
        assert journal.trouble is None
        assert not journal.volume(1, "received", filler="x" * 200)
        assert "the journal" in (said := journal.trouble or "")
        assert "the run goes on" in said
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert not journal.volume(2, "received"), "it stays ended when there is room again"
    assert journal.trouble == said
    journal.close()
    assert list(resumed(path).volumes()) == [0]


def test_no_space_at_all_is_told_at_the_beginning():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    file = os.open("/dev/full", os.O_RDWR)
    journal = Journal(file, Path("journal"), chain=0, size=0, sync_s=1.0)
    assert not journal.volume(0, "received")
    assert "No space left on device" in (journal.trouble or "")
    journal.close()
