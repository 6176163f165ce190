"""Graphs to build engines from: plain operators, typed, the same bytes for the same module."""

import copy
from collections.abc import Sequence

import onnx
from torch import Tensor, nn

from profiler.graphs.export import to_onnx, to_onnx_many
from profiler.graphs.matmuls import matmuls_as_convolutions
from profiler.graphs.quantized_onnx import quantized_block
from profiler.graphs.typed_onnx import typed_onnx

__all__ = ["engine_graphs"]


def engine_graphs(
    items: Sequence[tuple[nn.Module, Sequence[Tensor]]], precision: str, *, convolutions: bool = False
) -> list[bytes | Exception]:
    """Export several modules at once, which is much faster than singly.

    Args:
        items: modules with real weights, and one tensor per positional argument.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``. In half precision an input read only as feature maps is of
            that type, see :func:`profiler.graphs.typed_onnx.typed_onnx`; in ``int8`` activation ranges are those of the
            given tensors.
        convolutions: write matmuls with weights as 1x1 convolutions.

    Returns:
        Per item a serialised graph with inputs ``input_1``, ``input_2``, ... in order, or the error of its export.
    """
    models: list[onnx.ModelProto | None] = [None] * len(items)
    if len(items) > 1:
        try:
            models = list(to_onnx_many(items, operators="plain"))
        except Exception:  # noqa: BLE001 - only a shortcut: singly exported, the faulty module raises its own error
            models = [None] * len(items)
    graphs: list[bytes | Exception] = []
    for (module, tensors), exported in zip(items, models, strict=True):
        try:
            whole = exported or to_onnx(module, tensors, operators="plain")
            if convolutions:  # before quantisation turns weights into computed tensors
                whole = matmuls_as_convolutions(whole)
            if precision == "int8":
                typed = quantized_block(whole, module, tensors, symmetric=True)
            else:
                typed = typed_onnx(whole, precision)
            graphs.append(_renamed(typed).SerializeToString(deterministic=True))
        except Exception as error:  # noqa: BLE001 - any error is this module's result
            graphs.append(error)
    return graphs


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rename by position: the exporter's names, and thus the hash, depend on the other modules exported alongside."""
    graph = model.graph
    names = {"": ""}  # an omitted optional input
    for value in graph.input:
        names.setdefault(value.name, f"input_{len(names)}")
    weights = {tensor.name: tensor for tensor in graph.initializer}
    _rename_nodes(graph, names)
    for value in (*graph.input, *graph.output):
        value.name = names.setdefault(value.name, f"value_{len(names)}")
    used = [(names[name], tensor) for name, tensor in weights.items() if name in names]
    for name, tensor in used:
        tensor.name = name
    ordered = sorted((tensor for _, tensor in used), key=lambda tensor: int(tensor.name.rpartition("_")[2]))
    renamed = copy.deepcopy(model)
    renamed.ClearField("producer_name")
    renamed.ClearField("producer_version")
    graph = renamed.graph
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(ordered)
    graph.name = "workload"
    return renamed


def _rename_nodes(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        for name in node.input:
            names.setdefault(name, f"value_{len(names)}")
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:  # outer names are renamed already
                for value in attribute.g.input:
                    value.name = names.setdefault(value.name, f"value_{len(names)}")
                _rename_nodes(attribute.g, names)
                for value in attribute.g.output:
                    value.name = names[value.name]
                del attribute.g.value_info[:]
        for name in node.output:
            names.setdefault(name, f"value_{len(names)}")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
