"""A detector as an ONNX graph: in the operators of a backend, and in a precision."""

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from kernels.onnx_ops import Operators
from profiler.graphs.export import in_modules, to_onnx
from profiler.graphs.litert import to_litert
from profiler.graphs.quantized_onnx import quantized_onnx
from profiler.graphs.typed_onnx import dense_nodes, typed_onnx
from profiler.precision import PRECISIONS
from smnas.inference.signature import INPUT_NAME, OUTPUT_NAMES
from smnas.models.build import deployable
from smnas.models.detector import Detector

__all__ = [
    "GRAPH_PRECISIONS",
    "detector_graph",
    "in_precision",
    "litert_graph",
]

GRAPH_PRECISIONS = tuple(PRECISIONS)


def detector_graph(detector: Detector, operators: Operators, batch: int = 1) -> onnx.ModelProto:
    """Export the float32 graph from canvases to detections, with static shapes.

    ``batch`` is the first axis of the input and of every output; ``operators`` are ``native`` for ONNX Runtime on a CPU
    and ``plain`` for backends without those.

    Raises:
        ExportError: The detector has no ONNX form.
    """
    width, height = detector.input_size
    images = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    return to_onnx(
        deployable(detector), (images,), input_names=(INPUT_NAME,), output_names=OUTPUT_NAMES, operators=operators
    )


def litert_graph(detector: Detector, batch: int = 1) -> bytes:
    """Convert the same to a LiteRT model.

    Raises:
        BackendUnavailableError: The converter is not installed.
        ExportError: The detector has no such form.
    """
    width, height = detector.input_size
    return to_litert(deployable(detector), (torch.zeros(batch, 3, height, width, dtype=torch.uint8),))


def in_precision(
    graph: onnx.ModelProto,
    precision: str,
    keep_fp32: Sequence[str],
    *,
    calibration: NDArray[np.uint8] | None = None,
    symmetric: bool = False,
) -> onnx.ModelProto:
    """Copy a detector's graph with backbone, neck and heads in a precision.

    Args:
        graph: From :func:`detector_graph`.
        precision: One of ``GRAPH_PRECISIONS``.
        keep_fp32: From :func:`smnas.models.precision.fragile_modules`; for ``int8`` also from
            :func:`profiler.graphs.quantized_onnx.float_layers`.
        calibration: For ``int8``, canvases ``(N, 3, H, W)``; the last batch is filled up with the first ones.
        symmetric: For ``int8``, see :func:`profiler.graphs.quantized_onnx.quantized_onnx`.

    Raises:
        UserError: An unknown precision.
        ExportError: A weight does not fit into the type, or the quantiser fails.
    """
    if precision != "int8":
        return typed_onnx(graph, precision, keep_io=True, keep_fp32=keep_fp32)
    if calibration is None or not len(calibration):
        raise ValueError("int8 needs at least one canvas to calibrate on")
    nodes = [node.name for node in dense_nodes(graph) if not in_modules(node, keep_fp32)]
    batch = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    starts = range(0, len(calibration), batch)
    feeds = ({INPUT_NAME: calibration[np.arange(start, start + batch) % len(calibration)]} for start in starts)
    return quantized_onnx(graph, feeds, nodes, symmetric=symmetric)
