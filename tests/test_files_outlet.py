"""Files for programs that poll: whole, numbered, and the state always readable."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from scanside.runtime.errors import InputError
from scanside.runtime.png import write_png
from scanside.runtime.realtime.files_outlet import LATEST, FilesOutlet
from scanside.runtime.realtime.sinks import Sink, Sinks


def test_every_message_is_a_file_and_the_state_is_whole_whenever_it_is_read(tmp_path: Path):
    folder = tmp_path / "told"
    sinks = Sinks([Sink("files", FilesOutlet(folder), capacity=1000)])
    seen: list[int] = []
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            state = json.loads((folder / LATEST).read_text("utf-8"))
            seen.append(-1 if state["seq"] is None else state["seq"])

    polling = threading.Thread(target=poll)
    polling.start()
    for number in range(300):
        sinks.put({"event": "answer", "trial": number, "caption": "a círcle" * 50})
    (report,) = sinks.close(30.0)
    over.set()
    polling.join()
    assert seen == sorted(seen)
    names = sorted(path.name for path in folder.glob("0*.json"))
    assert names == [f"{number:010d}.json" for number in range(300)]
    messages = [json.loads((folder / name).read_text("utf-8")) for name in names]
    assert [message["trial"] for message in messages] == list(range(300))
    assert json.loads((folder / LATEST).read_text("utf-8"))["answer"] == messages[-1]
    assert not list(folder.rglob("*.arriving"))
    assert (report.sent, report.dropped, report.trouble) == (300, 0, None)


def test_pictures_are_there_before_the_message_that_names_them(tmp_path: Path):
    out, told = tmp_path / "out", tmp_path / "told"
    (out / "pictures").mkdir(parents=True)
    write_png(out / "pictures" / "trial.png", np.zeros((8, 8, 3), np.uint8), {})
    outlet = FilesOutlet(told, out)
    outlet.send(json.dumps({"seq": 0, "event": "preview", "preview": "pictures/trial.png"}))
    copy = told / "pictures" / "trial.png"
    assert copy.read_bytes() == (out / "pictures" / "trial.png").read_bytes()


def test_a_folder_that_cannot_be_used_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "0000000000.json").write_text("{}")
    with pytest.raises(InputError, match="holds '0000000000.json', which a poller would take"):
        FilesOutlet(tmp_path / "held")
    FilesOutlet(tmp_path / "held", resumes=True)
    with pytest.raises(InputError, match="is a file; name a folder"):
        FilesOutlet(tmp_path / "held" / "0000000000.json")
    with pytest.raises(InputError, match="cannot be written"):
        FilesOutlet(tmp_path / "held" / "0000000000.json" / "below")
    with pytest.raises(InputError, match="cannot be written"):
        FilesOutlet(Path("/proc/nowhere"))


def test_a_folder_that_is_taken_away_ends_the_sink_and_nothing_else(tmp_path: Path):
    sink = Sink("files", FilesOutlet(tmp_path / "told"))
    (tmp_path / "told" / LATEST).unlink()
    (tmp_path / "told" / "pictures").rmdir()
    os.rmdir(tmp_path / "told")
    for number in range(3):
        sink.put(json.dumps({"seq": number, "event": "fault"}))
    report = sink.close(30.0)
    assert (report.sent, report.dropped) == (0, 3)
    assert report.trouble == "No such file or directory"
