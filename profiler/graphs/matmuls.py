"""Matmuls with weights as 1x1 convolutions, for builders that lack matmuls in some precision."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from profiler.graphs.export import replace_nodes

__all__ = ["matmuls_as_convolutions"]


def matmuls_as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with every ``Gemm`` and ``MatMul`` of a tensor with a weight matrix replaced by a ``Conv``.

    ``x @ w`` becomes a convolution of feature maps of one position, ``w @ x`` one of feature maps of one column, with
    the same multiplications and additions. Shapes must be inferred or inferable.
    """
    copied = onnx.shape_inference.infer_shapes(model)
    graph = copied.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        found = _weight(node, weights, axes)
        if found is None:
            nodes.append(node)
            continue
        data, weight, added = found
        name = node.output[0]
        graph.initializer.append(numpy_helper.from_array(weight[:, :, None, None], f"{name}_weight"))
        graph.initializer.append(numpy_helper.from_array(np.array(added), f"{name}_axes"))
        bias = [node.input[2]] if node.op_type == "Gemm" and len(node.input) > 2 else []
        nodes += [
            helper.make_node("Unsqueeze", [data, f"{name}_axes"], [f"{name}_map"], name=f"{node.name}_map"),
            helper.make_node("Conv", [f"{name}_map", f"{name}_weight", *bias], [f"{name}_matmul"], name=node.name),
            helper.make_node("Squeeze", [f"{name}_matmul", f"{name}_axes"], [name], name=f"{node.name}_rows"),
        ]
    replace_nodes(graph, nodes)
    return copied


def _weight(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], axes: dict[str, int]
) -> tuple[str, NDArray[np.generic], list[int]] | None:
    """Return a matmul's input, its weights ``(out, in)``, and the axes that make the input four-dimensional."""
    if node.op_type not in ("Gemm", "MatMul"):
        return None
    first, second = node.input[:2]
    flags = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if any(flags.get(name, default) != default for name, default in (("transA", 0), ("alpha", 1.0), ("beta", 1.0))):
        return None
    if second in weights and axes.get(first) == 2 and len(weights[second].dims) == 2:
        matrix = numpy_helper.to_array(weights[second])
        return first, matrix if flags.get("transB") else np.ascontiguousarray(matrix.T), [2, 3]
    if first in weights and axes.get(second) == 3 and len(weights[first].dims) == 2:
        return second, numpy_helper.to_array(weights[first]), [3]
    return None
