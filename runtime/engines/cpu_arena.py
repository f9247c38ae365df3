"""One arena for what all graphs of a process compute with on the CPU.

Graphs take turns, so the next one can use the memory of the last. With an arena each, as ONNX
Runtime has it by default, every graph keeps the most that it ever needed, rounded up to a power of
two; with none at all the kernel is asked for each large array anew, and a U-Net of full size is
slower. The arena stays with the process: what graphs needed at most is there for the next ones.
"""

from __future__ import annotations

import threading
from typing import Any

_SAME_AS_REQUESTED = 1
_lock = threading.Lock()
_registered = False


def use_shared_arena(ort: Any, options: Any) -> None:
    """Have a session that is opened with these options use the arena.

    Parameters
    ----------
    ort : module
        onnxruntime.
    options : SessionOptions
    """
    global _registered
    with _lock:
        if not _registered:
            place = ort.OrtMemoryInfo(
                "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
            )
            growth = ort.OrtArenaCfg({"arena_extend_strategy": _SAME_AS_REQUESTED})
            ort.create_and_register_allocator(place, growth)
            _registered = True
    options.add_session_config_entry("session.use_env_allocators", "1")
