"""What a library enqueues on a stream, kept as one CUDA graph and launched again.

ONNX Runtime and TensorRT enqueue hundreds of kernels for a run; a graph launches them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...kernels.cuda_driver import call, driver
from ..errors import DeviceError
from .gpu import Gpu


class Captured:
    """A graph of what `work` enqueued; every address in it stays what it was.

    Parameters
    ----------
    gpu : Gpu
    work : callable
        Enqueues on the stream of `gpu` and neither waits nor allocates.

    Raises
    ------
    DeviceError
        The work cannot be captured; the message says what the driver or the library said.
    """

    def __init__(self, gpu: Gpu, work: Callable[[], None]) -> None:
        self._gpu = gpu
        self._executable: Any = None
        gpu.wait()
        graph = self._record(work)
        try:
            with gpu.current():
                self.nodes = _without_releases(graph)
                """How many pieces of work the graph launches."""
                self._executable = call("cuGraphInstantiate", graph, 0)
                call("cuGraphUpload", self._executable, gpu.stream)
        finally:
            gpu._in_context("cuGraphDestroy", graph)  # pyright: ignore[reportPrivateUsage]

    def _record(self, work: Callable[[], None]) -> Any:
        modes = driver().CUstreamCaptureMode
        with self._gpu.current():
            # relaxed: other threads, such as the language model's, may allocate meanwhile
            call("cuStreamBeginCapture", self._gpu.stream, modes.CU_STREAM_CAPTURE_MODE_RELAXED)
            failed: Exception | None = None
            graph: Any = None
            try:
                work()
            except Exception as exc:  # of any library; the capture has to be ended in any case
                failed = exc
            try:
                graph = call("cuStreamEndCapture", self._gpu.stream)
            except RuntimeError as exc:
                failed = failed or exc
            if failed:
                raise DeviceError(f"the work cannot be captured: {failed}") from failed
            return graph

    def launch(self) -> None:
        """Enqueue all of it."""
        with self._gpu.current():
            call("cuGraphLaunch", self._executable, self._gpu.stream)

    def close(self) -> None:
        """Free the graph; may be called twice."""
        if self._executable is not None:
            with self._gpu.current():
                call("cuGraphExecDestroy", self._executable)
            self._executable = None


class Replayed:
    """Work that is enqueued as it is the first time, and as one CUDA graph from the second on.

    The first run lets libraries allocate and choose kernels. Where the work cannot be captured it
    is enqueued as it is for ever, and `why_not` says why.

    Parameters
    ----------
    gpu : Gpu
    work : callable
        Enqueues the same on the stream of `gpu` every time, and does not wait.
    """

    def __init__(self, gpu: Gpu, work: Callable[[], None]) -> None:
        self._gpu = gpu
        self._work = work
        self._ran = False
        self._captured: Captured | None = None
        self.why_not = ""

    def launch(self) -> None:
        """Enqueue it."""
        if self._ran and not self._captured and not self.why_not:
            try:
                self._captured = Captured(self._gpu, self._work)
            except DeviceError as exc:
                self.why_not = str(exc)
        if self._captured:
            self._captured.launch()
        else:
            self._work()
            self._ran = True

    def close(self) -> None:
        """Free the graph; may be called twice."""
        if self._captured:
            self._captured.close()
            self._captured = None


def _without_releases(graph: Any) -> int:
    """Take out calls of the host at the graph's end, and count what is left.

    ONNX Runtime ends a run with a call that frees the staging memory of its small host-to-device
    copies. Launched twice it would free twice, and the copies need that memory at every launch.
    """
    types = driver().CUgraphNodeType
    _, count = call("cuGraphGetNodes", graph, 0)
    if not count:
        raise DeviceError("the work cannot be captured: it enqueued nothing on this stream")
    nodes, count = call("cuGraphGetNodes", graph, count)
    for node in list(nodes):
        if call("cuGraphNodeGetType", node) != types.CU_GRAPH_NODE_TYPE_HOST:
            continue
        *_, dependents = call("cuGraphNodeGetDependentNodes", node, 0)
        if dependents:
            raise DeviceError("the work cannot be captured: it calls the host in between")
        call("cuGraphDestroyNode", node)
        count -= 1
    return int(count)
