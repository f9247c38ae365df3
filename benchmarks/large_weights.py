"""Does a U-Net of 3.2 GiB, more than protobuf holds, export exactly, and in how much memory?

    python benchmarks/large_weights.py CHECKPOINT FOLDER \\
        --json benchmarks/results/large_weights.json

CHECKPOINT holds a full-size U-Net, for example of random weights (`reconstruction.py` says how to
write one). Random weights are stored in half precision, and export would keep them so; here each is
moved by less than its last digit in half precision first, so that all of them need float32. The
graph then goes the way of every other one: exported, checked, loaded by ONNX Runtime and held
against PyTorch, on a small latent, for the weights are what is asked about.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from timing import machine, write

from scanside.export import parts
from scanside.export.compile_graph import PRECISIONS, compile_graph
from scanside.export.cross_attention import keys_values
from scanside.export.to_onnx import UNetStep


def trial(unet: object, size: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs of the U-Net's graph, and what diffusers makes of them."""
    config = unet.config
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((1, config.in_channels, size, size), np.float32)
    states = rng.standard_normal((1, 77, config.cross_attention_dim), np.float32)
    labels = rng.standard_normal((1, config.projection_class_embeddings_input_dim), np.float32)
    given = [torch.from_numpy(array) for array in (sample, states, labels)]
    when = torch.tensor([500.0])
    with torch.inference_mode():
        out = unet(
            given[0], when, encoder_hidden_states=given[1], class_labels=given[2]
        ).sample.numpy()
        time_row = unet.time_embedding(unet.time_proj(when)).numpy()
        pairs = keys_values(unet, given[1]).numpy()
    feed = {"sample": sample, "time": time_row, "states": pairs, "class_labels": labels}
    return feed, {"out": out}


def main() -> int:
    """Export, compare, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--size", type=int, default=16, help="edge of the latent")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine(("torch", "diffusers", "onnx"))
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    unet = parts.load_unet(args.checkpoint)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1 + 2**-13)
    trials = [trial(unet, args.size)]
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "unet.onnx"
    done = compile_graph(UNetStep(unet), ["out"], path, trials, args.precision)
    weights = onnx.load(path, load_external_data=False).graph.initializer
    result = {
        "question": "export of weights beyond protobuf's 2 GiB",
        **about,
        "precision": args.precision,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "mib": {
            file.name: round(file.stat().st_size / 2**20, 1)
            for file in sorted(args.folder.glob("unet.onnx*"))
        },
        "weights_beside": sum(bool(w.external_data) for w in weights),
        "parity": done.parity.as_dict(),
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
