"""Post-training quantisation of an ONNX graph to 8 bits: QDQ nodes around convolutions and matmuls.

Weights are signed and symmetric, with one scale per channel. Activation ranges come from calibration images, by ONNX
Runtime's quantiser. The format of activations depends on the backend: TensorRT takes symmetric signed integers; ONNX
Runtime multiplies unsigned by signed integers faster, and a zero point gives non-negative activations the full eight
bits. Its weights have seven bits: on x86 processors without VNNI a sum of two 8-bit products saturates 16 bits (ONNX
Runtime's documentation, "Quantize ONNX models"), and a file has to be right on every processor.
"""

import copy
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from torch import Tensor, nn

from profiler.errors import BackendUnavailableError, named_line
from profiler.graphs.export import ExportError, in_modules
from profiler.graphs.typed_onnx import dense_nodes

__all__ = ["float_layers", "quantized_block", "quantized_layers", "quantized_onnx"]

_PREPARED = {"key": "onnx.quant.pre_process", "value": "onnxruntime.quant"}
"""Marks a graph with known shapes and folded constants, as all exports here are, for the quantiser."""


def float_layers(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers of a module that stay float32 in ``int8``.

    A module's class names those children in ``FLOAT_IN_INT8``: rounded to 8 bits, scores tie and boxes jump.
    """
    return tuple(
        f"{name}.{child}" if name else child
        for name, owner in module.named_modules()
        for child in getattr(owner, "FLOAT_IN_INT8", ())
    )


def quantized_layers(model: bytes) -> int:
    """Count the convolutions and matmuls of a serialised graph whose weights are quantised."""
    read = onnx.load_from_string(model)
    quantized = {node.output[0] for node in read.graph.node if node.op_type == "DequantizeLinear"}
    return sum(node.input[1] in quantized for node in dense_nodes(read))


def quantized_block(
    model: onnx.ModelProto, module: nn.Module, inputs: Sequence[Tensor], *, symmetric: bool
) -> onnx.ModelProto:
    """Quantise a module's float32 graph for timing, with the activation ranges of the given inputs.

    A graph without anything to quantise (proposals, pooling, a stem) is returned unchanged: it stays float in ``int8``,
    as does ``FLOAT_IN_INT8`` of the module. ``symmetric`` and errors are those of :func:`quantized_onnx`.
    """
    kept = float_layers(module)
    nodes = [node.name for node in dense_nodes(model) if not in_modules(node, kept)]
    if not nodes:
        return model
    feeds = {value.name: tensor.contiguous().numpy() for value, tensor in zip(model.graph.input, inputs, strict=True)}
    return quantized_onnx(model, [feeds], nodes, symmetric=symmetric)


def quantized_onnx(
    model: onnx.ModelProto,
    calibration: Iterable[Mapping[str, NDArray[Any]]],
    nodes: Collection[str],
    *,
    symmetric: bool,
) -> onnx.ModelProto:
    """Copy a float32 model with some convolutions and matmuls reading and writing 8-bit integers.

    Args:
        model: from :func:`profiler.graphs.export.to_onnx`.
        calibration: inputs by name, from representative images.
        nodes: names of the nodes to quantise.
        symmetric: for TensorRT: symmetric signed activations, and results that stay float, although it computes in
            integers. Otherwise for ONNX Runtime: unsigned activations with a zero point, and quantised results.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
        ExportError: there is nothing to quantise, or the quantiser fails.
    """
    try:
        from onnxruntime import quantization
    except ImportError:
        raise BackendUnavailableError(
            "int8 needs ONNX Runtime's quantiser, which is not installed: pip install 'smnas[cpu]'"
        ) from None
    kinds = sorted({node.op_type for node in dense_nodes(model) if node.name in nodes})
    if not kinds:
        raise ExportError("the graph has no convolution or matmul to quantise")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self.feeds = iter(calibration)

        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            return next(self.feeds, None)

    prepared = copy.deepcopy(model)
    prepared.metadata_props.add(**_PREPARED)
    extra: dict[str, Any] = {"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": False}
    if symmetric:
        extra["OpTypesToExcludeOutputQuantization"] = kinds
    with tempfile.TemporaryDirectory(prefix="smnas-int8-") as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(prepared.SerializeToString())
        try:
            quantization.quantize_static(
                source,
                target,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=kinds,
                nodes_to_quantize=sorted(nodes),
                per_channel=True,
                reduce_range=not symmetric,
                activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options=extra,
            )
        except Exception as error:
            raise ExportError(f"the graph was not quantised: {named_line(error)}") from error
        quantized = onnx.load_from_string(target.read_bytes())
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    # without the quantiser's version, which would change the bytes
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    return quantized
