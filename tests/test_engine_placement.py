"""Where every node runs is read back and held against what was asked for; the CPU engine keeps the
interface."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pytest

from scanside.runtime.bundle import REFERENCE, Bundle
from scanside.runtime.engines.buffer import Buffer
from scanside.runtime.engines.engine import DeviceEngine, Engine, check_contract, warm
from scanside.runtime.engines.onnx_cpu import OnnxEngine
from scanside.runtime.engines.onnx_cuda import check_buffers
from scanside.runtime.engines.placement import check_placement, node_placement
from scanside.runtime.errors import BundleError, DeviceError, InputError
from scanside.runtime.manifest import TensorSpec

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


@dataclass
class Node:
    op_type: str


@dataclass
class Part:
    """As ONNX Runtime's OrtEpAssignedSubgraph."""

    ep_name: str
    operators: tuple[str, ...]

    def get_nodes(self) -> list[Node]:
        return [Node(op) for op in self.operators]


@pytest.fixture(scope="module")
def vae() -> OnnxEngine:
    bundle = Bundle.open("reference")
    assert bundle.manifest.diffusion
    return OnnxEngine("vae_decoder", bundle.path(bundle.manifest.diffusion.vae_decoder), 1)


def test_nodes_are_counted_by_provider_and_operator() -> None:
    parts = [Part(CUDA, ("Conv", "Add")), Part(CUDA, ("Conv",)), Part(CPU, ("ArgMax",))]
    assert node_placement(parts) == {CUDA: {"Conv": 2, "Add": 1}, CPU: {"ArgMax": 1}}


def test_a_graph_that_is_whole_on_its_provider_passes() -> None:
    assert check_placement("unet", {CUDA: Counter({"Conv": 2, "Add": 1})}, CUDA) == 3


def test_a_node_elsewhere_is_refused_by_name() -> None:
    placed = {CUDA: Counter({"Conv": 2}), CPU: Counter({"ArgMax": 1, "Abs": 2})}
    with pytest.raises(DeviceError) as caught:
        check_placement("unet", placed, CUDA)
    assert "would run elsewhere (CPUExecutionProvider: Abs x 2, ArgMax x 1)" in str(caught.value)
    assert "'unet=cpu'" in str(caught.value)


@pytest.mark.parametrize("placed", [{}, {CUDA: Counter[str]()}])
def test_no_record_is_no_proof(placed: dict[str, Counter[str]]) -> None:
    with pytest.raises(DeviceError, match="does not say where it runs the unet graph"):
        check_placement("unet", placed, CUDA)


def test_onnxruntime_tells_of_every_node_what_the_check_reads() -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = REFERENCE / "vae_decoder.onnx"
    session = ort.InferenceSession(path, options, providers=[CPU])
    placed = node_placement(session.get_provider_graph_assignment_info())
    assert check_placement("vae_decoder", placed, CPU) > 50
    with pytest.raises(DeviceError, match="would run elsewhere"):
        check_placement("vae_decoder", placed, CUDA)


def test_the_cpu_engine_keeps_the_interface(vae: OnnxEngine) -> None:
    engine: Engine = vae
    assert not isinstance(engine, DeviceEngine)
    assert (engine.stage, engine.provider) == ("vae_decoder", CPU)
    assert engine.inputs == {"latent": TensorSpec(shape=(1, 4, 16, 16), dtype="float32")}
    check_contract(engine, engine.inputs, engine.outputs)
    warm(engine)
    latent = np.random.default_rng(0).standard_normal((1, 4, 16, 16))
    image = engine.run({"latent": latent})["image"]  # float64 goes in as the graph's own type
    assert image.shape == engine.outputs["image"].shape
    assert image.dtype == np.float32
    assert np.array_equal(image, engine.run({"latent": latent.astype(np.float32)})["image"])
    engine.close()
    engine.close()


def test_half_precision_stands_for_single_and_nothing_else_does(vae: OnnxEngine) -> None:
    halved = OnnxEngine.__new__(OnnxEngine)
    halved.stage = "vae_decoder"
    halved.inputs = {"latent": TensorSpec(shape=(1, 4, 16, 16), dtype="float16")}
    halved.outputs = vae.outputs
    check_contract(halved, vae.inputs, vae.outputs)
    with pytest.raises(BundleError, match=r"has the inputs latent \[1, 4, 16, 16\] float32"):
        check_contract(vae, halved.inputs, vae.outputs)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "place", "sentence"),
    [
        ("x", (2, 3), "float32", (2, 0), "the unet graph has no 'x'; it has sample"),
        ("sample", (3, 2), "float32", (2, 0), r"got a buffer of \[3, 2\] float32"),
        ("sample", (2, 3), "float16", (2, 0), r"is \[2, 3\] float32; got a buffer of \[2, 3\]"),
        ("sample", (2, 3), "float32", (1, 0), "must lie on GPU 0"),
        ("sample", (2, 3), "float32", (2, 1), "must lie on GPU 0"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(
    name: str, shape: tuple[int, ...], dtype: str, place: tuple[int, int], sentence: str
) -> None:
    specs = {"sample": TensorSpec(shape=(2, 3), dtype="float32")}
    buffer = Buffer(pointer=64, shape=shape, dtype=np.dtype(dtype), device=place)
    with pytest.raises(InputError, match=sentence):
        check_buffers("unet", specs, {name: buffer}, 0)
    fits = Buffer(pointer=64, shape=(2, 3), dtype=np.dtype("float32"), device=(2, 0))
    check_buffers("unet", specs, {"sample": fits}, 0)
