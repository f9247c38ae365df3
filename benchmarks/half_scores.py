"""Does half precision cost decoding quality?

    python benchmarks/half_scores.py --json benchmarks/results/half_scores.json

The reference bundle decodes unseen scenes twice: as shipped, in float32, and with encoder, U-Net
and VAE that round every number as half precision does. Both decode the same volumes with the same
seeds, so what is told is a difference on the same trials, in points of a hundred. Half precision
may cost at most one point.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timing import machine, write

from scanside.export.emulated import emulated_bundle
from scanside.export.reference.scenes import draw_scenes, render
from scanside.export.reference.scores import (
    CONDITIONS,
    clip_vectors,
    pixel_correlation,
    two_way_identification,
    volumes,
)
from scanside.export.reference.targets import FrozenEncoders
from scanside.export.reference.texts import names_every_object
from scanside.export.reference.trials import to_nifti
from scanside.export.reference.world import Subject
from scanside.runtime import Decoder

CHECKPOINT = Path(__file__).parents[1] / "export" / "reference" / "checkpoint"
MOST_POINTS = 1.0
Json = dict[str, Any]


def decoded(
    decoder: Decoder, trials: list[tuple[int, str, NDArray[np.float32]]]
) -> dict[str, list[Any]]:
    """Captions, images and previews of all trials, in the order of their scenes."""
    made: dict[str, list[Any]] = {
        what: [None] * len(trials) for what in ("caption", "image", "preview")
    }
    for scene, subject, volume in trials:
        image = to_nifti(volume, Subject(subject))
        result = decoder.decode(image, tasks=("preview", "caption", "image"), seed=scene)
        for what, kept in made.items():
            kept[scene] = getattr(result, what)
    return made


def scores(made: dict[str, list[Any]], scenes: Any, frozen: FrozenEncoders) -> dict[str, float]:
    """As the bundle's own scores, each 0 to 1."""
    true = render(scenes)
    named = [scenes.named(i) for i in range(len(scenes))]
    image, preview = (
        np.stack(made[what]).astype(np.float32) / 255 for what in ("image", "preview")
    )
    right = [names_every_object(t, s) for t, s in zip(made["caption"], named, strict=True)]
    return {
        "caption names every colour and shape": float(np.mean(right)),
        "two-way identification": two_way_identification(
            clip_vectors(frozen, image), clip_vectors(frozen, true)
        ),
        "PixCorr image": pixel_correlation(image, true),
        "PixCorr preview": pixel_correlation(preview, true),
    }


def compare(trials: int, threads: int) -> list[Json]:
    """One row for each score of each condition."""
    frozen = FrozenEncoders(CHECKPOINT)
    rows: list[Json] = []
    with tempfile.TemporaryDirectory() as scratch:
        half = emulated_bundle("reference", Path(scratch) / "half")
        with (
            Decoder.open("reference", threads=threads) as single,
            Decoder.open(half, threads=threads) as rounded,
        ):
            for number, (condition, subjects, repeats) in enumerate(CONDITIONS):
                rng = np.random.default_rng([91, number // 2])
                scenes = draw_scenes(trials, rng, held_out=True)
                given = list(volumes(scenes, subjects, repeats, 100 + repeats))
                made = [decoded(decoder, given) for decoder in (single, rounded)]
                texts = [one["caption"] for one in made]
                same = float(np.mean([a == b for a, b in zip(*texts, strict=True)]))
                both = [scores(one, scenes, frozen) for one in made]
                for what in both[0]:
                    points = 100 * (both[1][what] - both[0][what])
                    rows.append(
                        {
                            "what": what,
                            "condition": condition,
                            "trials": trials,
                            "float32": both[0][what],
                            "half precision": both[1][what],
                            "points": points,
                            "same caption": same,
                        }
                    )
                    print(f"{condition}: {what} {points:+.2f} points", file=sys.stderr)
    return rows


def main() -> int:
    """Print the rows; 1 if a score fell by more than a point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100, help="of each condition (default: 100)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON document")
    args = parser.parse_args()
    about = machine()
    rows = compare(args.trials, args.threads)
    worst = min(row["points"] for row in rows)
    result = {"question": "what half precision costs, in points of a hundred", **about}
    write({**result, "rows": rows}, args.json)
    return 0 if worst >= -MOST_POINTS else 1


if __name__ == "__main__":
    sys.exit(main())
