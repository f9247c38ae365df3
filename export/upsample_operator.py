"""Upsampling and the convolution behind it as one operator: ConvTranspose, which ONNX itself has.

A decoder doubles height and width by taking each pixel four times, and convolves what comes out: of
the nine weights that meet a pixel of the output, several meet the same pixel of the input. With
those added up beforehand each of the four outputs of a pixel is a convolution of 2 x 2, and the
four together are a transposed convolution with a stride of 2 and weights of 4 x 4. Along one axis,

    y[2 j]     = w0 x[j - 1] + (w1 + w2) x[j]
    y[2 j + 1] = (w0 + w1) x[j] + w2 x[j + 1]

so the weights are (w2, w1 + w2, w0 + w1, w0). That is 16 products where 36 were, and the larger
picture is never written down. What is computed is the same but for the rounding of the sums of
weights.

On an H200 it brings the full-size VAE from 7.7 ms to 6.8 and the tiny decoder from 0.94 to 0.79; in
the U-Net it makes no difference (`benchmarks/gpu_variants.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .graph_index import GraphIndex, LeftError, Told, fuse_file, rewrite

OPERATOR = "ConvTranspose"
_SUMS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
"""(4, 3): which weights of a convolution make those of the transposed one, along an axis."""
_PLAIN = {
    "kernel_shape": [3, 3],
    "pads": [1] * 4,
    "strides": [1, 1],
    "dilations": [1, 1],
    "group": 1,
    "auto_pad": b"NOTSET",
}
_TAKING_EACH_TWICE = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
}
"""Ways to name a pixel of the smaller picture that all mean, at twice the size, its half."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def fuse_upsamplings_file(path: Path) -> Told:
    """Rewrite an `.onnx` file in place, as `fuse_file` does."""
    return fuse_file(path, fuse_upsamplings)


def fuse_upsamplings(model: ModelProto, folder: Path | None = None) -> Told:
    """Replace every doubling of a picture that a convolution of 3 x 3 follows, in place.

    Parameters
    ----------
    model : ModelProto
        Static shapes, float32 or float16; not changed where nothing is replaced.
    folder : Path, optional
        Where weights lie that are not in the model itself.

    Returns
    -------
    told : Told
        How many were replaced, and why the other resizings were not.
    """
    graph, told = GraphIndex(model, folder), Told(OPERATOR, domain="ai.onnx")
    replaced: dict[int, list[NodeProto]] = {}
    for resize in [node for node in model.graph.node if node.op_type == "Resize"]:
        try:
            _check_doubles(graph, resize)
            convolution = graph.only_user(resize.output[0])
            weights = _weights(graph, convolution)
        except LeftError as why:
            told.left[str(why)] += 1
            continue
        name = f"upsample_{told.fused}"
        model.graph.initializer.append(numpy_helper.from_array(weights, f"{name}.weights"))
        replaced[id(resize)] = []
        replaced[id(convolution)] = [_operator(resize, convolution, name)]
        told.fused += 1
    if told.fused:
        rewrite(model, replaced)
    return told


def _check_doubles(graph: GraphIndex, resize: NodeProto) -> None:
    """LeftError unless each pixel of (batch, channels, height, width) is taken four times."""
    source, told = resize.input[0], _attributes(resize)
    before, after = graph.shape(source), graph.shape(resize.output[0])
    if len(before) != 4 or after != (*before[:2], 2 * before[2], 2 * before[3]):
        raise LeftError("it does not double height and width")
    way = (
        told.get("coordinate_transformation_mode", b"half_pixel").decode(),
        told.get("nearest_mode", b"round_prefer_floor").decode(),
    )
    if told.get("mode", b"nearest") != b"nearest" or way not in _TAKING_EACH_TWICE:
        raise LeftError("it does not take each pixel twice")
    if graph.type(source) not in _FLOATS:
        raise LeftError("it is neither float32 nor float16")


def _weights(graph: GraphIndex, convolution: NodeProto) -> NDArray[Any]:
    """(in, out, 4, 4) weights of the transposed convolution, summed in float32."""
    told = {**_PLAIN, "pads": [0] * 4, **_attributes(convolution)}  # ONNX's own default
    if convolution.op_type != "Conv" or told != _PLAIN:
        raise LeftError("no plain convolution of 3 x 3 follows")
    weights = graph.values(convolution.input[1])
    if weights is None or weights.shape[2:] != (3, 3):
        raise LeftError("the weights behind it are not constants of 3 x 3")
    summed = np.einsum("oihw,yh,xw->ioyx", weights.astype(np.float32), _SUMS, _SUMS, optimize=True)
    return np.ascontiguousarray(summed, weights.dtype)


def _operator(resize: NodeProto, convolution: NodeProto, name: str) -> NodeProto:
    bias = list(convolution.input[2:])
    return helper.make_node(
        OPERATOR,
        [resize.input[0], f"{name}.weights", *bias],
        list(convolution.output),
        name=name,
        kernel_shape=[4, 4],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    )


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
