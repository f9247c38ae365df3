"""Which layers may compute in half precision, and how far are their numbers from its end?

    python benchmarks/half_ranges.py --json benchmarks/results/half_ranges.json
    python benchmarks/half_ranges.py BUNDLE VOLUME ... --stages encoder

Decodes volumes with the float32 graphs, keeps what every graph was given on the way, and lets the
same inputs decide as `scanside export --precision fp16` does: a node stays float32 where the
numbers that it takes or gives, or their squares in a norm, come within a factor of four of 65504.
One row for each kind of node, and the five of each graph with the largest numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from timing import machine, write

from scanside.export.half_precision import LARGEST, float_inputs, plan_half
from scanside.export.ranges import Ranges, is_float, largest_values
from scanside.runtime import Decoder
from scanside.runtime.bench.measure import default_volumes

STAGES = ("encoder", "unet", "vae_decoder")
Json = dict[str, Any]
Feeds = list[dict[str, NDArray[Any]]]


def engines(decoder: Decoder) -> dict[str, tuple[str, Any]]:
    """File and engine of each graph that can be in half precision."""
    found = {"encoder": (decoder.bundle.manifest.encoder.file, decoder.stages.encoder)}
    pictures, spec = decoder.stages.pictures, decoder.bundle.manifest.diffusion
    if pictures and spec:
        made = pictures.reconstruction
        found["unet"] = spec.unet, made._denoiser._unet
        found["vae_decoder"] = spec.vae_decoder, made._vae
    return found


def watched(engine: Any) -> Feeds:
    """Copies of all that an engine is given from now on."""
    original, feeds = engine.run, Feeds()

    def run(given: Mapping[str, NDArray[Any]]) -> Any:
        feeds.append({name: np.array(value) for name, value in given.items()})
        return original(given)

    engine.run = run
    return feeds


def largest_of(node: ir.Node, ranges: Ranges) -> float:
    """The largest number that a node takes or gives."""
    most = 0.0
    for value in [*float_inputs(node), *filter(is_float, node.outputs)]:
        held = value.const_value
        known = ranges.get(str(value.name), 0.0) if held is None else np.abs(held.numpy()).max()
        most = max(most, float(known))
    return most


def rows_of(stage: str, graph: Path, feeds: Feeds) -> tuple[list[Json], list[Json]]:
    """Kinds of nodes, and the layers with the largest numbers."""
    ranges = largest_values(graph, feeds)
    plan = plan_half(ir.load(graph), ranges)
    reasons = [("", plan.half), *plan.kept.items()]
    nodes = [(node, reason, largest_of(node, ranges)) for reason, of in reasons for node in of]
    kinds: dict[tuple[str, str], list[float]] = {}
    for node, reason, most in nodes:
        kinds.setdefault((node.op_type, reason), []).append(most)
    by_kind = [
        {
            "stage": stage,
            "operator": kind,
            "nodes": len(found),
            "precision": "float32" if reason else "half",
            "because of": reason or None,
            "largest": round(max(found), 3),
            "share of 65504": round(max(found) / LARGEST, 5),
        }
        for (kind, reason), found in sorted(kinds.items(), key=lambda item: -max(item[1]))
    ]
    nodes.sort(key=lambda found: -found[2])
    layers = [
        {
            "stage": stage,
            "layer": str(node.outputs[0].name),
            "operator": node.op_type,
            "precision": "float32" if reason else "half",
            "because of": reason or None,
            "largest": round(most, 3),
        }
        for place, (node, reason, most) in enumerate(nodes)
        if place < 5 or reason
    ]
    return by_kind, layers


def main() -> int:
    """Decode, measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="reference")
    parser.add_argument(
        "volumes", nargs="*", type=Path, help="default: those that come with the bundle"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about, kinds, layers = machine(("onnx",)), list[Json](), list[Json]()
    with Decoder.open(args.bundle, threads=args.threads) as decoder:
        volumes = args.volumes or default_volumes(decoder.bundle)
        graphs = {name: found for name, found in engines(decoder).items() if name in args.stages}
        seen = {name: watched(engine) for name, (_, engine) in graphs.items()}
        tasks = "preview" if args.stages == ["encoder"] else "preview,image"
        for volume in volumes:
            decoder.decode(volume, tasks)
        for name, (file, _) in graphs.items():
            found = rows_of(name, decoder.bundle.path(file), seen[name])
            kinds += found[0]
            layers += found[1]
            print(f"{name}: {len(seen[name])} inputs", file=sys.stderr)
    result = {
        "question": "numbers in each layer against the end of half precision, on real inputs",
        **about,
        "bundle": args.bundle,
        "volumes": len(volumes),
        "inputs": {name: len(feeds) for name, feeds in seen.items()},
        "kinds": kinds,
        "layers": layers,
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
