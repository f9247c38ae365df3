"""`scanside export CHECKPOINT BUNDLE`: the arguments without torch, the work with it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.errors import MissingExtraError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments; imports nothing heavy."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint directory, 'reference', or random weights: "
        "random:tiny, random:paper, random:paper-1b",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder to write; must be new")
    parser.add_argument(
        "--targets",
        default="cpu",
        metavar="LIST",
        help="comma-separated, of: cpu, cuda, rtx, which adds engines of TensorRT-RTX; best with "
        "--precision fp16 (default: cpu)",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "fp16", "int8"),
        help="of encoder, U-Net and decoders; fp16 keeps float32 where numbers of real inputs need "
        "it; int8, for CPUs, multiplies by weights in 8 bits (default: fp32)",
    )
    parser.add_argument(
        "--fuse-attention",
        action="store_true",
        help="attention of encoder and U-Net as one operator, faster in ONNX Runtime on a GPU; not "
        "together with rtx",
    )
    parser.add_argument(
        "--quantize",
        default="f16",
        metavar="TYPE",
        help="language model: f32, f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m (default: f16)",
    )


def run(args: argparse.Namespace) -> int:
    """Export, and print the bundle's path."""
    try:
        from .bundle_writer import export_bundle
    except ModuleNotFoundError as exc:
        raise MissingExtraError(f"export needs {exc.name}: pip install 'scanside[export]'") from exc
    path = export_bundle(
        args.checkpoint,
        args.bundle,
        targets=args.targets.split(","),
        precision=args.precision,
        quantize=args.quantize,
        fuse_attention=args.fuse_attention,
    )
    print(path)
    return 0
