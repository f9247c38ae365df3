"""What a decoder cannot be opened with is refused in `open`, with the cause and the cure.

Where a driver has to be there it is the stand-in, `stand_in_driver.c`, in a process of its own;
TensorRT-RTX is the real one, and builds what is then refused. Of ONNX Runtime's CUDA provider only
the errors can be had here, in its own words.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import onnxruntime
import pytest

from scanside.runtime import Decoder, llama, opened_graphs
from scanside.runtime.bundle import Bundle
from scanside.runtime.engines import onnx_cuda_session, tensorrt, tensorrt_builder
from scanside.runtime.engines.driver import Driver
from scanside.runtime.engines.engine_cache import user_shelf
from scanside.runtime.engines.engine_record import Record
from scanside.runtime.engines.gpu import Gpu
from scanside.runtime.engines.onnx_cuda_session import load_cuda, open_session
from scanside.runtime.engines.rtx_builder import build_rtx
from scanside.runtime.engines.tensorrt_builder import tensorrt_fingerprint
from scanside.runtime.engines.tensorrt_library import Library, library
from scanside.runtime.errors import BundleError, DeviceError
from scanside.tests.cards import ADA

SOURCE = Path(__file__).with_name("stand_in_driver.c")
OPENED = """
import sys
from scanside.runtime import Decoder
from scanside.runtime.errors import DeviceError
try:
    Decoder.open("reference", device=sys.argv[1], warm=False)
except DeviceError as exc:
    print(exc)
"""
VAE = "cpu,vae_decoder=rtx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-in lies."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the native code needs a C compiler, and so does this test"
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-std=gnu11", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", SOURCE]
    subprocess.run([*command, "-lm"], check=True)
    return folder


@pytest.fixture
def refused(folder: Path, tmp_path: Path) -> Callable[..., str]:
    """The sentence with which a process refuses to open the reference bundle on a device."""

    def refused(device: str, **settings: str) -> str:
        wanted = {"LD_LIBRARY_PATH": str(folder), "STAND_IN_CAPABILITY": "89"}
        wanted |= {"XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-P", "-W", "error", "-c", OPENED, device],
            env=os.environ | wanted | settings,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (sentence,) = done.stdout.splitlines()
        return sentence

    return refused


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine of the reference VAE for sm_86 in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = Bundle.open("reference").path("vae_decoder.onnx")
    record, plan = build_rtx(library("rtx"), "vae_decoder", path, ("sm_86",))
    return user_shelf("rtx").store(record, plan)


@pytest.mark.parametrize("device", ["cuda", "rtx", "tensorrt", "cpu,language=cuda"])
def test_a_driver_that_is_too_old(refused: Callable[..., str], device: str) -> None:
    name = device.rpartition("=")[2]
    assert refused(device, STAND_IN_CUDA="12080") == (
        f"device {name!r} needs a driver for CUDA 13.0, and this one is for CUDA 12.8; install "
        "NVIDIA driver 580 or newer, or use device='cpu'"
    )


@pytest.mark.skipif(
    Path("/dev/nvidiactl").exists(), reason="this machine has a driver, so nothing is refused"
)
@pytest.mark.parametrize("device", ["rtx", "tensorrt", "cpu,unet=tensorrt", "cpu,language=rtx"])
def test_no_driver_whatever_the_library(device: str) -> None:
    with pytest.raises(DeviceError, match="but no NVIDIA driver was found") as told:
        Decoder.open("reference", device=device)
    assert "use device='cpu'" in str(told.value)


def test_a_gpu_that_the_library_has_nothing_for(refused: Callable[..., str]) -> None:
    assert refused(VAE, STAND_IN_CAPABILITY="90") == (
        "TensorRT-RTX runs on Turing, Ampere, Ada Lovelace and Blackwell cards, and stand-in is "
        "sm_90; use device='cuda' or 'tensorrt'"
    )


def test_no_engine(refused: Callable[..., str]) -> None:
    assert refused(VAE) == (
        "there is no TensorRT-RTX engine of the vae_decoder for stand-in (sm_89); run scanside "
        "build reference --backend rtx"
    )


def test_an_engine_of_another_gpu(refused: Callable[..., str], built: Path) -> None:
    said = refused(VAE)
    assert f"({built.name}: it was made for sm_86, and stand-in is sm_89)" in said
    assert said.endswith("; run scanside build reference --backend rtx")


def test_an_engine_with_a_changed_byte(refused: Callable[..., str], built: Path) -> None:
    content = bytearray(built.read_bytes())
    content[len(content) // 2] ^= 1
    built.write_bytes(bytes(content))
    said = refused(VAE, STAND_IN_CAPABILITY="86")
    assert f"({built.name}: it was changed: its SHA-256 is " in said
    assert said.endswith("; run scanside build reference --backend rtx")


def test_an_engine_of_the_other_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = Bundle.open("reference")
    path = bundle.path("vae_decoder.onnx")
    # both with a builder, as the full libraries have
    api = ModuleType("tensorrt_bindings")
    api.Builder = object  # pyright: ignore[reportAttributeAccessIssue]
    ten, eleven = (
        Library(backend="tensorrt", api=api, version=version, cuda_major=13)
        for version in ("10.13.3.9", "11.4.0.106")
    )
    monkeypatch.setattr(tensorrt_builder, "driver_version", lambda: "580.65.06")
    monkeypatch.setattr(tensorrt, "probe", lambda: Driver(cuda=(13, 0), gpus=(ADA,)))
    plan = b"an engine's bytes"
    record = Record(
        stage="vae_decoder",
        fingerprint=tensorrt_fingerprint(eleven, path, ADA, ("strongly-typed",)),
        sha256=hashlib.sha256(plan).hexdigest(),
        size_bytes=len(plan),
    )
    user_shelf("tensorrt").store(record, plan)
    monkeypatch.setattr(tensorrt, "library", lambda _: ten)
    gpu = cast(Gpu, type("AGpu", (), {"card": ADA}))
    with pytest.raises(DeviceError) as told:
        tensorrt.open_tensorrt(bundle, "vae_decoder", path, gpu)
    assert "it was made by TensorRT 11.4.0.106, and 10.13.3.9 is here" in str(told.value)
    assert str(told.value).endswith("run scanside build reference --backend tensorrt")


def test_a_card_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(ADA, name="a small card", memory_bytes=700 << 20)
    monkeypatch.setattr(opened_graphs, "need_gpu", lambda device: small)
    with pytest.raises(DeviceError, match=r"^a small card allows 700 MiB, and what goes to the"):
        Decoder.open("reference", device="cuda")


def test_a_card_that_others_have_filled(refused: Callable[..., str]) -> None:
    said = refused("cpu,unet=cuda", STAND_IN_FREE="40")
    assert said.startswith("stand-in, beside what others have on it, allows 552 MiB, and what goes")
    assert said.endswith("; write unet=cpu into the device, or allow 586 MiB")


def test_memory_that_is_gone_meanwhile(refused: Callable[..., str]) -> None:
    said = refused(VAE, STAND_IN_FAILS="cuMemAlloc")
    assert said.startswith("stand-in has no room for ")
    assert "out of memory" in said
    assert "nvidia-smi" in said


@pytest.mark.parametrize("device", ["cpu,language=cuda", "cpu,language=rtx"])
def test_a_llama_cpp_without_a_gpu(refused: Callable[..., str], device: str) -> None:
    name = device.rpartition("=")[2]
    said = refused(device)
    assert said.startswith(
        f"device {name!r} was asked for language, but this llama.cpp is built without a GPU; write "
        f"'{name},language=cpu', or run CMAKE_ARGS=-DGGML_CUDA=on pip install"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"load_tensors: offloaded 3/5 layers to GPU\n", "put 3 of 5 layers on the GPU"),
        (b"load_tensors: nothing of the kind\n", "put nothing that it tells of on the GPU"),
        (b"load_tensors: offloaded 5/5 layers to GPU\n", ""),
    ],
)
def test_layers_of_the_language_model_that_stay_off_the_gpu(line: bytes, sentence: str) -> None:
    """llama.cpp's own line is believed, not what was asked of it."""
    bundle = Bundle.open("reference")
    assert bundle.manifest.language
    model = llama.LlamaModel(bundle.path(bundle.manifest.language.file))
    llama._offloaded.clear()
    llama._kept[0](2, line, None)  # as llama.cpp calls it, at the level of information
    if not sentence:
        model._check_offload()
        model.close()
        return
    with pytest.raises(DeviceError, match=sentence) as told:
        model._check_offload()
    assert "'language=cpu'" in str(told.value)


@dataclass(frozen=True)
class Ort:
    """ONNX Runtime whose CUDA provider says what the real one was seen to say."""

    says: str
    left: tuple[str, ...] = ()
    __version__ = "1.31.1"

    def SessionOptions(self) -> Any:
        return onnxruntime.SessionOptions()

    def set_default_logger_severity(self, severity: int) -> None:
        onnxruntime.set_default_logger_severity(severity)

    def InferenceSession(self, path: Path, settings: Any, **_: Any) -> Any:
        key = "session.disable_cpu_ep_fallback"
        try:
            settings.get_session_config_entry(key)
        except Exception:
            return self  # the second look, that may put nodes on the CPU
        raise RuntimeError(self.says)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        node = type("Node", (), {})
        nodes = []
        for kind in self.left:
            nodes.append(node())
            nodes[-1].op_type = kind
        part = type("Part", (), {"ep_name": "CPUExecutionProvider", "get_nodes": lambda _: nodes})
        return [part()]


def opened(ort: Ort) -> Any:
    gpu = type("AGpu", (), {"card": ADA, "number": 0, "stream": 0})
    return open_session(ort, "unet", Path("unet.onnx"), cast(Gpu, gpu), "own", {})


def test_an_operator_that_onnx_runtime_would_leave_to_the_cpu_is_named() -> None:
    said = (
        "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to "
        "the default CPU EP, but fallback to CPU EP has been explicitly disabled by the user."
    )
    with pytest.raises(DeviceError) as told:
        opened(Ort(said, ("ArgMax", "Telepathy", "ArgMax")))
    assert str(told.value) == (
        "the unet graph has nodes that onnxruntime 1.31.1 would run on the CPU (ArgMax x 2, "
        "Telepathy x 1); export the bundle again, or write unet=cpu into the device"
    )


@pytest.mark.parametrize(
    ("said", "kind", "sentence"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; hostname=a ;",
            DeviceError,
            "NVIDIA GeForce RTX 4090 has too little free memory for the unet (CUDA failure 2: out "
            "of memory); close what else uses it",
        ),
        (
            "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 99",
            DeviceError,
            "too little free memory for the unet",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 35: CUDA driver version is insufficient "
            "for CUDA runtime version ; GPU=0 ;",
            DeviceError,
            "unet failed on the GPU: CUDA failure 35: CUDA driver version is insufficient for CUDA "
            "runtime version; run scanside doctor",
        ),
        (
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Soul",
            BundleError,
            "onnxruntime 1.31.1 cannot load it",
        ),
    ],
)
def test_what_the_cuda_provider_says_becomes_a_sentence(
    said: str, kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as told:
        opened(Ort(said))
    assert sentence in str(told.value)


class CudaOrt:
    """ONNX Runtime with the CUDA provider, whose libraries load or not."""

    __version__ = "1.31.1"

    def __init__(self, printed: str = "") -> None:
        self.printed = printed

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        print(self.printed)


def test_an_onnx_runtime_for_another_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_cuda_session, "library_majors", lambda: {"onnxruntime": 12})
    with pytest.raises(DeviceError) as told:
        load_cuda(CudaOrt())
    assert str(told.value) == (
        "onnxruntime 1.31.1 is built for CUDA 12, and scanside's libraries are for CUDA 13; run "
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'scanside[gpu]'"
    )


def test_libraries_of_cuda_that_do_not_load() -> None:
    load_cuda(CudaOrt("libcublas.so.13 loaded"))
    lacking = "Failed to load libcublasLt.so.13: cannot open shared object file"
    with pytest.raises(DeviceError, match="not all load") as told:
        load_cuda(CudaOrt(lacking))
    assert lacking in str(told.value)
    assert str(told.value).endswith("run pip install 'onnxruntime-gpu[cuda,cudnn]'")
