"""Export modules to ONNX: static types, checked."""

import ast
import copy
import importlib
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from profiler.errors import named_line

if TYPE_CHECKING:
    from kernels.onnx_ops import Operators

__all__ = ["ExportError", "captured_names", "in_modules", "replace_nodes", "to_onnx", "to_onnx_many"]

OPSET = 18
"""ONNX operator set of every export: the exporter's native one, supported by all backends here."""

_KNOWN_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),  # torch 2.11 using itself
)
"""Internal warnings of torch and onnxscript, which no caller can act on."""


_REGISTRIES: dict[Any, Any] = {}


class ExportError(RuntimeError):
    """The module has no ONNX form; the message is the cause in one line."""


def to_onnx(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = False,
    operators: "Operators" = "native",
) -> onnx.ModelProto:
    """Export a module to an ONNX model; the same module gives the same bytes.

    Args:
        module: with real weights; exported in evaluation mode, and its own mode restored.
        example_inputs: one tensor per positional argument.
        input_names: one per input; ``input_0``, ``input_1``, ... if ``None``.
        output_names: one per output tensor; the exporter's if ``None``.
        dynamic_batch: leave the first axis of every input open. The example's must then be at least 2, because the
            tracer takes a 1 for a constant.
        operators: ``native`` or ``plain``, see :mod:`kernels.onnx_ops`; plain graphs are always static.

    Raises:
        ExportError: the module can not be exported, or the result is not valid ONNX.
    """
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError("a module must have real weights to be exported, but got one on the meta device")
    dynamic_shapes = None
    if dynamic_batch:
        if any(tensor.ndim < 1 or tensor.shape[0] < 2 for tensor in example_inputs):
            raise ValueError(
                "an open batch needs an example batch of at least 2, but got "
                f"{[tuple(tensor.shape) for tensor in example_inputs]}"
            )
        batch = torch.export.Dim("batch", min=1)
        dynamic_shapes = tuple({0: batch} for _ in example_inputs)
    names = list(input_names or (f"input_{index}" for index in range(len(example_inputs)))), list(output_names or ())
    model = _trace(module, tuple(example_inputs), *names, dynamic_shapes, operators)
    _name_nodes(model.graph)
    _fold_weights(model.graph)
    _strip(model)
    _check(model)
    return model


def to_onnx_many(
    items: Sequence[tuple[nn.Module, Sequence[Tensor]]], *, operators: "Operators" = "native"
) -> list[onnx.ModelProto]:
    """Export several independent modules, each with its inputs, at once; names of inputs and outputs are arbitrary.

    The exporter spends most of its time on setup: sixteen blocks together take about a sixth of the time. Each model is
    then cut out of the common graph. Modules are exported as in :func:`to_onnx`.

    Raises:
        ExportError: some module can not be exported; exporting them singly shows which.
    """
    input_counts = [len(tensors) for _, tensors in items]
    output_counts: list[int] = []

    def note_outputs(counts: list[int]) -> None:
        output_counts[:] = counts  # of the last trace, should the exporter need several

    group = _SideBySide([module for module, _ in items], input_counts, note_outputs)
    # Cloned: the exporter takes one tensor given twice for one input.
    model = to_onnx(group, [tensor.clone() for _, tensors in items for tensor in tensors], operators=operators)
    names, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    models: list[onnx.ModelProto] = []
    for input_count, output_count in zip(input_counts, output_counts, strict=True):
        cut = _cut(model, names[:input_count], outputs[:output_count])
        for node in cut.graph.node:  # drop the module's index in the common graph
            node.name = _IN_ORDER.sub("", node.name)
        _check(cut)
        models.append(cut)
        names, outputs = names[input_count:], outputs[output_count:]
    return models


_IN_ORDER = re.compile(r"^modules_in_order\.\d+\.?")


class _SideBySide(nn.Module):
    """Several modules side by side, each on its own inputs."""

    def __init__(
        self, modules: Sequence[nn.Module], input_counts: Sequence[int], note_outputs: Callable[[list[int]], None]
    ) -> None:
        super().__init__()
        self.modules_in_order = nn.ModuleList(modules)
        self.input_counts = tuple(input_counts)
        # A function, because the exporter restores whatever a trace changes in the module itself.
        self.note_outputs = note_outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[list[Tensor]] = []
        rest = inputs
        for module, count in zip(self.modules_in_order, self.input_counts, strict=True):
            outputs.append([leaf for leaf in tree_leaves(module(*rest[:count])) if isinstance(leaf, Tensor)])
            rest = rest[count:]
        self.note_outputs([len(leaves) for leaves in outputs])
        return tuple(leaf for leaves in outputs for leaf in leaves)


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node's subgraphs read, including those defined inside."""
    names: set[str] = set()
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                names |= {*inner.input, *captured_names(inner)}
    return names


def _cut(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Cut out the part of a model that leads to some outputs; onnx's own extractor does not follow subgraphs."""
    graph = model.graph
    wanted, nodes = set(outputs), []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= {*node.input, *captured_names(node)}
    values = {value.name: value for value in (*graph.input, *graph.output)}
    cut = onnx.helper.make_graph(
        nodes[::-1],
        graph.name,
        [values[name] for name in inputs],
        [values[name] for name in outputs],
        initializer=[tensor for tensor in graph.initializer if tensor.name in wanted],
        value_info=[value for value in graph.value_info if value.name in wanted],
    )
    return onnx.helper.make_model(
        cut, ir_version=model.ir_version, opset_imports=model.opset_import, functions=model.functions
    )


def _trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],  # empty: the exporter's
    dynamic_shapes: Any,
    operators: "Operators",
) -> onnx.ModelProto:
    from kernels.onnx_ops import decompositions, translation_table

    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with warnings.catch_warnings(), _one_operator_registry(), _rules_by_operator():
            for category, message in _KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message, category)
            traced: Any = module
            if table := decompositions(operators):
                traced = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes, strict=False)
                traced = traced.run_decompositions(table)
                dynamic_shapes = None
            program = torch.onnx.export(
                traced,
                inputs,
                input_names=input_names,
                output_names=output_names or None,
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                custom_translation_table=translation_table(operators),
                optimize=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"the module has no ONNX form: {_root_cause(error)}") from error
    finally:
        for child, training in modes.items():
            child.training = training
    if program is None:
        raise ExportError("the module has no ONNX form: the exporter returned nothing")
    model = program.model_proto
    found = [value.name for value in model.graph.output]
    if output_names and found != output_names:
        raise ExportError(f"the outputs must be {output_names}, but the exported graph has {found}")
    return model


@contextmanager
def _one_operator_registry() -> Iterator[None]:
    """Let the exporter keep its list of operators between calls.

    Parsing some 500 operator definitions from source at every call is most of the time of a small export, though they
    never change within a process. If torch moves that function, exports still work, at the old speed.
    """
    try:
        owner: Any = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        original = owner.__dict__["from_torchlib"]
    except (ImportError, AttributeError, KeyError):
        yield
        return

    def remembered(cls: Any, *arguments: Any, **settings: Any) -> Any:
        key = (cls, arguments, tuple(sorted(settings.items())))
        if key not in _REGISTRIES:
            _REGISTRIES[key] = original.__func__(cls, *arguments, **settings)
        registry = copy.copy(_REGISTRIES[key])
        # the caller adds its own operators: give it lists of its own
        registry.functions = {name: list(forms) for name, forms in registry.functions.items()}
        return registry

    owner.from_torchlib = classmethod(remembered)
    try:
        yield
    finally:
        owner.from_torchlib = original


@contextmanager
def _rules_by_operator() -> Iterator[None]:
    """Try the optimiser's rewrite rules only at nodes of the operator that they replace.

    The optimiser tries all rules at all nodes, and lists the graph again for each rule of several outputs: up to half
    the time of exporting thousands of nodes. If onnxscript moves that function, exports still work, at the old speed.
    """
    try:
        owner: Any = importlib.import_module("onnxscript.rewriter._matcher").SimplePatternMatcher
        original = owner.match
    except (ImportError, AttributeError):
        yield
        return

    def match(rule: Any, model: Any, graph: Any, node: Any, **settings: Any) -> Any:
        operator = rule.pattern.output_nodes[0].op_identifier()
        if operator is not None and operator[:2] != (node.domain, node.op_type):
            return None
        return original(rule, model, graph, node, **settings)

    owner.match = match
    try:
        yield
    finally:
        owner.match = original


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is no valid ONNX: {_root_cause(error)}") from error


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name nodes after the module that they compute, as in ``neck.smooth.0/Conv_57``, so that names can be selected."""
    for index, node in enumerate(graph.node):
        scopes = {one.key: one.value for one in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
        *modules, _ = ast.literal_eval(scopes) or [""]  # from the root to the innermost module, then the operator
        node.name = f"{modules[-1] if modules else ''}/{node.op_type}_{index}"


def _fold_weights(graph: onnx.GraphProto) -> None:
    """Fold the ``Reshape`` that the exporter's optimiser leaves on large weights.

    Converting and quantising then find each weight as one tensor.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    folded: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type not in ("Reshape", "Transpose") or not all(name in weights for name in node.input):
            nodes.append(node)
            continue
        values = onnx.numpy_helper.to_array(weights[node.input[0]])
        if node.op_type == "Reshape":
            values = values.reshape(onnx.numpy_helper.to_array(weights[node.input[1]]))
        else:
            values = values.transpose(*(list(attribute.ints) for attribute in node.attribute))
        key = (node.input[0], values.shape, values.strides)
        if key not in folded:
            folded[key] = node.output[0]
            weights[node.output[0]] = onnx.numpy_helper.from_array(np.ascontiguousarray(values), node.output[0])
            graph.initializer.append(weights[node.output[0]])
        renamed[node.output[0]] = folded[key]
    if renamed:
        replace_nodes(graph, nodes)


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Replace a graph's nodes, and drop the weights that none of the new ones reads."""
    used = {name for node in nodes for name in (*node.input, *captured_names(node))}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def in_modules(node: onnx.NodeProto, modules: Collection[str]) -> bool:
    """Whether a node of an exported graph belongs to one of some modules, named from the root."""
    path = node.name.partition("/")[0]
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _strip(message: Any) -> None:
    """Drop the exporter's notes: source paths of the exporting machine, which would also change the file's hash."""
    for field, value in message.ListFields():
        if field.name == "metadata_props":
            del value[:]
        elif field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _strip(inner)


def _root_cause(error: BaseException) -> str:
    """Return the innermost cause in one line: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return named_line(error)
