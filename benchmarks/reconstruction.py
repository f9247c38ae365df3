"""How fast is the picture, beside diffusers and torch.compile?

    python benchmarks/reconstruction.py --json benchmarks/results/reconstruction.json
    python benchmarks/reconstruction.py CHECKPOINT BUNDLE --steps 2 --runs 5

The same prompt, CLIP vector, latent, noise, schedule, steps and threads for all. Each contender
lives in its own process, so that its peak memory is its own; they take turns, run by run. Pictures
are compared before anything is timed. A run goes from prompt text, CLIP vector and latent to
pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timing import ROOT, machine, percentiles_ms, write

CONTENDERS = ("scanside", "diffusers eager", "diffusers, torch.compile")
PROMPT = "small red circle top left, large blue ring centre, grey background"
SEED = 0
LEAST_PSNR_DB = 40.0
Pixels = NDArray[np.uint8]


def inputs(shape: tuple[int, ...], clip_size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A latent (1, 4, h, w) and a CLIP vector (1, D), float32."""
    rng = np.random.default_rng(1)
    latent = rng.standard_normal((1, *shape)).astype(np.float32)
    return latent, rng.standard_normal((1, clip_size)).astype(np.float32)


def scanside(checkpoint: Path, bundle: str, steps: int, threads: int) -> Callable[[], Pixels]:
    """The compiled stages, as a decode runs them."""
    from scanside.runtime.bundle import Bundle
    from scanside.runtime.devices import stage_devices
    from scanside.runtime.reconstruction import Condition, to_pixels
    from scanside.runtime.stages import open_pictures

    opened = Bundle.open(bundle)
    spec = opened.manifest.diffusion
    assert spec is not None
    pictures = open_pictures(opened, spec, stage_devices("cpu"), threads, {})
    latent, clip = inputs(
        opened.manifest.encoder.outputs["latent"].shape[1:],
        opened.manifest.encoder.outputs["clip"].shape[1],
    )

    def run() -> Pixels:
        states, _ = pictures.prompt.encode(PROMPT)
        condition = Condition(clip=clip, latent=latent, states=states)
        clean = pictures.reconstruction.denoise(condition, steps=steps, seed=SEED)
        return to_pixels(pictures.reconstruction.decode(clean))

    return run


def diffusers(
    checkpoint: Path, bundle: str, steps: int, threads: int, compiled: bool = False
) -> Callable[[], Pixels]:
    """The pipeline as its documentation uses it, with given embeddings and latents."""
    import torch
    from diffusers import StableUnCLIPImg2ImgPipeline

    from scanside.export.checkpoint import open_checkpoint
    from scanside.export.schedules import make_scheduler
    from scanside.export.settings import DiffusionSettings
    from scanside.export.torch_diffusion import TorchDiffusion

    torch.set_num_threads(threads)
    opened = open_checkpoint(checkpoint)
    settings = DiffusionSettings.from_dict(opened.sampling)
    pipe = StableUnCLIPImg2ImgPipeline.from_pretrained(
        checkpoint / "diffusion", torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = make_scheduler(settings.schedule, pipe.scheduler.config, steps)
    if compiled:
        pipe.unet = torch.compile(pipe.unet)
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    ours = TorchDiffusion(opened, settings)
    latent, clip = inputs(ours.latent_shape, ours.clip_size)
    start, clip_noise, _ = ours.noise(SEED)
    latents = torch.from_numpy(ours.mixed(latent, start)) * pipe.scheduler.init_noise_sigma
    noised = pipe.noise_image_embeddings
    pipe.noise_image_embeddings = lambda image_embeds, noise_level, **_: noised(
        image_embeds, noise_level, noise=torch.from_numpy(clip_noise[None])
    )

    def run() -> Pixels:
        image = pipe(
            prompt=PROMPT,
            image_embeds=torch.from_numpy(clip),
            latents=latents,
            num_inference_steps=steps,
            guidance_scale=settings.guidance,
            noise_level=settings.noise_level,
            output_type="np",
        ).images[0]
        return np.round(image * 255).astype(np.uint8)

    return run


def work(args: argparse.Namespace) -> int:
    """A contender's process: a picture for each line on stdin."""
    make = scanside if args.work == CONTENDERS[0] else diffusers
    extra = {"compiled": True} if args.work == CONTENDERS[2] else {}
    run = make(args.checkpoint, args.bundle, args.steps, args.threads, **extra)
    for line in sys.stdin:
        began = time.perf_counter()
        pixels = run()
        took = time.perf_counter() - began
        if line.startswith("save"):
            np.save(line.split(maxsplit=1)[1].strip(), pixels)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": took, "peak_mib": peak / 1024}), flush=True)
    return 0


def start(contender: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    """A contender in a process of its own."""
    where = [str(args.checkpoint), args.bundle, "--steps", args.steps, "--threads", args.threads]
    command = [sys.executable, __file__, *where, "--work", contender]
    # a process that waits for its turn must not spin
    environment = os.environ | {
        "OMP_NUM_THREADS": str(args.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ask(process: subprocess.Popen[str], order: str) -> dict[str, float]:
    """One picture."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(order + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def psnr_db(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Check the pictures, then take turns."""
    workers = {name: start(name, args) for name in CONTENDERS}
    pictures: dict[str, Pixels] = {}
    for number, (name, worker) in enumerate(workers.items()):
        path = Path(args.scratch) / f"picture{number}.npy"
        ask(worker, f"save {path}")
        ask(worker, "warm")
        pictures[name] = np.load(path)
    agree = {name: psnr_db(pictures[CONTENDERS[1]], p) for name, p in pictures.items()}
    if agree[CONTENDERS[0]] < LEAST_PSNR_DB:
        raise SystemExit(f"the pictures differ: {agree[CONTENDERS[0]]:.1f} dB, nothing is timed")
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peak: dict[str, float] = {}
    for _ in range(args.runs):
        for name, worker in workers.items():
            answer = ask(worker, "run")
            seconds[name].append(answer["seconds"])
            peak[name] = answer["peak_mib"]
    for worker in workers.values():
        worker.communicate()
    ours = np.array(seconds[CONTENDERS[0]])
    rows = {}
    for name in CONTENDERS:
        ratios = np.array(seconds[name]) / ours
        rows[name] = {
            "picture_ms": percentiles_ms(seconds[name]),
            "times_ours": round(float(np.median(ratios)), 3),
            "times_ours_quartiles": [round(float(q), 3) for q in np.percentile(ratios, (25, 75))],
            "peak_mib": round(peak[name], 1),
            "psnr_to_eager_db": round(min(agree[name], 999.0), 1),
        }
    return rows


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reference = ROOT / "export/reference/checkpoint"
    parser.add_argument("checkpoint", type=Path, nargs="?", default=reference)
    parser.add_argument("bundle", nargs="?", default="reference")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args)
    import tempfile

    about = machine()
    with tempfile.TemporaryDirectory() as scratch:
        args.scratch = scratch
        rows = compare(args)
    for name, row in rows.items():
        print(
            f"{name:28} {row['picture_ms']['p50']:9.1f} ms  {row['times_ours']:5.2f} x ours  "
            f"{row['peak_mib']:7.0f} MiB  {row['psnr_to_eager_db']} dB",
            file=sys.stderr,
        )
    write(
        {
            "question": "speed and memory of the picture beside diffusers",
            **about,
            "bundle": args.bundle,
            "steps": args.steps,
            "threads": args.threads,
            "contenders": rows,
        },
        args.json,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
