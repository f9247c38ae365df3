"""A GGUF file of Llama-3-8B's shape in q4_k_m or f16, of random blocks, in seconds.

    python benchmarks/random_gguf.py TOKENIZER_FOLDER /dev/shm/8b.gguf

Quantised blocks are written straight, with scales that give weights of the usual spread: nothing is
trained, converted or quantised. Which tensors are q6_K is llama.cpp's own choice for q4_k_m. How
fast such a file is read and computed does not hang on what is in it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from scanside.export.gguf_vocab import read_vocabulary

Bytes = NDArray[np.uint8]
Q4, Q6 = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K
F16, F32 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32
FILE_TYPES = {
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
}
PROJECTOR = "random"
POOL_BLOCKS = 60_000
"""Different blocks of a kind; tensors are cut from them."""
POOL_HALVES = 1 << 22
"""Different numbers in half precision, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama."""

    layers: int = 32
    width: int = 4096
    feed_forward: int = 14336
    heads: int = 32
    key_heads: int = 8
    vocabulary: int = 128256
    context: int = 8192


SMALL = Shape(layers=2, width=256, feed_forward=512, heads=4, key_heads=2, vocabulary=1024)
"""For a look at the writer itself."""


def block_pool(kind: gguf.GGMLQuantizationType, seed: int = 0) -> Bytes:
    """(blocks, bytes) of one kind: random codes, and scales for a spread of about 0.01.

    A q4_K weight is d * scale * code - dmin * min, of 6 and 4 bits each; d = 4e-5 and dmin = 7.5 d
    centre it. A q6_K weight is d * scale * (code - 32), with scales of 8 and codes of 6 bits. Each
    number of F16 is a block.
    """
    rng = np.random.default_rng(seed)
    if kind == F16:
        halves = 0.01 * rng.standard_normal(POOL_HALVES, np.float32)
        return halves.astype(np.float16).view(np.uint8).reshape(POOL_HALVES, 2)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    pool = rng.integers(0, 256, (POOL_BLOCKS, size), np.uint8)
    if kind == Q4:
        pool[:, :4] = np.array([4e-5, 3e-4], np.float16).view(np.uint8)
    else:
        pool[:, -2:] = np.array([7e-6], np.float16).view(np.uint8)
    return pool


def tensors(
    shape: Shape, quantization: str
) -> list[tuple[str, tuple[int, ...], gguf.GGMLQuantizationType]]:
    """Name, shape (rows, columns) and type of every tensor, as llama.cpp mixes q4_k_m."""
    width, keys = shape.width, shape.width // shape.heads * shape.key_heads
    mixed = quantization == "q4_k_m"
    q4, q6 = (Q4, Q6) if mixed else (F16, F16)
    found = [("token_embd.weight", (shape.vocabulary, width), q4)]
    for n in range(shape.layers):
        eighth = shape.layers // 8
        more = n < eighth or n >= 7 * eighth or (n - eighth) % 3 == 2
        fine = q6 if more else q4
        found += [
            (f"blk.{n}.attn_norm.weight", (width,), F32),
            (f"blk.{n}.attn_q.weight", (width, width), q4),
            (f"blk.{n}.attn_k.weight", (keys, width), q4),
            (f"blk.{n}.attn_v.weight", (keys, width), fine),
            (f"blk.{n}.attn_output.weight", (width, width), q4),
            (f"blk.{n}.ffn_norm.weight", (width,), F32),
            (f"blk.{n}.ffn_gate.weight", (shape.feed_forward, width), q4),
            (f"blk.{n}.ffn_up.weight", (shape.feed_forward, width), q4),
            (f"blk.{n}.ffn_down.weight", (width, shape.feed_forward), fine),
        ]
    found += [("output_norm.weight", (width,), F32)]
    return [*found, ("output.weight", (shape.vocabulary, width), q6)]


def write(
    tokenizer: Path, path: Path, shape: Shape, prefix_length: int, quantization: str = "q4_k_m"
) -> int:
    """Write the file; gives its bytes.

    Parameters
    ----------
    tokenizer : Path
        Folder of a Hugging Face tokenizer; its vocabulary is filled up with unused tokens.
    path : Path
    shape : Shape
    prefix_length : int
        Noted in the file, as exported ones have it.
    quantization : {"q4_k_m", "f16"}
    """
    writer = gguf.GGUFWriter(path, "llama")
    size = shape.width // shape.heads
    writer.add_file_type(FILE_TYPES[quantization])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(size)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_string("scanside.projector_sha256", PROJECTOR)
    writer.add_uint32("scanside.prefix_length", prefix_length)
    writer.add_uint32("scanside.width", shape.width)
    read_vocabulary(tokenizer, shape.vocabulary).write(writer, tokenizer)
    plan = tensors(shape, quantization)
    for name, rows, kind in plan:
        nbytes = _nbytes(rows, kind)
        writer.add_tensor_info(name, rows, np.dtype(np.float32), nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    kinds = {kind for *_, kind in plan if kind != F32}
    pools = {kind: block_pool(kind).ravel() for kind in sorted(kinds)}
    for n, (_, rows, kind) in enumerate(plan):
        if kind == F32:
            writer.write_tensor_data(np.ones(rows, np.float32))
        else:
            writer.write_tensor_data(_cut(pools[kind], _nbytes(rows, kind), n, kind))
    writer.close()
    return path.stat().st_size


def _nbytes(rows: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values = int(np.prod(rows, dtype=np.int64))
    if values % block:
        raise ValueError(f"{rows} does not divide into blocks of {block} values")
    return values // block * size


def _cut(pool: Bytes, nbytes: int, number: int, kind: gguf.GGMLQuantizationType) -> Bytes:
    """Blocks from another place of the pool for every tensor, around its end as often as needed."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    turned = np.roll(pool, -size * (7919 * number % (len(pool) // size)))
    return np.resize(turned, nbytes)


def main() -> int:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="folder of a Hugging Face tokenizer")
    parser.add_argument("path", type=Path)
    parser.add_argument("--prefix-length", type=int, default=257)
    parser.add_argument("--quantization", choices=sorted(FILE_TYPES), default="q4_k_m")
    parser.add_argument("--small", action="store_true", help="two layers, to look at the writer")
    args = parser.parse_args()
    shape = SMALL if args.small else Shape()
    size = write(args.tokenizer, args.path, shape, args.prefix_length, args.quantization)
    print(f"{args.path}: {size / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
