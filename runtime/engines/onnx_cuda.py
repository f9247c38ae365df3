"""ONNX Runtime on a GPU: bound to device pointers, on our stream, launched as one CUDA graph.

    gpu = Gpu.open()
    engine = OnnxCudaEngine("encoder", path, gpu)
    gpu.upload(tokens, engine.buffers["tokens"])
    engine.launch()
    gpu.download(engine.buffers["clip"], clip)
    gpu.wait()

No node may run on the CPU: the session refuses it, and where each node went is read back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, DeviceError, InputError
from ..manifest import TensorSpec
from .buffer import Buffer
from .capture import Captured
from .gpu import Gpu
from .onnx_cpu import contract_of, first_line, onnxruntime, single
from .onnx_cuda_session import PROVIDER, Graph, load_cuda, open_session, told
from .placement import check_placement, node_placement

HALF_OPTIONS = {"prefer_nhwc": "1"}
"""For graphs in half precision: with channels innermost the full-size U-Net takes 8.2 ms instead of
10.8 on an H200 (`benchmarks/gpu_variants.py`). In float32 this was not compared."""


class OnnxCudaEngine:
    """A graph in ONNX Runtime's CUDA execution provider, and nowhere else.

    Its first launch runs it twice, so that memory is allocated and kernels are chosen, then
    captures it; from then on the addresses of its buffers are fixed and `launch` neither allocates
    nor waits. Use it from one thread at a time.

    Parameters
    ----------
    stage : str
        Name in messages and in `placement`.
    path : Path
        The .onnx file.
    gpu : Gpu
        Its stream is the one that everything is enqueued on. Close the engine before it.
    graph : {"own", "ort", "off"}
        With "own" `launch` never waits. ONNX Runtime's own capture (enable_cuda_graph) may wait for
        each run, and captures anew for every thread. Where the graph cannot be captured, runs are
        enqueued kernel by kernel; `captured` and `why_not_captured` tell.
    options : mapping, optional
        Further options of the provider, over the defaults: prefer_nhwc, cudnn_conv_algo_search,
        use_tf32, gpu_mem_limit and others.

    Raises
    ------
    MissingExtraError
        ONNX Runtime is not installed, or has no CUDA.
    DeviceError
        CUDA's libraries do not load, or a node has no kernel there.
    BundleError
        The file is no graph that this ONNX Runtime loads, or its sizes vary.
    """

    provider = PROVIDER
    capturable = False

    def __init__(
        self,
        stage: str,
        path: Path,
        gpu: Gpu,
        *,
        graph: Graph = "own",
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.stage = stage
        self.gpu = gpu
        self.captured = False
        """Whether a run is one CUDA graph; known after the first launch."""
        self.why_not_captured = ""
        self._graph: Graph = graph
        self._own: Captured | None = None
        self._launched = False
        ort = onnxruntime()
        load_cuda(ort)
        self._session: Any = open_session(ort, stage, path, gpu, graph, options or {})
        self.nodes: dict[str, Counter[str]] = node_placement(
            self._session.get_provider_graph_assignment_info()
        )
        """Operators by execution provider, as ONNX Runtime assigned them."""
        check_placement(stage, self.nodes, self.provider)
        self.inputs, self.outputs = contract_of(self._session)
        _check_static(path, self.inputs | self.outputs)
        self._binding: Any = self._session.io_binding()
        self._run_options: Any = ort.RunOptions()
        # else ONNX Runtime waits for the stream at the end of every run
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.buffers: dict[str, Buffer] = {}
        self.bind({n: gpu.allocate(s.shape, s.dtype) for n, s in self._tensors().items()})

    def _tensors(self) -> dict[str, TensorSpec]:
        return self.inputs | self.outputs

    def bind(self, buffers: Mapping[str, Buffer]) -> None:
        """Put inputs and outputs elsewhere in device memory; before the first launch."""
        check_buffers(self.stage, self._tensors(), buffers, self.gpu.number)
        if self._launched:
            raise InputError(f"the {self.stage} engine was launched already; its addresses stay")
        for name, buffer in buffers.items():
            bound = self._binding.bind_input if name in self.inputs else self._binding.bind_output
            place = ("cuda", self.gpu.number, buffer.dtype.type, list(buffer.shape))
            bound(name, *place, buffer.pointer)
            self.buffers[name] = buffer

    def launch(self) -> None:
        """Enqueue one run on the stream."""
        if not self._launched:
            self._first_launch()
        if self._own:
            self._own.launch()
        else:
            self._enqueue()

    def _first_launch(self) -> None:
        self._launched = True
        for _ in range(2):  # the second finds what the first has allocated and chosen
            self._enqueue()
        self.gpu.wait()
        if self._graph == "own":
            try:
                self._own = Captured(self.gpu, self._enqueue)
            except DeviceError as exc:
                self.why_not_captured = first_line(exc)
        self.captured = self._own is not None or self._graph == "ort"

    def _enqueue(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as exc:  # onnxruntime's errors share no base of their own
            said = first_line(exc)
            raise told(self.stage, self.gpu, said) or DeviceError(
                f"{self.stage} failed on the GPU: {said}"
            ) from exc

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name, from host memory to host memory."""
        return run_from_host(self, self.gpu, feeds)

    def close(self) -> None:
        """Free the graph and the session; its buffers belong to the Gpu. May be called twice."""
        if self._own:
            self._own.close()
            self._own = None
        self._binding = None
        self._session = None
        self._launched = True


def run_from_host(
    engine: Any, gpu: Gpu, feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """What `run` of every engine on a GPU does: upload, launch, download, wait.

    Raises
    ------
    InputError
        Inputs that are missing, or too many.
    """
    if feeds.keys() != engine.inputs.keys():
        raise InputError(
            f"the {engine.stage} graph takes {', '.join(engine.inputs)}; got {', '.join(feeds)}"
        )
    for name, values in feeds.items():
        gpu.upload(values, engine.buffers[name])
    engine.launch()
    found = {name: np.empty(spec.shape, spec.dtype) for name, spec in engine.outputs.items()}
    for name, values in found.items():
        gpu.download(engine.buffers[name], values)
    gpu.wait()
    return {name: single(values) for name, values in found.items()}


def check_buffers(
    stage: str, tensors: Mapping[str, TensorSpec], buffers: Mapping[str, Buffer], number: int
) -> None:
    """InputError unless every buffer fits the input or output of its name, on that GPU."""
    for name, buffer in buffers.items():
        spec = tensors.get(name)
        if spec is None:
            raise InputError(f"the {stage} graph has no {name!r}; it has {', '.join(tensors)}")
        if (buffer.shape, buffer.dtype) != (spec.shape, np.dtype(spec.dtype)):
            raise InputError(
                f"{name!r} of the {stage} graph is {list(spec.shape)} {spec.dtype}; got a buffer "
                f"of {list(buffer.shape)} {buffer.dtype}"
            )
        if not buffer.on_gpu or buffer.device[1] != number:
            raise InputError(f"{name!r} of the {stage} graph must lie on GPU {number}")


def _check_static(path: Path, tensors: Mapping[str, TensorSpec]) -> None:
    for name, spec in tensors.items():
        if any(size < 1 for size in spec.shape):
            raise BundleError(
                f"{path}: {name!r} has sizes that vary, {list(spec.shape)}; export the bundle again"
            )
