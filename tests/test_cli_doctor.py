"""`scanside doctor`: what is there, what is missing, and the command that mends it."""

import json
from pathlib import Path

import pytest

from scanside.runtime import machine
from scanside.runtime.cli import main


def pretend(monkeypatch: pytest.MonkeyPatch, **packages: str | None) -> None:
    """Let some packages seem installed, or not."""
    truth = machine._installed
    named = {name.replace("_", "-"): number for name, number in packages.items()}
    monkeypatch.setattr(machine, "_installed", lambda p: named[p] if p in named else truth(p))


def test_a_whole_installation_is_exit_0(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("onnxruntime", "llama.cpp", "nibabel", "CPUExecutionProvider", "cuda"):
        assert word in printed
    assert "everything that a decode needs is there" in printed


def test_a_bundle_is_shown_with_what_would_run_where(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["doctor", str(tiny_bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == []
    assert document["sections"]["bundle"]["unet"] == "CPUExecutionProvider"
    assert document["sections"]["bundle"]["language"] == "llama.cpp CPU"


def test_a_bundle_that_does_not_open_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["doctor", str(tmp_path / "absent")]) == 1
    printed = capsys.readouterr().out
    assert "no such bundle" in printed
    assert f"mend:  scanside export CHECKPOINT {tmp_path / 'absent'}" in printed


@pytest.mark.parametrize(
    ("packages", "problem", "mend"),
    [
        (
            {"onnxruntime": "1.31.1", "onnxruntime_gpu": "1.31.1"},
            "onnxruntime and onnxruntime-gpu are both installed",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'scanside[cpu]'",
        ),
        (
            {"onnxruntime": None, "onnxruntime_gpu": None},
            "ONNX Runtime is not installed",
            "pip install 'scanside[cpu]'",
        ),
        (
            {"llama_cpp_python": None},
            "llama-cpp-python is not installed",
            "pip install llama-cpp-python",
        ),
    ],
)
def test_what_is_wrong_comes_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packages: dict[str, str | None],
    problem: str,
    mend: str,
):
    pretend(monkeypatch, **packages)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert f"problem: {problem}" in printed
    assert f"mend:  {mend}" in printed


def test_a_missing_export_extra_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pretend(monkeypatch, torch=None)
    assert main(["doctor"]) == 0
    assert "off, lacks torch: pip install 'scanside[export]'" in capsys.readouterr().out


@pytest.mark.skipif(
    Path("/dev/nvidiactl").exists(), reason="this machine has a driver, so backends may run"
)
def test_without_a_driver_each_backend_says_what_it_lacks(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json"]) == 0
    devices = json.loads(capsys.readouterr().out)["sections"]["devices"]
    assert devices["driver"].startswith("none that can be used: no NVIDIA driver was found")
    assert devices["cpu"] == "runs"
    for backend in ("cuda", "rtx", "tensorrt", "language on cuda"):
        assert devices[backend] == (
            "no: there is no driver; install the NVIDIA driver 580 or newer of your card"
        )
