"""Writes tests/graphs/encoder_full.onnx.gz: the paper's encoder in half precision, no weights.

    python -P tests/make_full_encoder.py

Tracing a graph of 154 million weights takes minutes, so its nodes and shapes are kept, and tests
fill in random weights (`filled`). To be run again when the encoder or the exporter changes.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import numpy as np

SKELETON = Path(__file__).parent / "graphs" / "encoder_full.onnx.gz"
WEIGHTS = "weights.data"
_SMALL = 1024
"""Bytes up to which a constant keeps its values: shapes and scales, not weights."""


def filled(folder: Path) -> Path:
    """The graph with random weights, written to a folder: 310 MB."""
    import onnx

    path = folder / "encoder.onnx"
    path.write_bytes(gzip.decompress(SKELETON.read_bytes()))
    model = onnx.load(path, load_external_data=False)
    rng = np.random.default_rng(0)
    block = (0.02 * rng.standard_normal(1 << 20)).astype(np.float16)
    with (folder / WEIGHTS).open("wb") as stream:
        for number, tensor in enumerate(model.graph.initializer):
            if not tensor.external_data:
                continue
            # no two alike: builders keep equal weights once
            values = np.resize(np.roll(block, 977 * number), int(np.prod(tensor.dims)))
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            stream.write(values.astype(kind).tobytes())
    return path


def main() -> None:
    """Trace the encoder, halve it, and keep everything but the weights."""
    import onnx
    import onnx_ir as ir
    import torch

    from scanside.export.half_precision import plan_half, to_half
    from scanside.export.ranges import largest_values
    from scanside.export.to_onnx import export_graph
    from scanside.export.vit3d import ViT3D, ViT3DConfig

    torch.manual_seed(0)
    config = ViT3DConfig(num_cubes=96)
    tokens = torch.randn(1, 96, config.cube**3)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "encoder.onnx"
        export_graph(ViT3D(config), {"tokens": tokens}, ("clip", "latent", "prefix"), path)
        model = ir.load(path)
        to_half(model, plan_half(model, largest_values(path, [{"tokens": tokens.numpy()}])))
        ir.save(model, path)
        skeleton = _without_weights(onnx.load(path))
    SKELETON.parent.mkdir(exist_ok=True)
    SKELETON.write_bytes(gzip.compress(skeleton, 9, mtime=0))


def _without_weights(model) -> bytes:
    import onnx

    offset = 0
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        if size <= _SMALL:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        offset += size
    return model.SerializeToString()


if __name__ == "__main__":
    main()
