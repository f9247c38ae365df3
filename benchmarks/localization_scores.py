"""Do heat maps lie on the voxels that carry a concept, and is the concept gone without them?

    python benchmarks/localization_scores.py --json benchmarks/results/localization_scores.json

On held-out trials of the reference world:
- AUROC of the heat map over visual voxels alone (over the whole grid the mask by itself would score
  high), fused and for each cube size, beside the ceiling of one number a cube, and beside the map
  of another trial;
- similarity to a concept that is there against one that is not;
- how far similarity falls without the located voxels, and without as many random ones.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from localization_truth import (
    CARRIERS,
    KINDS,
    Concept,
    absent,
    auroc,
    brain,
    carriers,
    concepts_of,
    perfect_rows,
)
from numpy.typing import NDArray
from timing import ROOT, machine, write

from scanside.export.reference.scenes import Scenes, draw_scenes
from scanside.export.reference.trials import Session, to_nifti
from scanside.export.reference.world import SEEN, UNSEEN
from scanside.runtime import Decoder, Location
from scanside.runtime.localization.heat import to_volume
from scanside.runtime.localization.localizer import Localizer
from scanside.runtime.volume import Volume, load_volume

Rows = dict[str, list[float]]
CHANCE = 0.5
WANTED = 0.8
"""Mean AUROC of shapes and colours that is asked for where the ceiling allows it, and else"""
SHARE = 0.7
"""of the way from chance to the ceiling."""
WANTED_RATIO = 2.0
"""How much more than random voxels the located ones must lower similarity."""


def trials(scenes: Scenes, repeats: int, seed: int) -> Iterator[tuple[int, str, Any]]:
    """Number, subject and int16 image of the mean of so many trials of each scene."""
    for i in range(len(scenes)):
        subject = (SEEN + UNSEEN)[i % len(SEEN + UNSEEN)]
        session = Session(brain(subject), seed + i)
        total = sum(next(session.trials(scenes[i : i + 1])) for _ in range(repeats))
        yield i, subject, to_nifti(total / repeats, brain(subject).subject)


class Scores:
    """AUROC and similarity, gathered trial by trial."""

    def __init__(self, localizer: Localizer) -> None:
        self._localizer = localizer
        self._rng = np.random.default_rng(7)
        self._last: dict[str, tuple[str, list[NDArray[np.float32]]]] = {}
        self.map: dict[str, Rows] = {kind: defaultdict(list) for kind in KINDS}
        self.similarity: dict[str, Rows] = {kind: defaultdict(list) for kind in KINDS}

    def add(self, scenes: Scenes, i: int, subject: str, image: Any, decoder: Decoder) -> None:
        """One trial with all its concepts and as many that are absent."""
        there = concepts_of(scenes, i)
        others = [absent(scenes, i, concept.kind, self._rng) for concept in there]
        found = decoder.locations(image, [*(c.text for c in there), *others])
        volume = load_volume(image)
        for concept, location, other in zip(there, found, found[len(there) :], strict=False):
            self._add_map(subject, volume, concept, location)
            row = self.similarity[concept.kind]
            row["present"].append(location.similarity)
            row["absent"].append(other.similarity)

    def _add_map(self, subject: str, volume: Volume, concept: Concept, location: Location) -> None:
        truth, rows = carriers(subject, concept), list(location.relevance)
        row = self.map[concept.kind]
        perfect = perfect_rows(self._localizer, subject, volume.affine, truth)
        row["fused"].append(auroc(truth, self._native(location.heat.get_fdata(), subject)))
        row["ceiling"].append(self._score(truth, perfect, volume, subject))
        if concept.kind in self._last:
            # the last map of this kind: another scene, and mostly another brain
            _, others = self._last[concept.kind]
            row["another trial's"].append(self._score(truth, others, volume, subject))
        for k, member in enumerate(self._localizer.members):
            grid = member.cubes.grid(np.maximum(rows[k], 0))
            alone = self._carried(grid, volume, subject)
            row[f"cubes of {member.cubes.geometry.cube}"].append(auroc(truth, alone))
        self._last[concept.kind] = (subject, rows)

    def _score(
        self,
        truth: NDArray[np.bool_],
        rows: list[NDArray[np.float32]],
        volume: Volume,
        subject: str,
    ) -> float:
        return auroc(truth, self._carried(self._localizer.fused(rows), volume, subject))

    def _carried(
        self, grid: NDArray[np.float32], volume: Volume, subject: str
    ) -> NDArray[np.float64]:
        matrix = self._localizer.members[0].preprocessor.model_to_source(volume)
        return self._native(to_volume(grid, matrix, volume.data.shape, 1), subject)

    def _native(self, heat: NDArray[Any], subject: str) -> NDArray[np.float64]:
        """Values at the visual voxels; images are stored R, A, S, the world is S, A, R."""
        return heat.T[brain(subject).subject.mask]


def ablations(decoder: Decoder, count: int, repeats: int, threshold: float | None) -> Rows:
    """Similarity to one object of each scene: with everything, without what was located, without
    as many random voxels.
    """
    scenes = draw_scenes(count, np.random.default_rng(101), held_out=True)
    out: Rows = defaultdict(list)
    for i, _, image in trials(scenes, repeats, seed=5000):
        concept = next(c for c in concepts_of(scenes, i) if c.kind == "object")
        if not decoder.locations(image, concept.text)[0].grid.any():
            out["nothing located"].append(1.0)
            continue
        found = decoder.locate(
            image, concept.text, ablate=True, tasks="preview", threshold=threshold, seed=i
        )
        out["before"].append(found.similarity)
        out["fall without located"].append(found.drop)
        out["fall without random"].append(found.random_drop)
        out["voxels"].append(found.voxels)
    return out


def summary(scores: Scores, ablated: Rows) -> dict[str, Any]:
    """Means, and whether what is asked for is reached."""
    maps = {k: {n: float(np.mean(v)) for n, v in row.items()} for k, row in scores.map.items()}
    for row in maps.values():
        row["wanted"] = min(WANTED, CHANCE + SHARE * (row["ceiling"] - CHANCE))
        row["share of the way to the ceiling"] = (row["fused"] - CHANCE) / (row["ceiling"] - CHANCE)
    similarity = {
        kind: {
            "present": float(np.mean(row["present"])),
            "absent": float(np.mean(row["absent"])),
            "present is higher": float(np.mean(np.array(row["present"]) > row["absent"])),
        }
        for kind, row in scores.similarity.items()
    }
    ablation = {n: float(np.mean(v)) for n, v in ablated.items() if n != "nothing located"}
    ablation["trials"] = len(ablated["before"])
    ablation["nothing located"] = len(ablated["nothing located"])
    located, random = ablation["fall without located"], ablation["fall without random"]
    ablation["ratio"] = located / random if random > 0 else float("inf")
    return {
        "auroc over visual voxels": maps,
        "similarity": similarity,
        "ablation": ablation,
        "reached": {
            "maps of shapes and colours": all(
                maps[kind]["fused"] >= maps[kind]["wanted"] for kind in ("shape", "colour")
            ),
            "present above absent": all(
                row["present"] > row["absent"] for row in similarity.values()
            ),
            "ablation at least twice random": located >= WANTED_RATIO * max(random, 0) > 0
            or (random <= 0 < located),
        },
    }


def main() -> int:
    """Score, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="reference")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--ablations", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="trials that a volume averages")
    parser.add_argument("--threshold", type=float, help="of ablation (default: the bundle's)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.bundle == "reference":
        args.bundle = ROOT / "runtime/reference/bundle"
    about = machine()
    scenes = draw_scenes(args.trials, np.random.default_rng(100), held_out=True)
    with Decoder.open(args.bundle, warm=False) as decoder:
        scores = Scores(decoder.stages.need_localizer())
        for i, subject, image in trials(scenes, args.repeats, seed=4000):
            scores.add(scenes, i, subject, image, decoder)
        ablated = ablations(decoder, args.ablations, args.repeats, args.threshold)
        spec = decoder.bundle.manifest.raw["localization"]
    write(
        {
            "question": "concept localization on the reference world",
            **about,
            "trials": args.trials,
            "averaged trials": args.repeats,
            "carriers": CARRIERS,
            "localization": {k: spec[k] for k in ("score", "cam", "layer", "baseline", "fusion")},
            **summary(scores, ablated),
        },
        args.json,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
