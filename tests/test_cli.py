"""The `scanside` command itself: verbs, exit codes, and errors as sentences."""

import subprocess
import sys
import types

import pytest

from scanside import __version__
from scanside.runtime import cli
from scanside.runtime.cli import VERBS, main
from scanside.runtime.errors import InputError


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_of_its_own_without_torch(verb: str):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from scanside.runtime.cli import main\n"
        "raise SystemExit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, verb, "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: scanside {verb}")


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scanside {__version__}\n"


@pytest.mark.parametrize("words", [[], ["sing"], ["--colour"]])
def test_wrong_usage_is_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage: scanside" in printed.err


def run_verb_that(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def run(_: object) -> int:
        raise error

    verb = types.SimpleNamespace(add_arguments=lambda _: None, run=run)
    monkeypatch.setattr(cli, "_load", lambda _: verb)
    return main(["doctor"])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("too loud"), "scanside doctor: too loud\n"),
        (KeyboardInterrupt(), "scanside doctor: interrupted\n"),
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device\n"),
        (ZeroDivisionError("oops"), "internal error (ZeroDivisionError: oops); SCANSIDE_DEBUG=1"),
    ],
)
def test_no_traceback_reaches_a_user(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    sentence: str,
):
    monkeypatch.delenv("SCANSIDE_DEBUG", raising=False)
    assert run_verb_that(monkeypatch, error) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err


def test_debugging_shows_where_an_internal_error_comes_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCANSIDE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run_verb_that(monkeypatch, ZeroDivisionError())


def test_a_missing_extra_is_named_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli.importlib, "import_module", missing)
    assert main(["export", "a", "b"]) == 1
    assert "torch is not installed; run pip install 'scanside[export]'" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error_message():
    code = "from scanside.runtime.cli import main; raise SystemExit(main(['doctor']))"
    doctor = subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert doctor.stdout is not None
    assert doctor.stderr is not None
    doctor.stdout.close()
    assert doctor.stderr.read() == b""
    doctor.stderr.close()
    assert doctor.wait() in (0, 1)
