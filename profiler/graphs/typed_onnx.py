"""Half precision for an ONNX graph: the types are in the graph itself, as strongly typed networks require.

Feature maps are half precision: convolutions, matmuls, and operators that normalise, activate, add and resize their
results. Boxes, scores and their selection stay float32: a half has 11 significant bits and cannot resolve fractions of
a pixel from 1024 pixels on.
"""

import copy
from collections.abc import Collection, Iterable, Iterator

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from profiler.errors import UserError, first_line
from profiler.graphs.export import ExportError, captured_names, in_modules, replace_nodes
from profiler.precision import PRECISIONS

__all__ = ["HALF_TYPES", "dense_nodes", "typed_onnx"]

HALF_TYPES: dict[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""ONNX element type of each half precision."""

_DENSE = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_FOLLOWING = {
    *("InstanceNormalization", "LayerNormalization", "GroupNormalization", "BatchNormalization"),
    *("Relu", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Gelu", "Elu", "Mish"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"),
    *("Reshape", "Transpose", "Concat", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Split", "Slice", "Gather"),
    *("Expand", "Pad", "DepthToSpace", "SpaceToDepth"),
}
"""Operators that compute in half precision if all of their inputs are half."""
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Clip", "Sigmoid", "Tanh", "Max", "Min", "Sum"}
"""As above, but only on feature maps; on fewer axes they decode boxes and scores."""
_MAP_AXES = 4
_SCALES = {"Resize": (1, 2)}
"""Inputs, by position, that are float32 whatever the data's type."""


def typed_onnx(
    model: onnx.ModelProto, precision: str, *, keep_io: bool = False, keep_fp32: Collection[str] = ()
) -> onnx.ModelProto:
    """Copy a float32 model with its feature maps in another precision.

    Args:
        model: from :func:`profiler.graphs.export.to_onnx`, with static shapes.
        precision: ``fp32`` (an unchanged copy), ``fp16`` or ``bf16``.
        keep_io: leave inputs and outputs float32. Otherwise, as between the blocks of a half-precision network, an
            input is half if all its readers are, and an output if it is computed in half.
        keep_fp32: names of modules that stay float32.

    Raises:
        UserError: unknown precision.
        ExportError: a weight does not fit into the type, or the graph can not be converted.
    """
    if precision == "fp32":
        return copy.deepcopy(model)
    if precision not in HALF_TYPES:
        raise UserError(f"a precision is one of fp32, {', '.join(HALF_TYPES)}, but got {precision!r}")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the graph's types can not be inferred: {first_line(error)}") from error
    return _Conversion(inferred, precision, keep_io, keep_fp32).run()


def dense_nodes(model: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    """Return the convolutions and matmuls of a graph."""
    return tuple(node for node in model.graph.node if node.op_type in _DENSE)


class _Conversion:
    def __init__(self, model: onnx.ModelProto, precision: str, keep_io: bool, keep_fp32: Collection[str]) -> None:
        self._model = model
        self._graph = model.graph
        self._half = HALF_TYPES[precision]
        self._precision = precision
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        for node in self._graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._weights[node.output[0]] = node.attribute[0].t
        values = (*self._graph.input, *self._graph.value_info, *self._graph.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types |= {name: tensor.data_type for name, tensor in self._weights.items()}
        self._axes = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._graph.node:
            for name in (*node.input, *captured_names(node)):
                self._readers.setdefault(name, []).append(node)
        self._keep_io = keep_io
        self._keep_fp32 = keep_fp32
        # half tensors of the new graph; sources (inputs, casts of integers) take the type of their readers
        self._halves: set[str] = set()
        self._half_nodes: set[int] = set()

    def run(self) -> onnx.ModelProto:
        self._decide()
        self._rewrite()
        # the old graph's types no longer hold
        del self._graph.value_info[:]
        return self._model

    def _decide(self) -> None:
        inputs = () if self._keep_io else self._graph.input
        sources = {value.name for value in inputs if self._is_float(value.name) and self._is_map(value.name)}
        sources |= {node.output[0] for node in self._graph.node if self._is_source(node)}
        outputs = {value.name for value in self._graph.output} if self._keep_io else set()
        while True:
            self._halves = set(sources)
            self._half_nodes = {index for index, node in enumerate(self._graph.node) if self._computes_half(node)}
            half_nodes = {id(self._graph.node[index]) for index in self._half_nodes}
            refused = {
                name
                for name in sources
                if name in outputs or not all(id(node) in half_nodes for node in self._readers.get(name, ()))
            }
            if not refused:
                return
            sources -= refused

    def _is_float(self, name: str) -> bool:
        return self._types.get(name) == TensorProto.FLOAT

    def _is_map(self, name: str) -> bool:
        """By its axes, or a dense reader: boxes that only move through the graph must not be rounded."""
        return self._axes.get(name, 0) >= _MAP_AXES or any(
            node.op_type in _DENSE for node in self._readers.get(name, ())
        )

    def _is_source(self, node: onnx.NodeProto) -> bool:
        """Whether a node casts integers, such as an image, to floats."""
        return (
            node.op_type == "Cast"
            and not in_modules(node, self._keep_fp32)
            and self._is_float(node.output[0])
            and not self._is_float(node.input[0])
            and self._axes.get(node.output[0], 0) >= _MAP_AXES
        )

    def _computes_half(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes in half, given those before it; records its outputs."""
        if in_modules(node, self._keep_fp32):
            return False
        if node.op_type == "Cast":
            return node.output[0] in self._halves
        data = self._data(node)
        computed = [name for name in data if name not in self._weights]
        all_half = bool(computed) and all(name in self._halves for name in computed)
        if node.op_type in _DENSE:
            half = all_half or any(name in self._weights for name in data)
        elif node.op_type in _FOLLOWING:
            half = all_half
        elif node.op_type in _ELEMENTWISE:
            half = all_half and self._axes.get(node.output[0], 0) >= _MAP_AXES
        else:
            half = False
        if half and data:
            self._halves |= {name for name in node.output if self._is_float(name)}
        return half and bool(data)

    def _data(self, node: onnx.NodeProto) -> list[str]:
        aside = _SCALES.get(node.op_type, ())
        return [name for position, name in enumerate(node.input) if position not in aside and self._is_float(name)]

    def _rewrite(self) -> None:
        nodes: list[onnx.NodeProto] = []
        made: set[str] = set()

        def as_type(name: str, half: bool) -> str:
            """Return the name of a float tensor in a type, casting it once if needed."""
            if half == (name in self._halves):
                return name
            other = f"{name}_{self._precision if half else 'fp32'}"
            if other not in made:
                made.add(other)
                if name in self._weights:
                    self._graph.initializer.append(self._converted(self._weights[name], other))
                else:
                    to = self._half if half else TensorProto.FLOAT
                    nodes.append(helper.make_node("Cast", [name], [other], name=f"cast_{other}", to=to))
            return other

        for index, node in enumerate(self._graph.node):
            half = index in self._half_nodes
            if any(name in self._halves for name in captured_names(node)):
                raise ExportError(
                    f"{node.op_type} {node.name} reads a {self._precision} feature map inside its subgraph"
                )
            if half and node.op_type == "Cast":
                next(attribute for attribute in node.attribute if attribute.name == "to").i = self._half
            else:
                aside = _SCALES.get(node.op_type, ())
                for position, name in enumerate(node.input):
                    if self._is_float(name) and position not in aside:
                        node.input[position] = as_type(name, half)
            nodes.append(node)
        for value in (*self._graph.input, *self._graph.output):
            if value.name in self._halves and not self._keep_io:
                value.type.tensor_type.elem_type = self._half
        if self._keep_io:
            nodes += self._float_outputs(nodes)
        replace_nodes(self._graph, nodes)

    def _float_outputs(self, nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        """Yield casts that keep the outputs' names and types; the computed tensors are renamed."""
        renamed = {value.name: f"{value.name}_{self._precision}" for value in self._graph.output}
        renamed = {name: other for name, other in renamed.items() if name in self._halves}
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        for name, other in renamed.items():
            yield helper.make_node("Cast", [other], [name], name=f"cast_{name}", to=TensorProto.FLOAT)

    def _converted(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        narrow = values.to(PRECISIONS[self._precision])
        if not torch.equal(narrow.isfinite(), values.isfinite()):
            raise ExportError(f"{tensor.name} does not fit into {self._precision}: it reaches {values.abs().max():g}")
        content = narrow.contiguous().view(torch.int16).numpy().tobytes()
        return TensorProto(name=name, data_type=self._half, dims=tensor.dims, raw_data=content)
