"""ONNX forms of this package's operators, for ``torch.onnx.export``.

``native``: the matching ONNX operators (``NonMaxSuppression``, ``RoiAlign``), fastest in ONNX Runtime on a CPU.

``plain``: tensor operators of static shapes (``GridSample``, ``MatMul``, one ``Loop`` per NMS), for backends without
those operators. The exporter receives the PyTorch code beside each operator as its decomposition.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from onnxscript import values

from kernels import nms, roi_align

__all__ = ["Operators", "decompositions", "translation_table"]

Operators = Literal["native", "plain"]
"""Forms of operators in a graph."""


def _constant(value: object) -> Any:
    """A constant of 64-bit integers, 32-bit floating-point numbers or booleans."""
    array = np.asarray(value)
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    return op.Constant(value=onnx.numpy_helper.from_array(array))


def _nms_mask(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """Scatter the indices of ``NonMaxSuppression`` into a mask; ``(x, y)`` order does not change an IoU."""
    count, rows_of_scores = _constant([np.iinfo(np.int32).max]), op.Unsqueeze(scores, _constant([1]))
    selected = op.NonMaxSuppression(boxes, rows_of_scores, count, _constant([float(iou_threshold)]), _constant([0.0]))
    image_and_box = op.Gather(selected, _constant([0, 2]), axis=1)
    rows = op.Shape(selected, start=0, end=1)
    ones = op.Expand(_constant([1.0]), rows)
    zeros = op.Mul(scores, _constant(0.0))
    return op.Greater(op.ScatterND(zeros, image_and_box, ones), _constant(0.5))


def _multi_level_roi_align(
    features: Sequence[Any], boxes: Any, strides: Sequence[int], output_size: int, canonical_size: float
) -> Any:
    """Pool each level's own boxes, and restore their order by one gather."""
    shape = op.Shape(boxes)
    flat = op.Reshape(boxes, _constant([-1, 4]))
    batch, count = op.Gather(shape, _constant(0)), op.Gather(shape, _constant(1))
    index = op.Range(_constant(0), batch, _constant(1))
    column = op.Unsqueeze(index, _constant([1]))
    table = op.Concat(op.Unsqueeze(batch, _constant([0])), op.Unsqueeze(count, _constant([0])), axis=0)
    images = op.Reshape(op.Expand(column, table), _constant([-1]))

    def pool(feature: Any, rois: Any, image: Any, stride: int) -> Any:
        return op.RoiAlign(
            feature,
            rois,
            image,
            coordinate_transformation_mode="output_half_pixel",
            output_height=output_size,
            output_width=output_size,
            sampling_ratio=roi_align.SAMPLES,
            spatial_scale=1.0 / stride,
        )

    if len(features) == 1:
        return pool(features[0], flat, images, strides[0])
    corners = op.Split(flat, num_outputs=4, axis=1)
    sides = [op.Relu(op.Sub(corners[2], corners[0])), op.Relu(op.Sub(corners[3], corners[1]))]
    size = op.Squeeze(op.Sqrt(op.Mul(*sides)), _constant([1]))
    relative = op.Add(op.Div(size, _constant(float(canonical_size))), _constant(1e-6))
    log2 = op.Div(op.Log(relative), _constant(np.log(2.0)))
    level = op.Floor(op.Add(log2, _constant(np.log2(16 / strides[0]))))
    level = op.Clip(level, _constant(0.0), _constant(float(len(strides) - 1)))
    order, pooled = [], []
    for position, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        mine = op.Equal(level, _constant(float(position)))
        chosen = op.Squeeze(op.NonZero(mine), _constant([0]))
        order.append(chosen)
        pooled.append(pool(feature, op.Gather(flat, chosen, axis=0), op.Gather(images, chosen), stride))
    positions = op.Concat(*order, axis=0)
    # inverse permutation: positions[i] is where row i belongs
    rows = op.Shape(positions)
    arange = op.Range(_constant(0), op.Squeeze(rows, _constant([0])), _constant(1))
    inverse = op.ScatterElements(positions, positions, arange)
    return op.Gather(op.Concat(*pooled, axis=0), inverse, axis=0)


def _greedy_keep(candidate: Any, suppressed_by: Any) -> Any:
    """Repeat rounds until nothing changes, at most one per box."""
    votes: Any = op.Cast(suppressed_by, to=onnx.TensorProto.FLOAT)
    allowed: Any = op.Cast(op.Unsqueeze(candidate, _constant([1])), to=onnx.TensorProto.FLOAT)
    half, zero = _constant(0.5), _constant(0.0)
    # by name: with positional inputs torch 2.14 takes the fixed ones for loop variables once more
    keep = values.Op(op, "Loop")(
        M=_constant(candidate.shape[1]),
        cond=_constant(True),
        v_initial=(allowed,),
        body=_round(votes, allowed, half, zero, tuple(candidate.shape)),
    )
    return op.Squeeze(op.Greater(keep, half), _constant([1]))


def _round(votes: ir.Value, allowed: ir.Value, half: ir.Value, zero: ir.Value, shape: tuple[int, int]) -> ir.Graph:
    """``keep = allowed and not any(votes of kept boxes)``, and whether that changed anything.

    The largest vote, not a matmul: TensorRT-RTX has no float32 matmul for compute capability 7.5.
    """
    batch, count = shape

    def value(name: str, *sizes: int, kind: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        return ir.Value(name=f"greedy_keep_{name}", type=ir.TensorType(kind), shape=ir.Shape(sizes))

    number, going = value("round", kind=ir.DataType.INT64), value("going", kind=ir.DataType.BOOL)
    keep, kept, changed, largest = (value(name, batch, 1, count) for name in ("keep", "kept", "changed", "largest"))
    cast, column, axis = value("cast", batch, count, count), value("column", batch, count, 1), value("axis", 1)
    axis.type = ir.TensorType(ir.DataType.INT64)
    dropped = value("dropped", batch, 1, count, kind=ir.DataType.BOOL)
    changes, go_on = value("changes"), value("go_on", kind=ir.DataType.BOOL)
    nodes = [
        ir.node("Constant", [], {"value": ir.tensor(np.array([2]))}, outputs=[axis]),
        ir.node("Mul", [votes, keep], outputs=[cast]),
        ir.node("ReduceMax", [cast, axis], outputs=[column]),
        ir.node("Transpose", [column], {"perm": [0, 2, 1]}, outputs=[largest]),
        ir.node("Greater", [largest, half], outputs=[dropped]),
        ir.node("Where", [dropped, zero, allowed], outputs=[kept]),
        ir.node("Sub", [keep, kept], outputs=[changed]),
        ir.node("ReduceL1", [changed], {"keepdims": 0}, outputs=[changes]),
        ir.node("Greater", [changes, half], outputs=[go_on]),
    ]
    return ir.Graph([number, going, keep], [go_on, kept], nodes=nodes, name="greedy_keep_round")


def translation_table(operators: Operators = "native") -> dict[Callable[..., Any], Callable[..., Any]]:
    """Map each operator overload to the function that writes its ONNX form."""
    if operators == "plain":
        return {torch.ops.smnas.greedy_keep.default: _greedy_keep}
    return {
        torch.ops.smnas.nms_mask.default: _nms_mask,
        torch.ops.smnas.multi_level_roi_align.default: _multi_level_roi_align,
    }


def decompositions(operators: Operators = "native") -> dict[Callable[..., Any], Callable[..., Any]]:
    """Map each operator overload to the PyTorch function that replaces it before translation."""
    if operators == "native":
        return {}
    return {
        torch.ops.smnas.nms_mask.default: nms.nms_mask_plain,
        torch.ops.smnas.multi_level_roi_align.default: roi_align.multi_level_roi_align_plain,
    }


# importing the modules registers the operators
_ = (nms, roi_align)
