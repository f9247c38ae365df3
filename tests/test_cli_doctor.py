"""`scanside doctor`: what is there, what is missing, and the command that mends it."""

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from scanside.runtime import machine
from scanside.runtime.backends import gpu_report
from scanside.runtime.bundle import Bundle
from scanside.runtime.cli import main
from scanside.runtime.devices import stage_devices
from scanside.runtime.doctor_bundle import engine_report, memory_report
from scanside.runtime.engines import cuda_packages
from scanside.runtime.engines.cuda_needs import cuda_major_of, needed
from scanside.runtime.engines.driver import Driver
from scanside.runtime.engines.engine_cache import user_shelf
from scanside.runtime.engines.rtx_builder import build_rtx
from scanside.runtime.engines.tensorrt_library import library
from scanside.runtime.memory_plan import plan_memory
from scanside.tests.cards import ADA, HOPPER, TURING


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
def test_without_a_driver_each_backend_says_all_that_it_lacks(
    capsys: pytest.CaptureFixture[str],
):
    assert main(["doctor", "--json"]) == 0
    devices = json.loads(capsys.readouterr().out)["sections"]["devices"]
    assert devices["driver"].startswith("none that can be used: no NVIDIA driver was found")
    assert "580" in devices["to get one"]
    assert devices["cpu"] == "runs"
    for backend in ("cuda", "rtx", "tensorrt", "language on cuda"):
        assert devices[backend].startswith("no: it needs a driver")
    # what else is missing is known without one, and with the command that adds it
    assert "pip install 'scanside[gpu]'" in devices["cuda"]
    assert devices["rtx"] == "no: it needs a driver"  # its library is installed for tests
    assert "run pip install tensorrt" in devices["tensorrt"]
    assert "CMAKE_ARGS=-DGGML_CUDA=on" in devices["language on cuda"]


def test_packages_for_cuda_are_told_by_their_names(monkeypatch: pytest.MonkeyPatch):
    named = {
        "nvidia-cudnn-cu12": ("9.1", 12),
        "cupy-cuda13x": ("14.0", 13),
        "tensorrt_rtx_cu13_libs": ("1.7.1", 13),
        "torch": ("2.9.0+cu128", 12),
        "nvidia-cublas": ("13.1.0.3", 13),
        "nvidia-ml-py": ("13.590", None),
        "numpy": ("2.4.6", None),
    }

    @dataclass
    class Package:
        name: str
        version: str

    packages = [Package(name, number) for name, (number, _) in named.items()]
    monkeypatch.setattr(cuda_packages, "distributions", lambda: packages)
    wanted = {n.replace("_", "-"): major for n, (_, major) in named.items() if major}
    assert cuda_packages.cuda_majors() == dict(sorted(wanted.items()))
    found = gpu_report(Driver(cuda=(12, 8), gpus=()), "")
    assert found["other CUDA"].startswith("nvidia-cudnn-cu12, torch: not for CUDA 13")
    assert "cupy-cuda13x" in found["too new for the driver"]
    assert found["too new for the driver"].endswith("this driver runs CUDA 12 at most")


def test_a_driver_that_is_too_old_is_what_every_backend_lacks(monkeypatch: pytest.MonkeyPatch):
    found = gpu_report(Driver(cuda=(12, 8), gpus=(ADA,)), "")
    assert found["GPU 0"] == "NVIDIA GeForce RTX 4090, compute capability 8.9, 24 GiB"
    assert "580" in found["to get a newer one"]
    for backend in ("cuda", "rtx", "tensorrt", "language on cuda"):
        assert found[backend].startswith("no: it needs a newer driver, for CUDA 13.0")


def test_with_a_driver_that_fits_the_libraries_are_asked():
    found = gpu_report(Driver(cuda=(13, 0), gpus=(ADA,)), "")
    assert found["rtx"].startswith("runs engines of TensorRT-RTX 1.")
    assert found["rtx"].endswith("scanside build BUNDLE --backend rtx makes them")
    found = gpu_report(Driver(cuda=(13, 0), gpus=(HOPPER,)), "")
    assert found["rtx"] == "no: TensorRT-RTX has no engines for sm_90; use cuda or tensorrt"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_bundles_memory_on_a_gpu_is_summed_and_held_against_the_card(cached: Path):
    bundle = Bundle.open("reference")
    plain = memory_report(bundle, None)
    assert list(plain) == ["cuda", "rtx", "tensorrt"]
    plan = plan_memory(bundle, stage_devices("cuda"))
    assert plain["cuda"] == plan.as_text()
    assert memory_report(bundle, ADA)["cuda"].endswith("; fits NVIDIA GeForce RTX 4090")
    small = memory_report(bundle, replace(ADA, memory_bytes=1 << 30))
    assert "; too much for NVIDIA GeForce RTX 4090: write localizer=cpu" in small["cuda"]
    assert small["rtx"].endswith("; fits NVIDIA GeForce RTX 4090")


def test_a_bundles_engines_are_judged_for_the_card(cached: Path):
    bundle = Bundle.open("reference")
    assert engine_report(bundle, ADA) == {
        "rtx": "none; scanside build reference --backend rtx makes them",
        "tensorrt": "none; scanside build reference --backend tensorrt makes them",
    }
    path = bundle.path("vae_decoder.onnx")
    lib = library("rtx")
    record, plan = build_rtx(lib, "vae_decoder", path, ("sm_89",))
    stored = user_shelf("rtx").store(record, plan)
    said = engine_report(bundle, ADA)
    assert said["rtx vae_decoder"] == f"valid ({stored.name})"
    assert "rtx unet" not in said
    reason = f"it was made for sm_89, and NVIDIA T4 is sm_75 ({stored.name})"
    assert engine_report(bundle, TURING)["rtx vae_decoder"] == f"invalid: {reason}"
    assert engine_report(bundle, HOPPER)["rtx vae_decoder"].startswith("not judged: TensorRT-RTX")
    made = f"for sm_89, by TensorRT-RTX {lib.version}"
    assert engine_report(bundle, None)["rtx vae_decoder"] == made
    stored.write_bytes(plan[:-1] + bytes([plan[-1] ^ 1]))
    assert "invalid: it was changed" in engine_report(bundle, ADA)["rtx vae_decoder"]


def test_doctor_shows_memory_and_engines_of_a_bundle(
    cached: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["doctor", "reference"]) == 0
    printed = capsys.readouterr().out
    assert "memory on a GPU" in printed
    assert "engines for GPUs" in printed
    assert "scanside build reference --backend rtx makes them" in printed


def shared_library(path: Path, *links: Path) -> Path:
    """An empty library of the file's own name, linked with others."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the native code needs a C compiler, and so does this test"
    words = [compiler, "-shared", "-nostdlib", "-x", "c", "/dev/null", "-x", "none"]
    words += [f"-Wl,--no-as-needed,-soname,{path.name}", *map(str, links), "-o", str(path)]
    subprocess.run(words, check=True)
    return path


def test_a_librarys_cuda_is_read_from_its_file(tmp_path: Path):
    for major in (12, 13):
        runtime = shared_library(tmp_path / f"libcudart.so.{major}")
        assert cuda_major_of(runtime) is None
        provider = shared_library(tmp_path / f"provider{major}.so", runtime)
        assert needed(provider) == [runtime.name]
        assert cuda_major_of(provider) == major
    text = tmp_path / "text.so"
    text.write_text("no library " * 20)
    with pytest.raises(ValueError, match="is no 64-bit ELF file"):
        needed(text)
    cut = tmp_path / "cut.so"
    cut.write_bytes(provider.read_bytes()[:60])
    with pytest.raises(ValueError, match="ends early"):
        needed(cut)
