"""`scanside chat`, typed at a terminal and fed by a pipe."""

import io
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from scanside.runtime import Decoder
from scanside.runtime.bundle import Bundle
from scanside.runtime.cli import main

TRIALS = Path(__file__).parent.parent / "runtime/reference/trials"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return Path(shutil.copy(TRIALS / "trial-01.nii.gz", tmp_path / "trial.nii.gz"))


class Piped:
    """A conversation through a pipe: exit code, lines of stdout, lines of stderr."""

    def __init__(
        self,
        volume: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self._volume, self._monkeypatch, self._capsys = volume, monkeypatch, capsys
        self.out = volume.parent / "out"

    def __call__(
        self, text: str | bytes, *words: str, bundle: str = "reference"
    ) -> tuple[int, list[str], list[str]]:
        raw = text if isinstance(text, bytes) else text.encode()
        stdin = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")
        self._monkeypatch.setattr(sys, "stdin", stdin)
        places = [str(self._volume), "--out", str(self.out), "--threads", "1"]
        code = main(["chat", bundle, *places, *words])
        printed = self._capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()


@pytest.fixture
def piped(
    volume: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Piped:
    return Piped(volume, monkeypatch, capsys)


def test_each_line_is_answered_and_the_picture_is_there(piped: Piped, volume: Path):
    lines = "What is at the left?\n\n  What colour is it?  \n/caption\n/describe\n"
    code, (picture, *answers), errors = piped(lines)
    assert (code, errors) == (0, [])
    assert picture == f"picture: {piped.out / 'image.png'}"
    with Image.open(piped.out / "image.png") as image:
        assert image.size == (64, 64)
    assert json.loads((piped.out / "result.json").read_text())["image"].endswith("image.png")
    with Decoder.open("reference", threads=1, warm=False) as decoder:
        with decoder.chat(volume) as chat:
            expected = [chat.ask("What is at the left?").text, chat.ask("What colour is it?").text]
        result = decoder.decode(volume, ("caption", "describe"))
    assert answers == [*expected, result.caption, result.description]


def test_a_new_conversation_has_forgotten_the_old_one(piped: Piped):
    _, lines, _ = piped("What colour is it?\nWhat is at the left?\n/new\nWhat colour is it?\n")
    assert lines[3] == lines[1]


def test_quit_ends_it(piped: Piped):
    code, lines, _ = piped("/quit\nWhat is it?\n")
    assert (code, len(lines)) == (0, 1)


def test_help_names_every_command(piped: Piped):
    _, lines, _ = piped("/help\n")
    for command in ("/caption", "/describe", "/locate", "/new", "/quit"):
        assert any(line.startswith(command) for line in lines)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"/locate", "/locate needs a concept, for example /locate red circle"),
        (b"/sing", "there is no command /sing; /help lists them"),
        (b"no <bot>: yes", "the question holds '<bot>:'"),
        (b"caf\xe9", "is not valid UTF-8"),
        (b"word " * 600, "beside the volume's prefix the context of 512 leaves room for"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence_and_the_next_line_is_answered(
    piped: Piped, line: bytes, sentence: str
):
    code, lines, errors = piped(line + b"\nWhat colour is the background?\n")
    assert (code, len(lines), len(errors)) == (1, 2, 1)
    assert errors[0].startswith("scanside chat: ")
    assert sentence in errors[0]
    assert lines[1]


def test_a_concept_is_named_and_its_place_is_shown(piped: Piped, volume: Path):
    code, (_, named, *shown), errors = piped("/locate red circle\n")
    if Bundle.open("reference").manifest.localization:
        assert (code, errors) == (0, [])
        assert Path(shown[0].removeprefix("heatmap: ")).exists()
    else:
        assert (code, shown, len(errors)) == (1, [], 1)
        assert "this bundle has no localizer" in errors[0]
    with (
        Decoder.open("reference", threads=1, warm=False) as decoder,
        decoder.chat(volume) as chat,
    ):
        assert named == chat.ask('Locating the concept of "red circle"').text
    assert "red circle" in named


def test_the_answers_are_shaped_by_the_options(piped: Piped):
    drawn = ("--temperature", "5", "--top-p", "0.9", "--top-k", "50", "--max-tokens", "4")
    _, one, _ = piped("/describe\n", *drawn, "--seed", "1")
    _, same, _ = piped("/describe\n", *drawn, "--seed", "1")
    _, other, _ = piped("/describe\n", *drawn, "--seed", "2")
    assert one == same != other
    assert one[2] == "(the answer is cut, for it reached the limit of tokens)"
    _, lines, _ = piped("What colour is the background?\n", "--confidence")
    assert lines[2].startswith("(mean log-probability -")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--deadline", "0"], "--deadline must be above 0 seconds; got 0.0"),
        (["--max-tokens", "0"], "--max-tokens must be at least 1; got 0"),
        (["--top-p", "2"], "--top-p must be above 0 and at most 1; got 2.0"),
        (["--device", "tpu"], "--device must be one of cpu"),
        (["--index", "3"], "has no volume 3"),
    ],
)
def test_wrong_options_are_one_sentence_in_the_words_that_were_typed(
    piped: Piped, words: list[str], sentence: str
):
    code, lines, errors = piped("What is it?\n", *words)
    assert (code, lines, len(errors)) == (1, [], 1)
    assert sentence in errors[0]
    assert not piped.out.exists()


def test_a_bundle_without_pictures_says_so(piped: Piped, tmp_path: Path):
    blind = shutil.copytree(TRIALS.parent / "bundle", tmp_path / "blind")
    manifest = json.loads((blind / "manifest.json").read_text())
    del manifest["diffusion"]
    (blind / "manifest.json").write_text(json.dumps(manifest))
    code, lines, _ = piped("/quit\n", bundle=str(blind))
    assert (code, lines) == (0, ["picture: none, for this bundle has no diffusion model"])
    assert not piped.out.exists()


def test_at_a_terminal_there_is_a_prompt_and_an_error_is_no_failure(volume: Path, tmp_path: Path):
    ours, theirs = pty.openpty()
    words = ["chat", "reference", str(volume), "--out", str(tmp_path / "out"), "--threads", "1"]
    code = "import sys; from scanside.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *words], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.write(ours, b"/sing\nWhat colour is the background?\n/quit\n")
    shown = b""
    while process.poll() is None or b"/quit" not in shown:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other side has closed
            break
    assert process.wait(60) == 0
    os.close(ours)
    assert b"/help lists the commands" in shown
    assert b"> " in shown
    assert b"scanside chat: there is no command /sing" in shown
