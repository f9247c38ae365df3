"""com.microsoft.GroupNorm in standard operators, which the CPU can run: for comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .graph_index import DOMAIN
from .group_norm_operator import OPERATOR


def in_parts(model: ModelProto) -> ModelProto:
    """A copy of the model with every such operator in standard ones.

    They are not those that the exporter writes: mean and variance are reductions over the layout of
    the operator, channels innermost, in float32, so that its meaning is what is compared.
    """
    plain = ModelProto()
    plain.CopyFrom(model)
    nodes: list[NodeProto] = []
    types = {value.name: value.type.tensor_type for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == OPERATOR and node.domain == DOMAIN:
            nodes += _parts(plain, node, types[node.input[0]])
        else:
            nodes.append(node)
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain


def _parts(model: ModelProto, node: NodeProto, kind: Any) -> list[NodeProto]:
    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    batch, height, width, channels = (d.dim_value for d in kind.shape.dim)
    groups = told["groups"]
    source, scale, shift = node.input
    name, made = node.name, list[NodeProto]()

    def constant(part: str, values: NDArray[Any]) -> str:
        model.graph.initializer.append(numpy_helper.from_array(values, f"{name}.{part}"))
        return f"{name}.{part}"

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        output = f"{name}.part{len(made)}"
        made.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    split = constant("split", np.array([batch, height * width, groups, channels // groups]))
    whole = constant("whole", np.array([batch, height, width, channels]))
    axes = constant("axes", np.array([1, 3]))
    epsilon = constant("epsilon", np.array([told["epsilon"]], np.float32))
    x = add("Reshape", add("Cast", source, to=TensorProto.FLOAT), split)
    centred = add("Sub", x, add("ReduceMean", x, axes, keepdims=1))
    variance = add("ReduceMean", add("Mul", centred, centred), axes, keepdims=1)
    y = add("Div", centred, add("Sqrt", add("Add", variance, epsilon)))
    y = add("Add", add("Mul", add("Reshape", y, whole), scale), shift)
    if told["activation"]:
        y = add("Mul", y, add("Sigmoid", y))
    made.append(helper.make_node("Cast", [y], list(node.output), to=kind.elem_type))
    return made
