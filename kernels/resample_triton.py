"""The fused kernel: from scanner volumes to tokens in one launch.

Needs triton, so nothing imports it at run time: `ahead_of_time.py` compiles it, and `launcher.py`
launches what was compiled. `variants.py` describes the arguments.

A program makes BLOCK elements: a tile of one cube, or several whole cubes where they are small. Its
lanes are numbered twice. Sampling numbers them along the axis on which the source is contiguous,
writing along k, on which the tokens are; where these differ the values change lanes through shared
memory, so that reads and writes are coalesced alike. Addresses, weights and statistics are computed
once and reused over a batch.

Sampling points are fixed-point numbers, int64 with 32 fractional bits: a sum is the same on every
card, whatever its float64 rate, and floor and weight are simply the upper and the lower word.
"""

# triton.language does not describe tuples to a type checker, nor what a kernel's parts return
# pyright: reportArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import triton
import triton.language as tl

_REACH = tl.constexpr(0.5 + 2**-16)
"""REACH of `resample_reference.py`; triton reads no other module's numbers."""


@triton.jit
def _quotient(lane: tl.tensor, inverse: tl.tensor):
    """`lane // size` for lanes below 1024 and sizes up to 1024; inverse is 2^20 // size + 1."""
    return (lane * inverse) >> 20


@triton.jit
def _sampling_digits(lane: tl.tensor, tile: tl.tuple, inverses: tl.tuple):
    """Position (n, i, j, k) in the tile of a lane whose neighbours on an axis are a rank apart."""
    n, i = _quotient(lane, inverses[0]), _quotient(lane, inverses[1])
    j, k = _quotient(lane, inverses[2]), _quotient(lane, inverses[3])
    i -= _quotient(i, inverses[4]) * tile[1]
    j -= _quotient(j, inverses[5]) * tile[2]
    k -= _quotient(k, inverses[6]) * tile[3]
    return n, i, j, k


@triton.jit
def _writing_digits(lane: tl.tensor, tile: tl.tuple, inverses: tl.tuple):
    """Position (n, i, j, k) in the tile of a lane of the C order in which tokens are written."""
    row = _quotient(lane, inverses[6])
    plane = _quotient(row, inverses[5])
    n = _quotient(plane, inverses[4])
    return n, plane - n * tile[1], row - plane * tile[2], lane - row * tile[3]


@triton.jit
def _place(
    digits: tl.tuple,
    first: tl.tuple,
    tile: tl.tuple,
    grid_shape: tl.tuple,
    corners_ptr: tl.tensor,
    N: tl.tensor,
    CUBE: tl.tensor,
):
    """Grid voxel and place in the tokens of each lane; whether it is an element, and inside."""
    n = (first[0] + digits[0]).to(tl.uint32).to(tl.int64)
    i, j, k = first[1] + digits[1], first[2] + digits[2], digits[3]
    valid = (digits[0] < tile[0]) & (n < N) & (i < CUBE) & (j < CUBE)
    offset = n * (CUBE * CUBE * CUBE) + ((i * CUBE + j) * CUBE + k)
    corners_ptr += n
    i += tl.load(corners_ptr, mask=valid, other=0)
    j += tl.load(corners_ptr + N, mask=valid, other=0)
    k += tl.load(corners_ptr + 2 * N.to(tl.int64), mask=valid, other=0)
    # as unsigned numbers, voxels in front of the grid lie far behind it
    i, j, k = i.to(tl.uint32), j.to(tl.uint32), k.to(tl.uint32)
    in_grid = (i < grid_shape[0].to(tl.uint32)) & (j < grid_shape[1].to(tl.uint32))
    return (i, j, k), offset, valid, in_grid & (k < grid_shape[2].to(tl.uint32))


@triton.jit
def _neighbours(voxel: tl.tuple, row: tl.tuple, SIZE: tl.tensor, stride: tl.tensor):
    """Offsets of both neighbours on one axis, weight of the upper one, and whether it is inside.

    Beyond the edge both neighbours are the edge's voxel, so that the weight there does not matter.
    """
    i, j, k = voxel[0].to(tl.int64), voxel[1].to(tl.int64), voxel[2].to(tl.int64)
    point = row[0] * i + row[1] * j + row[2] * k + row[3]
    low = (point >> 32).to(tl.int32)
    weight = point.to(tl.uint32).to(tl.float32) * (1 / (1 << 32))
    position = low.to(tl.float32) + weight
    inside = (position >= -_REACH) & (position <= SIZE.to(tl.float32) - 1 + _REACH)
    near = tl.minimum(tl.maximum(low, 0), SIZE - 1).to(tl.uint32)
    far = tl.minimum(tl.maximum(low + 1, 0), SIZE - 1).to(tl.uint32)
    stride = stride.to(tl.uint32)
    return near * stride, far * stride, weight, inside


@triton.jit
def _load(volume_ptr: tl.tensor, offset: tl.tensor, mask: tl.tensor, like_ptr: tl.tensor):
    """Stored values `offset` bytes into a volume, of the type to which `like_ptr` points."""
    at = (volume_ptr + offset).to(like_ptr.dtype, bitcast=True)
    return tl.load(at, mask=mask, other=0).to(tl.float32)


@triton.jit
def resample_kernel(
    volumes_ptr: tl.tensor,
    corners_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    inv_std_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    matrix: tl.tuple,
    volumes_stride: tl.tensor,
    strides: tl.tuple,
    shape: tl.tuple,
    grid_shape: tl.tuple,
    tile: tl.tuple,
    ranks: tl.tuple,
    inverses: tl.tuple,
    TILES_J: tl.tensor,
    CUBE: tl.tensor,
    N: tl.tensor,
    B: tl.tensor,
    B_STEP: tl.tensor,
    has_mean: tl.tensor,
    has_inv_std: tl.tensor,
    slope: tl.tensor,
    inter: tl.tensor,
    fill: tl.tensor,
    BLOCK: tl.constexpr,
):
    """Tokens (B, N, CUBE^3) of volumes (B, X, Y, Z)."""
    lane = tl.arange(0, BLOCK)
    batch = tl.program_id(2).to(tl.uint32) // TILES_J.to(tl.uint32)
    first_j = (tl.program_id(2) - batch.to(tl.int32) * TILES_J) * tile[2]
    first = (tl.program_id(0) * tile[0], tl.program_id(1) * tile[1], first_j)

    digits = _sampling_digits(lane, tile, inverses)
    voxel, offset, valid, in_grid = _place(digits, first, tile, grid_shape, corners_ptr, N, CUBE)
    x0, x1, x_weight, x_inside = _neighbours(voxel, matrix[0:4], shape[0], strides[0])
    y0, y1, y_weight, y_inside = _neighbours(voxel, matrix[4:8], shape[1], strides[1])
    z0, z1, z_weight, z_inside = _neighbours(voxel, matrix[8:12], shape[2], strides[2])
    inside = x_inside & y_inside & z_inside
    sampled = valid & in_grid & inside

    moved = (ranks[2] != 1) | (ranks[1] != tile[3])
    sampler = lane
    if moved:
        digits = _writing_digits(lane, tile, inverses)
        sampler = digits[0] * (tile[1] * tile[2] * tile[3]) + digits[1] * ranks[0]
        sampler = tl.minimum(sampler + digits[2] * ranks[1] + digits[3] * ranks[2], BLOCK - 1)
        _, offset, valid, in_grid = _place(digits, first, tile, grid_shape, corners_ptr, N, CUBE)
    normalised = valid & in_grid
    mean, inv_std = tl.full((BLOCK,), 0.0, tl.float32), tl.full((BLOCK,), 1.0, tl.float32)
    if has_mean != 0:
        mean = tl.load(mean_ptr + offset, mask=normalised, other=0.0)
    if has_inv_std != 0:
        inv_std = tl.load(inv_std_ptr + offset, mask=normalised, other=1.0)
    kept = normalised & (inv_std > 0)  # a masked voxel is 0 even where it holds NaN

    bytes_ptr = volumes_ptr.to(tl.pointer_type(tl.int8), bitcast=True)
    tokens_stride = N.to(tl.int64) * (CUBE * CUBE * CUBE)
    first_b = batch.to(tl.int64) * B_STEP
    for b in range(first_b, tl.minimum(first_b + B_STEP, B)):
        volume_ptr = bytes_ptr + b * volumes_stride
        v000 = _load(volume_ptr, x0 + y0 + z0, sampled, volumes_ptr)
        v001 = _load(volume_ptr, x0 + y0 + z1, sampled, volumes_ptr)
        v010 = _load(volume_ptr, x0 + y1 + z0, sampled, volumes_ptr)
        v011 = _load(volume_ptr, x0 + y1 + z1, sampled, volumes_ptr)
        v100 = _load(volume_ptr, x1 + y0 + z0, sampled, volumes_ptr)
        v101 = _load(volume_ptr, x1 + y0 + z1, sampled, volumes_ptr)
        v110 = _load(volume_ptr, x1 + y1 + z0, sampled, volumes_ptr)
        v111 = _load(volume_ptr, x1 + y1 + z1, sampled, volumes_ptr)
        v00 = v000 + z_weight * (v001 - v000)
        v01 = v010 + z_weight * (v011 - v010)
        v10 = v100 + z_weight * (v101 - v100)
        v11 = v110 + z_weight * (v111 - v110)
        v0 = v00 + y_weight * (v01 - v00)
        v1 = v10 + y_weight * (v11 - v10)
        value = (v0 + x_weight * (v1 - v0)) * slope + inter
        value = tl.where(inside, value, fill)
        if moved:
            value = tl.gather(value, sampler, 0)
        value = tl.where(kept, (value - mean) * inv_std, 0.0)
        target_ptr = tokens_ptr + b * tokens_stride + offset
        tl.store(target_ptr, value, mask=valid)
