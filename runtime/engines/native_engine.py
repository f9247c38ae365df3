"""An engine of TensorRT or TensorRT-RTX on device memory, through the library's own bindings.

What is enqueued are the library's kernels and nothing else, so a run may stand inside a stream
capture: a whole chain of engines becomes one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from ..errors import BundleError, DeviceError, InputError
from ..manifest import TensorSpec
from .buffer import Buffer
from .fingerprint import BACKENDS
from .gpu import Gpu
from .onnx_cuda import check_buffers, run_from_host
from .scratch import Scratch
from .tensorrt_library import Library, Log

_TYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool", "UINT8": "uint8",
}  # fmt: skip


class NativeEngine:
    """A plan, deserialised and ready. Use it from one thread at a time.

    Parameters
    ----------
    stage : str
        Name in messages and in `placement`.
    plan : bytes
        Held against its record before: a plan can run code.
    library : Library
    gpu : Gpu
        Its stream is the one that everything is enqueued on. Close the engine before it.
    make_context : callable, optional
        Makes the execution context from the engine; by default with memory from `scratch`.
    scratch : Scratch, optional
        Memory for intermediate tensors that engines on one stream share. By default the context
        allocates its own.
    judge : callable, optional
        Asked about the plan with the runtime before it is loaded; gives the reason for a no.

    Raises
    ------
    DeviceError
        The library refuses the plan; the message quotes it.
    BundleError
        Inputs or outputs whose sizes vary, or whose type is not known.
    """

    capturable = True

    def __init__(
        self,
        stage: str,
        plan: bytes,
        library: Library,
        gpu: Gpu,
        *,
        make_context: Callable[[Any, bool], Any] | None = None,
        scratch: Scratch | None = None,
        judge: Callable[[Any, bytes], str] | None = None,
    ) -> None:
        self.stage = stage
        self.provider = BACKENDS[library.backend]
        self.gpu = gpu
        self._library = library
        self._log: Log = library.log()
        self._launched = False
        with gpu.current():
            runtime = self._made(library.api.Runtime, self._log.sink)
            if judge and (reason := judge(runtime, plan)):
                raise DeviceError(
                    f"{library.name} refuses the engine of the {stage}: {reason}; run scanside "
                    f"build BUNDLE --backend {library.backend}"
                )
            engine = self._made(runtime.deserialize_cuda_engine, plan)
            make = make_context or self._plain_context
            context = self._made(make, engine, scratch is not None)
        # the order of destruction: context, engine, runtime
        self._held: list[Any] = [context, engine, runtime]
        self._context: Any = context
        self.activation_bytes = int(engine.device_memory_size_v2)
        if scratch is not None:
            scratch.lend(self.activation_bytes, self._use_scratch)
        self.inputs, self.outputs = self._contract(engine)
        self.buffers: dict[str, Buffer] = {}
        self.bind({n: gpu.allocate(s.shape, s.dtype) for n, s in self._tensors().items()})

    def _made(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call makes; the library's own words where it makes nothing."""
        try:
            made = call(*arguments)
        except (TypeError, RuntimeError) as exc:
            # bindings raise TypeError where the library's factory gives a null pointer
            raise self._refused(str(exc)) from exc
        if made is None:
            raise self._refused("")
        return made

    def _refused(self, also: str) -> DeviceError:
        said = self._log.said() if self._log.messages or not also else also
        return DeviceError(
            f"{self._library.name} cannot load the engine of the {self.stage}: {said}; run "
            f"scanside build BUNDLE --backend {self._library.backend}"
        )

    def _plain_context(self, engine: Any, shared: bool) -> Any:
        kinds = self._library.api.ExecutionContextAllocationStrategy
        return engine.create_execution_context(kinds.USER_MANAGED if shared else kinds.STATIC)

    def _use_scratch(self, memory: Buffer) -> None:
        self._context.set_device_memory(memory.pointer, memory.nbytes)

    def _contract(self, engine: Any) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        inputs: dict[str, TensorSpec] = {}
        outputs: dict[str, TensorSpec] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            shape = tuple(int(size) for size in engine.get_tensor_shape(name))
            if kind not in _TYPES or any(size < 1 for size in shape):
                raise BundleError(
                    f"{name!r} of the {self.stage} engine is {list(shape)} {kind}, and only "
                    f"fixed sizes of {', '.join(_TYPES)} are served; build it again"
                )
            is_input = engine.get_tensor_mode(name).name == "INPUT"
            found = inputs if is_input else outputs
            found[name] = TensorSpec(shape=shape, dtype=_TYPES[kind])
        return inputs, outputs

    def _tensors(self) -> dict[str, TensorSpec]:
        return self.inputs | self.outputs

    def bind(self, buffers: Mapping[str, Buffer]) -> None:
        """Put inputs and outputs elsewhere in device memory; before the first launch."""
        check_buffers(self.stage, self._tensors(), buffers, self.gpu.number)
        if self._launched:
            raise InputError(f"the {self.stage} engine was launched already; its addresses stay")
        for name, buffer in buffers.items():
            if not self._context.set_tensor_address(name, buffer.pointer):
                raise DeviceError(
                    f"{self._library.name} does not take the address of {name!r} of the "
                    f"{self.stage} engine: {self._log.said()}"
                )
            self.buffers[name] = buffer

    def launch(self) -> None:
        """Enqueue one run on the stream; it neither allocates nor waits."""
        self._launched = True
        with self.gpu.current():
            enqueued = self._context.execute_async_v3(self.gpu.stream)
        if not enqueued:
            raise DeviceError(f"{self.stage} failed on the GPU: {self._log.said()}")

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name, from host memory to host memory."""
        return run_from_host(self, self.gpu, feeds)

    def close(self) -> None:
        """Free context, engine and runtime; its buffers belong to the Gpu. May be called twice."""
        self._context = None
        with self.gpu.current():
            while self._held:
                self._held.pop(0)
        self._launched = True
