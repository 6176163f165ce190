"""Greedy non-maximum suppression of a batch, as a mask of fixed shape.

A mask keeps every shape static, so that a whole detector exports to a graph without data-dependent shapes; how the mask
is computed is then the backend's choice (torchvision's operator on a CPU, ``NonMaxSuppression`` in an ONNX graph).
"""

import torch
import torchvision
from torch import Tensor

__all__ = ["nms_mask", "nms_mask_reference"]


def nms_mask_reference(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The specification: take boxes by falling score, drop those that overlap a kept one by more than the threshold.

    Args:
        boxes: ``(B, N, 4)`` float, ``xyxy``.
        scores: ``(B, N)`` float; a box with a score of 0 or less is never kept and suppresses nothing. Among equal
            scores the lower index goes first.
        iou_threshold: Overlap, in 0..1, above which the lower-scored box is dropped.

    Returns:
        ``(B, N)`` bool, True where a box is kept.
    """
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(boxes.shape[0]):
        kept: list[int] = []
        for index in torch.argsort(scores[image], descending=True, stable=True).tolist():
            if scores[image, index] <= 0:
                break
            overlap = torchvision.ops.box_iou(boxes[image, index].unsqueeze(0), boxes[image, kept]) if kept else None
            if overlap is None or not bool((overlap > iou_threshold).any()):
                kept.append(index)
        keep[image, kept] = True
    return keep


@torch.library.custom_op("smnas::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """As :func:`nms_mask_reference`, through torchvision's NMS operator (no gradient)."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(boxes.shape[0]):
        candidates = (scores[image] > 0).nonzero().squeeze(1)
        kept = torchvision.ops.nms(boxes[image, candidates], scores[image, candidates], iou_threshold)
        keep[image, candidates[kept]] = True
    return keep


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
