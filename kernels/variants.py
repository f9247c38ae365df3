"""The variants that are compiled, and the launch contract: what a launch hands to the kernel.

Neither triton nor CUDA is needed here: compiler, launcher and tests share these lists.
"""

from __future__ import annotations

from dataclasses import dataclass

from .arguments import TOKEN_TYPES, VOLUME_TYPES

CONTRACT = 1
"""Grows when the meaning of an argument changes without its name or type."""

BLOCK = 1024
"""Elements that one program makes."""
WARPS = 16

TRITON_TYPES = {
    "int16": "i16",
    "uint16": "u16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
}

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities, ten times, that get machine code; later ones get PTX."""

ARGUMENTS: tuple[tuple[str, str, int], ...] = (
    ("volumes_ptr", "volume*", 1),
    ("corners_ptr", "i32*", 1),
    ("mean_ptr", "fp32*", 1),
    ("inv_std_ptr", "fp32*", 1),
    ("tokens_ptr", "token*", 1),
    ("matrix", "i64", 12),
    ("volumes_stride", "i64", 1),
    ("strides", "i32", 3),
    ("shape", "i32", 3),
    ("grid_shape", "i32", 3),
    ("tile", "i32", 4),
    ("ranks", "i32", 3),
    ("inverses", "i32", 7),
    ("TILES_J", "i32", 1),
    ("CUBE", "i32", 1),
    ("N", "i32", 1),
    ("B", "i32", 1),
    ("B_STEP", "i32", 1),
    ("has_mean", "i32", 1),
    ("has_inv_std", "i32", 1),
    ("slope", "fp32", 1),
    ("inter", "fp32", 1),
    ("fill", "fp32", 1),
)
"""Name, type and count in the order of the kernel's arguments.

volumes_ptr
    (B, X, Y, Z) at any strides that are at least 0; strides and volumes_stride are in bytes, and
    strides are unsigned.
corners_ptr
    (3, N) grid voxel of each cube's first element.
mean_ptr, inv_std_ptr
    (N, CUBE^3); 0 where has_mean or has_inv_std is 0.
tokens_ptr
    (B, N, CUBE^3) contiguous.
matrix
    Grid voxel to volume voxel, three rows of four, times 2^32.
shape, grid_shape
    X Y Z of a volume and of the model grid, in voxels.
tile
    Cubes, and elements along i, j and k, that a program makes: at most BLOCK together. The last is
    always CUBE.
ranks
    How many lanes apart neighbours along i, j and k are while sampling.
inverses
    2^20 // size + 1 of the tile's elements in one cube, of the three ranks, and of the tile's
    elements along i, j and k.
TILES_J
    Tiles of a cube along j.
B_STEP
    Volumes that one program makes one after the other.
"""

SCRATCH = ("global_scratch", "profile_scratch")
"""Pointers that triton adds after the arguments; 0 where the kernel needs no bytes of them."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel: stored type of the volumes, and type of the tokens."""

    volume: str
    tokens: str

    @property
    def name(self) -> str:
        """Name in the bundle, for example int16_to_float32."""
        return f"{self.volume}_to_{self.tokens}"

    def argument_types(self) -> tuple[tuple[str, str, int], ...]:
        """ARGUMENTS with the variant's own pointer types, as triton writes them."""
        volume, tokens = TRITON_TYPES[self.volume], TRITON_TYPES[self.tokens]
        types = {"volume*": f"*{volume}", "token*": f"*{tokens}", "i32*": "*i32", "fp32*": "*fp32"}
        return tuple((name, types.get(kind, kind), count) for name, kind, count in ARGUMENTS)


VARIANTS = tuple(Variant(volume, tokens) for volume in VOLUME_TYPES for tokens in TOKEN_TYPES)
