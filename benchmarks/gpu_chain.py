"""The whole chain of the GPU suite, from a volume in memory to a picture in memory, and its rest:
golden outputs, steadiness over many volumes, memory that must not grow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_measure import device_mib, judged, repeated, resident_mib, summary

from scanside.runtime import Decoder
from scanside.runtime.device_chain import DeviceChain
from scanside.runtime.engines.engine import DeviceEngine
from scanside.runtime.volume import Volume, load_volume

Json = dict[str, Any]
VERIFY = "from scanside.runtime.cli import main; raise SystemExit(main())"
SHAPE = (82, 106, 84)
"""Of a functional volume at 1.8 mm."""
GROWTH_MIB = 64.0
"""What memory may differ by over thousands of volumes; one volume's own data is 8 MiB."""
STEADY = 1.3
"""Most that p99.9 may be of the median."""


def golden_part(args: Namespace, _: str) -> Json:
    """`scanside verify`: every stage of the reference bundle against its golden output, on the GPU;
    where that fails, with the concept encoder on the CPU, and then the language model, too. Each in
    a process of its own, which llama.cpp may end."""
    result: Json = {}
    own = f"{args.device},concept_encoder=cpu"  # bundles of before looked for the text's end there
    for device in (args.device, own, f"{own},language=cpu"):
        words = [sys.executable, "-P", "-c", VERIFY, "verify", "reference", "--device", device]
        done = subprocess.run([*words, "--json"], capture_output=True, text=True)
        try:
            said: Any = json.loads(done.stdout)
        except ValueError:
            said = (done.stdout + done.stderr)[-4000:]
        if done.returncode == 0:
            return {**result, device: {"said": said}}
        result[device] = {"failed": f"exit code {done.returncode}", "said": said}
    raise SystemExit(f"the golden outputs do not agree: {json.dumps(result)[:3000]}")


def volumes(count: int) -> list[Volume]:
    """Different volumes of one shape, float32, Fortran order, as they come from a scanner."""
    rng = np.random.default_rng(11)
    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    affine[:3, 3] = -0.9 * np.array(SHAPE)
    return [
        load_volume((np.asfortranarray(rng.standard_normal(SHAPE).astype(np.float32)), affine))
        for _ in range(count)
    ]


def _opened(args: Namespace) -> Decoder:
    bundle = "reference" if args.small else args.scratch / "full"
    device = args.device if args.device == "cpu" else f"{args.device},language=cpu"
    return Decoder.open(bundle, device=device, threads=args.threads)


def chain_part(args: Namespace, _: str) -> Json:
    """Previews, one step with the tiny decoder, four steps with the VAE: wall time of each."""
    began = time.perf_counter()
    with _opened(args) as decoder:
        opened_s = time.perf_counter() - began
        given = volumes(4)
        result: Json = {
            "volume": list(SHAPE),
            "open_s": round(opened_s, 2),
            "placement": dict(decoder.stages.placement),
        }
        for name, work in _chains(args, decoder, given).items():
            runs = max(int(200 * args.scale), 3)
            wall = summary(repeated(work, runs, warm=5))
            judge = judged(name, wall, "p99") if _is_limited(name) else {}
            result[name] = {"wall_ms": wall, **judge}
        if decoder.stages.engines.gpu:
            result["over its engines"] = _over_engines(args, decoder, result)
    return result


MADE_OF = {
    "preview through the tiny decoder": ("encoder", "preview_decoder"),
    "4 steps, VAE": ("encoder", *["unet"] * 4, "vae_decoder"),
}
"""Engines of the chains that stay on the GPU."""


def _over_engines(args: Namespace, decoder: Decoder, measured: Json) -> Json:
    """A chain's median over the sum of the medians of its engines, each launched by itself."""
    alone: dict[str, float] = {}
    for engine in decoder.stages.engines.opened:
        if isinstance(engine, DeviceEngine):

            def work(engine: DeviceEngine = engine) -> None:
                engine.launch()
                engine.gpu.wait()

            alone[engine.stage] = summary(repeated(work, max(int(200 * args.scale), 3), 5))["p50"]
    ratios = {
        chain: round(measured[chain]["wall_ms"]["p50"] / sum(alone[each] for each in parts), 3)
        for chain, parts in MADE_OF.items()
    }
    return {"engines_p50_ms": alone, "ratio": ratios}


def _is_limited(name: str) -> bool:
    from gpu_measure import LIMITS_MS

    return name in LIMITS_MS


def _chains(
    args: Namespace, decoder: Decoder, given: list[Volume]
) -> dict[str, Callable[[], object]]:
    stages = decoder.stages
    assert stages.pictures is not None, "both bundles make pictures"
    picture, empty = stages.pictures.reconstruction, stages.pictures.prompt.empty
    count = iter(range(1 << 60))

    def encoded() -> dict[str, Any]:
        return stages.encode(stages.place(given[next(count) % len(given)]), ("clip", "latent"))

    def denoised(steps: int) -> Any:
        from scanside.runtime.denoising import Condition

        found = encoded()
        condition = Condition(clip=found["clip"], latent=found["latent"], states=empty)
        return picture.denoise(condition, steps=steps, seed=0)

    def through_decode(tasks: tuple[str, ...], steps: int | None = None) -> Callable[[], object]:
        return lambda: decoder.decode(
            given[next(count) % len(given)], tasks=tasks, steps=steps, prompt="none"
        )

    chains: dict[str, Callable[[], object]] = {
        "preview through the tiny decoder": lambda: picture.preview_pixels(encoded()["latent"]),
        "preview through the VAE": lambda: picture.pixels(encoded()["latent"]),
        "1 step, tiny decoder": lambda: picture.preview_pixels(denoised(1)),
        "Decoder.decode, preview": through_decode(("preview",)),
        "Decoder.decode, image of 4 steps": through_decode(("image",), 4),
    }
    if args.device == "cpu":
        return {"4 steps, VAE": lambda: picture.pixels(denoised(4)), **chains}
    chain = DeviceChain(stages)
    made: dict[str, Callable[[], object]] = {
        "4 steps, VAE": lambda: chain.picture(given[next(count) % len(given)], steps=4),
        "preview through the tiny decoder": lambda: chain.preview(given[next(count) % len(given)]),
    }
    chains["preview, step by step"] = chains.pop("preview through the tiny decoder")
    return made | chains


def steady_part(args: Namespace, _: str) -> Json:
    """Thousands of previews and many pictures in a row: memory that does not grow, a short tail."""
    result: Json = {}
    with _opened(args) as decoder:
        chains = _chains(args, decoder, volumes(8))
        gpu = decoder.stages.engines.gpu
        plan = {"preview through the tiny decoder": args.previews, "4 steps, VAE": args.pictures}
        for name, runs in plan.items():
            work = chains[name]
            repeated(work, max(min(50, runs // 4), 2), warm=0)
            before = resident_mib(), device_mib(gpu) if gpu else 0.0
            wall = summary(repeated(work, runs, warm=0))
            after = resident_mib(), device_mib(gpu) if gpu else 0.0
            grown = [round(b - a, 1) for a, b in zip(before, after, strict=True)]
            ratio = round(wall["p99.9"] / wall["p50"], 2) if "p99.9" in wall else None
            result[name] = {
                "wall_ms": wall,
                "host_growth_mib": grown[0],
                "device_growth_mib": grown[1],
                "no_growth": max(grown) < GROWTH_MIB,
                "p99.9_over_p50": ratio,
                "steady": None if ratio is None else ratio <= STEADY,
            }
    return result
