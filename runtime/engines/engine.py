"""One compiled graph behind one small interface, whatever executes it.

A graph's own inputs and outputs are held against the bundle's contract when it is opened, so that
a run can only fail for lack of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..manifest import TensorSpec
from .buffer import Buffer
from .gpu import Gpu


class Engine(Protocol):
    """A compiled graph with static shapes."""

    stage: str
    provider: str
    """What executes it, as `placement` reports it."""
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    """As the graph itself has them: a graph in half precision may take and give float16."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name, from host memory to host memory.

        Feeds are converted to the graph's own types, and half precision comes out in single. It
        returns when the outputs are there.
        """
        ...

    def close(self) -> None:
        """Free what it holds; may be called twice."""
        ...


@runtime_checkable
class DeviceEngine(Protocol):
    """An `Engine` that works on device memory, on one stream, at addresses that stay.

    A graph on device pointers, with outputs that another engine reads where they lie:

        gpu = Gpu.open()
        encoder, vae = OnnxCudaEngine(..., gpu), OnnxCudaEngine(..., gpu)
        vae.bind({"latent": encoder.buffers["latent"]})
        encoder.launch()
        vae.launch()
        gpu.wait()

    Engines that share a `Gpu` share its stream, so what is launched later sees what was written
    before.
    """

    stage: str
    provider: str
    gpu: Gpu
    """Whose stream it enqueues on."""
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    buffers: dict[str, Buffer]
    """Where every input and output lies now. They are allocated when the engine is opened."""
    capturable: bool
    """Whether `launch` may stand inside a stream capture of the caller's. ONNX Runtime captures
    its own graph instead."""

    def bind(self, buffers: Mapping[str, Buffer]) -> None:
        """Put inputs and outputs, by name, elsewhere in device memory; before the first launch.

        Raises
        ------
        InputError
            A buffer of another shape, dtype or device, a name that the graph does not have, or an
            engine that was launched already.
        """
        ...

    def launch(self) -> None:
        """Enqueue one run on the stream; neither allocates nor waits once it has run before."""
        ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As `Engine.run`: upload, launch, download, wait."""
        ...

    def close(self) -> None:
        """Free what it holds; may be called twice."""
        ...


def check_contract(
    engine: Engine, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> None:
    """BundleError unless the graph takes and gives exactly these tensors.

    Half precision stands for single: what is float32 in the contract may be float16 in the graph.
    """
    for kind, found, wanted in (
        ("input", engine.inputs, inputs),
        ("output", engine.outputs, outputs),
    ):
        if found.keys() != wanted.keys() or not all(_fits(found[n], wanted[n]) for n in wanted):
            raise BundleError(
                f"the {engine.stage} graph has the {kind}s {_listed(found)}, but the bundle needs "
                f"{_listed(wanted)}; export the bundle again"
            )


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    same = found.dtype == wanted.dtype
    halved = (found.dtype, wanted.dtype) == ("float16", "float32")
    return found.shape == wanted.shape and (same or halved)


def warm(engine: Engine) -> None:
    """Run once on zeros, so that the first real run finds memory allocated and kernels chosen."""
    engine.run({name: np.zeros(s.shape, s.dtype) for name, s in engine.inputs.items()})


def _listed(tensors: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{name} {list(t.shape)} {t.dtype}" for name, t in tensors.items())
