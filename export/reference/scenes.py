"""The scenes of the reference world: what the simulated observer sees.

A scene is a plain background with one to three objects, each with a shape, a colour, a size and
one of nine places. No two objects of a scene share a shape or a colour, so that a question about
"the circle" has one answer. Scenes are held as integer arrays so that thousands are drawn at once;
`Scene` is the view that people and texts use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta", "white", "black")
SIZES = ("small", "large")
PLACES = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
BACKGROUNDS = ("grey", "brown", "slate", "olive")

COLOUR_RGB = np.array(
    [
        (225, 35, 35), (35, 190, 60), (45, 65, 230), (240, 220, 40),
        (40, 215, 225), (220, 50, 210), (250, 250, 250), (8, 8, 8),
    ],
    dtype=np.float32,
) / 255  # fmt: skip
BACKGROUND_RGB = np.array(
    [(128, 128, 128), (125, 85, 50), (75, 90, 125), (110, 120, 55)], dtype=np.float32
) / np.float32(255)
IMAGE_SIZE = 64
RADIUS_PX = (6.5, 9.5)
"""Half extent of a small and of a large object in pixels; cells of the three by three grid are 21
pixels wide.
"""
HELD_OUT_SHARE = 8
"""One scene in this many, chosen by its content, is never trained on."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene, by name."""

    shape: str
    colour: str
    size: str
    place: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene by name; things stand in reading order of their places."""

    things: tuple[Thing, ...]
    background: str


@dataclass(frozen=True, slots=True)
class Scenes:
    """A batch of scenes as integers.

    Attributes
    ----------
    things : (B, 3, 4) int8
        Shape, colour, size, place of up to three objects in reading order; -1 where there is none.
    background : (B,) int8
        Index into `BACKGROUNDS`.
    """

    things: NDArray[np.int8]
    background: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.background)

    def __getitem__(self, index: NDArray[np.intp] | slice) -> Scenes:
        return Scenes(self.things[index], self.background[index])

    def named(self, i: int) -> Scene:
        """Scene `i` by name."""
        rows = [r for r in self.things[i] if r[0] >= 0]
        things = tuple(Thing(SHAPES[s], COLOURS[c], SIZES[z], PLACES[p]) for s, c, z, p in rows)
        return Scene(things, BACKGROUNDS[self.background[i]])

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """(B,) bool: which scenes belong to the test set, by a hash of their content."""
        digits = (self.things.astype(np.int64) + 1).reshape(len(self), -1)
        code = self.background.astype(np.int64)
        for column in digits.T:
            code = code * 11 + column
        mixed = (code.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        return mixed % np.uint64(HELD_OUT_SHARE) == 0


def draw_scenes(count: int, rng: np.random.Generator, held_out: bool = False) -> Scenes:
    """Random scenes of the training set, or of the held-out set.

    Parameters
    ----------
    count : int
        Scenes to return.
    rng : numpy Generator
        Same state, same scenes.
    held_out : bool
        Which side of the split.
    """
    found: list[Scenes] = []
    have = 0
    while have < count:
        batch = _candidates(max(64, 2 * count * (HELD_OUT_SHARE if held_out else 1)), rng)
        kept = batch[np.flatnonzero(batch.held_out == held_out)]
        found.append(kept)
        have += len(kept)
    things = np.concatenate([s.things for s in found])[:count]
    return Scenes(things, np.concatenate([s.background for s in found])[:count])


def _candidates(count: int, rng: np.random.Generator) -> Scenes:
    def distinct(choices: int) -> NDArray[np.int8]:
        return np.argsort(rng.random((count, choices)), axis=1)[:, :3].astype(np.int8)

    things = np.stack(
        [
            distinct(len(SHAPES)),
            distinct(len(COLOURS)),
            rng.integers(0, 2, (count, 3), dtype=np.int8),
            np.sort(distinct(len(PLACES)), axis=1),
        ],
        axis=2,
    )
    absent = np.arange(3) >= rng.integers(1, 4, count)[:, None]
    things[absent] = -1
    # Fewer than three objects leave the first, lowest places in use; shuffle so that all places
    # are as likely.
    places = np.argsort(rng.random((count, len(PLACES))), axis=1)[:, :3]
    places = np.sort(np.where(absent, len(PLACES), places), axis=1)
    things[..., 3] = np.where(absent, -1, places)
    return Scenes(things, rng.integers(0, len(BACKGROUNDS), count, dtype=np.int8))


def _stencils() -> NDArray[np.float32]:
    """(shapes, sizes, 21, 21) float32 coverage of each object in its cell, drawn 8 times too large
    and averaged.
    """
    cell, scale = 21, 8
    out = np.zeros((len(SHAPES), len(SIZES), cell, cell), np.float32)
    for s, shape in enumerate(SHAPES):
        for z, radius in enumerate(RADIUS_PX):
            image = Image.new("L", (cell * scale, cell * scale))
            _pen(ImageDraw.Draw(image), shape, cell * scale / 2, radius * scale)
            fine = np.asarray(image, np.float32).reshape(cell, scale, cell, scale) / 255
            out[s, z] = fine.mean((1, 3))
    return out


def _pen(pen: ImageDraw.ImageDraw, shape: str, c: float, r: float) -> None:
    if shape == "circle":
        pen.ellipse((c - r, c - r, c + r, c + r), fill=255)
    elif shape == "square":
        q = 0.88 * r
        pen.rectangle((c - q, c - q, c + q, c + q), fill=255)
    elif shape == "triangle":
        pen.polygon([(c, c - r), (c + r, c + 0.85 * r), (c - r, c + 0.85 * r)], fill=255)
    elif shape == "cross":
        q = 0.32 * r
        pen.rectangle((c - r, c - q, c + r, c + q), fill=255)
        pen.rectangle((c - q, c - r, c + q, c + r), fill=255)
    elif shape == "star":
        angles = -np.pi / 2 + np.pi / 5 * np.arange(10)
        radii = np.where(np.arange(10) % 2 == 0, 1.08 * r, 0.45 * r)
        pen.polygon(
            [(c + d * np.cos(a), c + d * np.sin(a)) for a, d in zip(angles, radii, strict=True)],
            fill=255,
        )
    else:
        pen.ellipse((c - r, c - r, c + r, c + r), fill=255)
        q = 0.55 * r
        pen.ellipse((c - q, c - q, c + q, c + q), fill=0)


_STENCILS = _stencils()


def render(scenes: Scenes) -> NDArray[np.float32]:
    """Pictures of the scenes.

    Returns
    -------
    (B, 64, 64, 3) float32
        RGB in 0..1.
    """
    images = np.broadcast_to(
        BACKGROUND_RGB[scenes.background][:, None, None], (len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3)
    ).copy()
    for slot in range(3):
        for i in np.flatnonzero(scenes.things[:, slot, 0] >= 0):
            shape, colour, size, place = scenes.things[i, slot]
            y, x = 21 * (place // 3), 21 * (place % 3)
            cover = _STENCILS[shape, size][..., None]
            window = images[i, y : y + 21, x : x + 21]
            window += cover * (COLOUR_RGB[colour] - window)
    return images
