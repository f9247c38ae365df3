"""A full-size bundle without its weights, for `gpu_suite.py`: megabytes that can travel.

    python benchmarks/hollow_bundle.py FULL

FULL becomes a bundle of the paper's sizes in half precision, its graphs emptied by
`hollow_graph.py`, with `configs/` that PyTorch's networks are made from, and `tokenizer/` of the
language model of 8B parameters that the suite writes for itself. The bundle's own language model
is a toy of that one's width. Takes about 20 minutes and 15 GB of a disk.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from hollow_graph import empty

from scanside.export.bundle_writer import export_bundle
from scanside.export.random_checkpoint import write_random_checkpoint
from scanside.export.settings import DiffusionSettings

CONFIGS = {
    "encoder": "encoder",
    "unet": "diffusion/unet",
    "vae": "diffusion/vae",
    "preview_decoder": "diffusion/preview_decoder",
}
WITHOUT = (".onnx", ".data", ".weights")
"""What holds weights and is written anew, or drawn."""


def hollow(checkpoint: Path, bundle: Path, full: Path) -> None:
    """What can travel of a bundle and of the checkpoint that it was made from."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(name).suffix in WITHOUT or name == "golden"]

    shutil.copytree(bundle, full, ignore=left_out)
    for graph in sorted(bundle.glob("*.onnx")):
        empty(graph, full / graph.name)
    (full / "configs").mkdir()
    for name, part in CONFIGS.items():
        shutil.copyfile(checkpoint / part / "config.json", full / "configs" / f"{name}.json")
    (full / "tokenizer").mkdir()
    for path in (checkpoint / "llm").glob("*token*"):
        shutil.copyfile(path, full / "tokenizer" / path.name)


def main() -> int:
    """Write random weights, export, empty."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("full", type=Path, help="folder to write; must not exist")
    parser.add_argument("--preset", default="paper-pictures", help="of export/presets.py")
    args = parser.parse_args()
    if args.full.exists():
        parser.error(f"{args.full} exists; choose another name")
    args.full.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.full.parent) as scratch:
        checkpoint, bundle = Path(scratch, "checkpoint"), Path(scratch, "bundle")
        print("random weights", flush=True)
        write_random_checkpoint(args.preset, checkpoint)
        print("export, the longest part", flush=True)
        one = DiffusionSettings(steps=1)  # of the golden picture, which nobody looks at
        export_bundle(
            checkpoint, bundle, targets=("cuda",), precision="fp16", quantize="q8_0", diffusion=one
        )
        print("empty the graphs", flush=True)
        hollow(checkpoint, bundle, args.full)
    size = sum(path.stat().st_size for path in args.full.rglob("*") if path.is_file())
    print(f"{args.full}: {size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
