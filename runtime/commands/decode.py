"""`scanside decode BUNDLE VOLUME`: one beta volume to text and pictures."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..decoder import Decoder
from ..localization.files import NAMES, as_image, write_location
from ..png import write_png
from ..request import TASKS, task_list
from ..result import Result

DEVICE_HELP = (
    "cpu, cuda, rtx or tensorrt, with exceptions by stage, for example cuda,language=cpu "
    "(default: cpu)"
)
VRAM_HELP = "most of the GPU's memory to use, for example 8G (default: all)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder, or 'reference'")
    parser.add_argument("volume", metavar="VOLUME", type=Path, help="a NIfTI file, .nii or .nii.gz")
    parser.add_argument(
        "--task",
        type=task_names,
        default="preview,caption,image",
        metavar="LIST",
        help=f"comma-separated, of {', '.join(TASKS)} (default: preview,caption,image)",
    )
    parser.add_argument(
        "--ask", action="append", default=[], metavar="TEXT", help="a question; may be repeated"
    )
    parser.add_argument(
        "--locate",
        metavar="CONCEPT",
        help="write where in the brain a concept is: heatmap.nii.gz, and pictures of it",
    )
    parser.add_argument(
        "--anatomy",
        type=Path,
        metavar="FILE",
        help="NIfTI file that the heat map is drawn over (default: the volume itself)",
    )
    parser.add_argument(
        "--prompt",
        default="written",
        metavar="written|caption|none|TEXT",
        help="text that conditions the image (default: written, by the language model)",
    )
    parser.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="shorten what does not fit into this time"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps (default: the bundle's)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)"
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=1,
        metavar="N",
        help="pictures to make, as far as the deadline allows; the one that fits best is kept",
    )
    parser.add_argument("--device", default="cpu", metavar="D", help=DEVICE_HELP)
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="CPU threads (default: 2)"
    )
    parser.add_argument("--vram", metavar="SIZE", help=VRAM_HELP)
    parser.add_argument("--index", type=int, metavar="I", help="which volume of a 4-D file, from 0")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for pictures and result.json (default: here, NAME[-INDEX]-decoded)",
    )
    parser.add_argument(
        "--token-log-probs",
        action="store_true",
        help="also write the log-probability of every token of every text",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def task_names(text: str) -> tuple[str, ...]:
    """A list of tasks as it is typed."""
    tasks = task_list(text)
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(TASKS)}")
    return tasks


def run(args: argparse.Namespace) -> int:
    """Decode, write the files, print the answers."""
    with Decoder.open(
        args.bundle,
        args.device,
        args.threads,
        warm=args.deadline is not None,
        vram=args.vram,
    ) as decoder:
        result = decoder.decode(
            args.volume,
            args.task,
            seed=args.seed,
            deadline_s=args.deadline,
            steps=args.steps,
            prompt=args.prompt,
            index=args.index,
            ask=args.ask,
            token_log_probs=args.token_log_probs,
            candidates=args.candidates,
            locate=() if args.locate is None else args.locate,
        )
    background = None
    if result.locations:
        under = (args.anatomy, None) if args.anatomy else (args.volume, args.index)
        background = as_image(*under)
    out = args.out or folder_for(args.volume, args.index)
    document = write_result(result, out, background)
    print(json.dumps(document, ensure_ascii=False) if args.json else _readable(document))
    return 0


def write_result(result: Result, out: Path, background: Any = None) -> dict[str, Any]:
    """Write preview.png, image.png, the heat map and result.json into a folder, none of them half.

    Parameters
    ----------
    result : Result
    out : Path
    background : nibabel image, optional
        What the heat map is drawn over; needed where there is one.

    Returns
    -------
    document : dict
        What `--json` prints: the result with the paths of its pictures.
    """
    pictures = {"image": result.image, "preview": result.preview}
    made = {kind: pixels for kind, pixels in pictures.items() if pixels is not None}
    names = {kind: f"{kind}.png" for kind in pictures} | NAMES
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as name:
        scratch = Path(name)
        for kind, pixels in made.items():
            write_png(scratch / names[kind], pixels, result.provenance(kind))
        written = [*made]
        for location in result.locations[:1]:
            shown = write_location(location, scratch, background, result.provenance("heatmap"))
            written += shown.kinds
            result.degraded += shown.degraded
        document = result.as_dict({kind: str(out / names[kind]) for kind in written})
        text = json.dumps(document, indent=2, ensure_ascii=False)
        (scratch / "result.json").write_text(text + "\n", encoding="utf-8")
        for kind in names.keys() - set(written):
            # an earlier run's picture beside this run's result would be taken for this volume's
            (out / names[kind]).unlink(missing_ok=True)
        for file in scratch.iterdir():
            os.replace(file, out / file.name)
    return document


def folder_for(volume: Path, index: int | None) -> Path:
    """Where the answers about a volume go by default."""
    name = volume.name.removesuffix(".gz").removesuffix(".nii")
    return Path(f"{name}-decoded" if index is None else f"{name}-{index}-decoded")


def _readable(document: Mapping[str, Any]) -> str:
    lines = [
        f"{key}: {document[key]}"
        for key in (
            "caption",
            "description",
            "prompt",
            "image",
            "preview",
            "heatmap",
            "heatmap_slices",
        )
        if key in document
    ]
    for one in document.get("located", []):
        lines.append(f"similarity to {one['concept']!r}: {one['similarity']:.2f}")
    for turn in document.get("answers", []):
        lines += [f"question: {turn['question']}", f"answer: {turn['answer']}"]
    lines += [f"degraded: {sentence}" for sentence in document["degraded"]]
    lines.append(f"time: {document['latency_ms']['total']:.0f} ms")
    return "\n".join(lines)
