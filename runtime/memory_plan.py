"""What a bundle takes of a GPU's memory, summed before anything is loaded.

Everything is loaded in `open` and stays: a stage that came and went would miss its deadline. So all
that was sent to the GPU has to fit together, and what does not fit is refused with the sum.

Weights are counted exactly. Intermediate tensors are counted from the graph, each freed after its
last use; engines of TensorRT and TensorRT-RTX share one buffer, as large as the largest needs. What
libraries take for themselves is allowed for by the constants below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .bundle import Bundle
from .engines.graph_file import GraphFile
from .errors import DeviceError, InputError
from .gguf_header import read_gguf_header
from .graphs import graphs_of

GIB = 1 << 30
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": GIB}
CONTEXT_BYTES = 512 << 20
"""Allowance for a CUDA context with the code of the libraries in it."""
WORKSPACE_BYTES = {"cuda": 64 << 20, "rtx": 16 << 20, "tensorrt": 32 << 20}
"""Allowance for what a library takes beside a graph's own tensors."""
_SHARED = ("rtx", "tensorrt")
_MICRO_BATCH = 512
"""Tokens that llama.cpp works on at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing that lies in the GPU's memory for as long as the decoder is open."""

    stage: str
    weights_bytes: int
    working_bytes: int
    """Intermediate tensors, inputs and outputs, keys and values."""

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.weights_bytes + self.working_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """All parts that go to the GPU, the largest first."""

    parts: tuple[Part, ...]

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return sum(part.total_bytes for part in self.parts)

    @property
    def shared_bytes(self) -> int:
        """Of the buffer that engines of TensorRT share."""
        return sum(part.total_bytes for part in self.parts if part.stage == _SHARED_BUFFER)

    def as_text(self) -> str:
        """The sum in one line."""
        parts = ", ".join(f"{part.stage} {_size(part.total_bytes)}" for part in self.parts)
        return f"{_size(self.total_bytes)} ({parts})"

    def check(self, limit_bytes: int, what: str) -> None:
        """Refuse what does not fit.

        Parameters
        ----------
        limit_bytes : int
        what : str
            What sets the limit, for the message: "'vram'", or the name of a GPU.

        Raises
        ------
        DeviceError
            The sum is larger; the message holds it, and what could go to the CPU instead.
        """
        if cure := self.cure(limit_bytes):
            raise DeviceError(
                f"{what} allows {_size(limit_bytes)}, and what goes to the GPU needs "
                f"{self.as_text()}; {cure}"
            )

    def cure(self, limit_bytes: int) -> str:
        """What to do where it does not fit: the fewest stages that have to go to the CPU; nothing
        where it fits."""
        left, moved = self.total_bytes, list[str]()
        if left <= limit_bytes:
            return ""
        for part in self.parts:
            if left <= limit_bytes:
                break
            if part.stage in _FIXED:
                continue
            left -= part.total_bytes
            moved.append(f"{part.stage}=cpu")
        if left > limit_bytes:
            return "nothing of it would run on this GPU; use device='cpu'"
        return f"write {','.join(moved)} into the device, or allow {_size(self.total_bytes)}"


_SHARED_BUFFER = "shared buffer"
_FIXED = ("CUDA", _SHARED_BUFFER)


def parse_size(text: str) -> int:
    """Bytes of "8G", "8 GiB", "6500M" or a plain number; K, M and G are powers of 1024.

    Raises
    ------
    InputError
        No size, or none above zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise InputError(f"'vram' must be a size such as 8G or 6500M; got {text!r}")
    return size


def plan_memory(bundle: Bundle, devices: Mapping[str, str]) -> MemoryPlan:
    """What would lie in the GPU's memory.

    Parameters
    ----------
    bundle : Bundle
    devices : mapping
        Device of each stage, from `stage_devices`.

    Returns
    -------
    plan : MemoryPlan
        Empty if every stage is on the CPU.

    Raises
    ------
    BundleError
        A file that cannot be read.
    """
    parts: dict[str, Part] = {}
    shared = 0
    for stage, file in graphs_of(bundle.manifest):
        device = devices[stage]
        if device == "cpu":
            continue
        graph = GraphFile.read(bundle.path(file))
        working = graph.activation_bytes + WORKSPACE_BYTES[device]
        if device in _SHARED:
            shared, working = max(shared, working), 0
        before = parts.get(stage)
        parts[stage] = Part(
            stage=stage,
            weights_bytes=graph.weights_bytes + (before.weights_bytes if before else 0),
            working_bytes=graph.edges_bytes + working + (before.working_bytes if before else 0),
        )
    text = bundle.manifest.language
    if text and devices["language"] != "cpu":
        parts["language"] = _language(bundle.path(text.file), text.context)
    if shared:
        parts[_SHARED_BUFFER] = Part(stage=_SHARED_BUFFER, weights_bytes=0, working_bytes=shared)
    if any(device != "cpu" for device in devices.values()):
        parts["CUDA"] = Part(stage="CUDA", weights_bytes=0, working_bytes=CONTEXT_BYTES)
    largest_first = sorted(parts.values(), key=lambda part: -part.total_bytes)
    return MemoryPlan(parts=tuple(largest_first))


def _language(path: Path, context: int) -> Part:
    """A language model with the keys and values of `context` tokens in half precision."""
    header = read_gguf_header(path)
    family = header.get("general.architecture", "llama")

    def size(key: str, default: int = 0) -> int:
        return int(header.get(f"{family}.{key}", default))

    width, heads = size("embedding_length"), max(size("attention.head_count"), 1)
    key_width = size("attention.key_length", width // heads)
    cells = context * size("attention.head_count_kv", heads) * key_width
    keys_and_values = 2 * size("block_count") * cells * 2
    at_work = min(context, _MICRO_BATCH) * (3 * size("feed_forward_length") + 6 * width) * 4
    return Part(
        stage="language",
        weights_bytes=path.stat().st_size,
        working_bytes=keys_and_values + at_work,
    )


def _size(size_bytes: int) -> str:
    return (
        f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / (1 << 20):.0f} MiB"
    )
