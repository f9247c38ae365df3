"""The four networks of the picture chain: through the project's engine, and in PyTorch."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu_measure import distance, gpu_seconds, judged, repeated, seeded, summary
from numpy.typing import NDArray

from scanside.runtime.engines.gpu import Gpu
from scanside.runtime.engines.onnx_cpu import OnnxEngine
from scanside.runtime.engines.onnx_cuda import HALF_OPTIONS, OnnxCudaEngine

Json = dict[str, Any]
RUNS = {"encoder": 1000, "preview_decoder": 1000, "vae_decoder": 300, "unet": 300}
"""Timed calls; p99 needs a hundred."""
FARTHEST = 3e-2
"""What is farther from the CPU's answer, relative, does not agree with it; half precision rounds
differently in every library."""


def inputs_of(engine: Any) -> dict[str, NDArray[Any]]:
    """The seeded inputs of a graph."""
    return seeded({name: (spec.shape, spec.dtype) for name, spec in engine.inputs.items()})


def reference_file(scratch: Path, name: str) -> Path:
    """Where the CPU's answer is kept."""
    return scratch / "reference" / f"{name}.npz"


def answer_on_cpu(args: Namespace, name: str, threads: int) -> None:
    """Run a graph once on the CPU and keep its outputs."""
    engine = OnnxEngine(name, args.scratch / "full" / f"{name}.onnx", threads)
    found = engine.run(inputs_of(engine))
    kept = reference_file(args.scratch, name)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".part.npz")
    np.savez(part, allow_pickle=False, **found)
    part.replace(kept)


def engine_part(args: Namespace, name: str) -> Json:
    """Open, compare with the CPU, time: wall from launch to the end of the wait, and GPU."""
    path = args.scratch / "full" / f"{name}.onnx"
    began = time.perf_counter()
    gpu = Gpu.open()
    engine = OnnxCudaEngine(name, path, gpu, options=HALF_OPTIONS)
    opened_s = time.perf_counter() - began
    feeds = inputs_of(engine)
    found = engine.run(feeds)
    first_s = time.perf_counter() - began
    result: Json = {"differences": differences(args.scratch, name, found)}
    runs = max(int(RUNS[name] * args.scale), 3)

    def work() -> None:
        engine.launch()
        gpu.wait()

    wall = summary(repeated(work, runs, warm=20))
    result |= {
        "provider": engine.provider,
        "open_s": round(opened_s, 2),
        "first_answer_s": round(first_s, 2),
        "one_cuda_graph": engine.captured,
        "why_not": engine.why_not_captured,
        "nodes": {place: sum(kinds.values()) for place, kinds in engine.nodes.items()},
        "wall_ms": wall,
        "gpu_ms": summary(gpu_seconds(gpu, engine.launch, runs)),
        **judged(name, wall, "p50"),
    }
    engine.close()
    gpu.close()
    return result


def differences(scratch: Path, name: str, found: dict[str, NDArray[Any]]) -> Json:
    """How far a graph's answers are from the CPU's; SystemExit where one is not finite."""
    if not all(np.isfinite(values).all() for values in found.values()):
        raise SystemExit(f"{name} gives numbers that are not finite; nothing is timed")
    kept = reference_file(scratch, name)
    if not kept.is_file():
        return {"against": "nothing: the CPU's answer was not ready"}
    with np.load(kept, allow_pickle=False) as wanted:
        apart = {key: float(f"{distance(found[key], wanted[key]):.2e}") for key in found}
    agrees = all(value < FARTHEST for value in apart.values())
    return {"against": "ONNX Runtime on the CPU", "agrees": agrees, **apart}


def config(args: Namespace, part: str) -> Json:
    """A configuration of a part of the checkpoint."""
    return json.loads((args.full / "configs" / f"{part}.json").read_text())


def torch_network(args: Namespace, name: str) -> Callable[[], Any]:
    """One network of the same shape in half precision, in PyTorch, as a call without arguments."""
    import torch

    device = args.device
    torch.manual_seed(0)

    def made(*shape: int) -> Any:
        return torch.randn(*shape, device=device, dtype=torch.float16)

    if name == "encoder":
        from scanside.export.vit3d import ViT3D, ViT3DConfig

        sizes = ViT3DConfig.from_dict(config(args, "encoder"))
        model: Any = ViT3D(sizes).to(device, torch.float16).eval()
        tokens = made(1, sizes.num_cubes, sizes.token_size)
        return lambda: model(tokens)
    import diffusers

    kind = {
        "unet": diffusers.UNet2DConditionModel,
        "vae_decoder": diffusers.AutoencoderKL,
        "preview_decoder": diffusers.AutoencoderTiny,
    }[name]
    part = {"vae_decoder": "vae"}.get(name, name)
    with torch.device(device):
        model = kind.from_config(config(args, part)).eval()
    model = model.to(torch.float16).to(memory_format=torch.channels_last)
    sample = made(1, 4, 64, 64)
    if name == "unet":
        sizes = model.config
        states = made(1, 77, sizes.cross_attention_dim)
        labels = made(1, sizes.projection_class_embeddings_input_dim)
        time_step = torch.tensor(500, device=device)
        return lambda: model(sample, time_step, states, class_labels=labels, return_dict=False)[0]
    return lambda: model.decode(sample, return_dict=False)[0]


def eager_part(args: Namespace, _: str) -> Json:
    """Every network, and the chains made of them, in eager half precision."""
    import torch

    result: Json = {"torch": torch.__version__, "memory_format": "channels_last"}
    with torch.inference_mode():
        nets = {name: torch_network(args, name) for name in RUNS}
        for name, net in nets.items():
            runs = max(int(RUNS[name] * args.scale) // 2, 3)
            result[name] = {"wall_ms": summary(repeated(_waiting(args, net), runs, warm=5))}
        chains: dict[str, list[str]] = {
            "preview through the tiny decoder": ["encoder", "preview_decoder"],
            "preview through the VAE": ["encoder", "vae_decoder"],
            "1 step, tiny decoder": ["encoder", "unet", "preview_decoder"],
            "4 steps, VAE": ["encoder", *["unet"] * 4, "vae_decoder"],
        }
        for name, order in chains.items():
            both = [nets[each] for each in order]
            run = _waiting(args, lambda both=both: [each() for each in both])
            runs = max(int(100 * args.scale), 3)
            result[name] = {"wall_ms": summary(repeated(run, runs, warm=3))}
    return result


def compiled_part(args: Namespace, name: str) -> Json:
    """One network through torch.compile with CUDA graphs."""
    import torch

    net = torch_network(args, name)
    compiled = torch.compile(net, mode="reduce-overhead", dynamic=False)
    with torch.inference_mode():
        work = _waiting(args, compiled)
        began = time.perf_counter()
        work()
        first_s = time.perf_counter() - began
        runs = 3 if args.prepare else max(int(RUNS[name] * args.scale) // 2, 3)
        wall = summary(repeated(work, runs, warm=5))
    return {"mode": "reduce-overhead", "first_call_s": round(first_s, 1), "wall_ms": wall}


def _waiting(args: Namespace, net: Callable[[], Any]) -> Callable[[], None]:
    import torch

    def work() -> None:
        net()
        if args.device == "cuda":
            torch.cuda.synchronize()

    return work
