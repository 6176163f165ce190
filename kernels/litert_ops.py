"""LiteRT forms of this package's operators, for ``litert_torch.convert``.

LiteRT has an operator for NMS, and none for RoIAlign, whose bins are then weighted sums of rows of one table.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import nms, roi_align

__all__ = ["decompositions", "register_lowerings"]


@torch.library.custom_op("smnas::litert_nms", mutates_args=())
def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Indices ``(N,)`` int32 of the kept boxes first, and their number; a name in a graph, never run by PyTorch."""
    raise NotImplementedError("smnas::litert_nms runs in LiteRT alone")


@_nms.register_fake
def _nms_shapes(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape, dtype=torch.int32), scores.new_empty((), dtype=torch.int32)


def _nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Equals :func:`kernels.nms.nms_mask_reference`, one operator per image."""
    index = torch.arange(scores.shape[1], dtype=torch.int32)
    kept = []
    for image in range(len(boxes)):
        chosen, count = torch.ops.smnas.litert_nms(boxes[image], scores[image], iou_threshold)
        kept.append(((chosen == index[:, None]) & (index < count)).to(torch.float32).amax(dim=1) > 0.5)
    return torch.stack(kept)


def _multi_level_roi_align(
    features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> Tensor:
    """Equals :func:`kernels.roi_align.multi_level_roi_align_reference`."""
    cells, weights = roi_align.bin_cells(features, boxes, strides, output_size, canonical_size)
    table = torch.cat([feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in features])
    columns = zip(cells.unbind(1), weights.unbind(1), strict=True)
    bins = sum((table.index_select(0, cell) * weight[:, None] for cell, weight in columns), start=torch.zeros(()))
    return bins.reshape(-1, output_size, output_size, features[0].shape[1]).permute(0, 3, 1, 2)


def decompositions() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Map each operator overload to the PyTorch function that replaces it before conversion."""
    return {
        torch.ops.smnas.nms_mask.default: _nms_mask,
        torch.ops.smnas.multi_level_roi_align.default: _multi_level_roi_align,
    }


_ = nms  # importing the module registers its operator


def register_lowerings(lowerings: Any, ir: Any) -> None:
    """Give a converter, by its modules ``litert_torch.backend.lowerings`` and ``litert_converter.mlir.ir``, our NMS."""

    def lower_nms(context: Any, boxes: Any, scores: Any, iou_threshold: float) -> tuple[Any, Any]:
        limits = (np.int32(ir.RankedTensorType(scores.type).shape[0]), np.float32(iou_threshold), np.float32(0))
        operands = [boxes, scores, *(lowerings.utils.numpy_array_constant(np.array(limit)) for limit in limits)]
        results = lowerings.utils.node_meta_to_ir_types(context.node)
        return tuple(ir.Operation.create("tfl.non_max_suppression_v4", results=results, operands=operands).results)

    lowerings.registry.lower(torch.ops.smnas.litert_nms.default)(lower_nms)
