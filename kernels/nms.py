"""Greedy non-maximum suppression of a batch, as a mask of fixed shape.

A mask keeps every shape static, so a whole detector exports without data-dependent shapes. The backend chooses how to
compute it: torchvision's operator on a CPU, ``NonMaxSuppression`` in a native ONNX graph, tensor operators in a plain
one.

The plain form finds the suppressors of every box for all pairs at once and repeats
``keep = candidate and not any(keep of its suppressors)`` until nothing changes.

- It converges to the greedy result. Only better boxes suppress a box. The best one has no suppressor and is right from
  round 1 on; if the r best are right from round r on, the next one is right from round r + 1 on. After N rounds all
  are, whatever the start, and a repeated state is therefore the same one.
- It is usually short: one round per link of the longest chain of boxes that decide each other, four to ten in a
  detector. No constant below N bounds every input, so the loop stops by itself.
"""

from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from kernels.dispatch import on_device_of, runs_triton

__all__ = [
    "greedy_keep",
    "grouped_nms_mask",
    "grouped_nms_mask_reference",
    "nms_mask",
    "nms_mask_plain",
    "nms_mask_reference",
    "suppressors",
]


def nms_mask_reference(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Reference: take boxes by falling score, drop those that overlap a kept one by more than the threshold.

    Args:
        boxes: ``(B, N, 4)`` float, ``xyxy``.
        scores: ``(B, N)`` float; a box with a score of 0 or less is never kept and suppresses nothing. Ties go to the
            lower index.
        iou_threshold: IoU in 0..1 above which the lower-scored box is dropped.

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


def grouped_nms_mask_reference(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Reference: :func:`nms_mask_reference` of each group, ``(B, N)`` integers (classes, or levels), by itself."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for group in torch.unique(groups).tolist():
        keep |= nms_mask_reference(boxes, torch.where(groups == group, scores, 0.0), iou_threshold)
    return keep


@torch.library.custom_op("smnas::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Equals :func:`nms_mask_reference`, through torchvision's NMS operator (no gradient)."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(boxes.shape[0]):
        candidates = (scores[image] > 0).nonzero().squeeze(1)
        kept = torchvision.ops.nms(boxes[image, candidates], scores[image, candidates], iou_threshold)
        keep[image, candidates[kept]] = True
    return keep


@nms_mask.register_fake
def _mask(boxes: Tensor, scores: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def grouped_nms_mask(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, canvas_side: float) -> Tensor:
    """Equals :func:`grouped_nms_mask_reference`: by an offset per group, or by kernels that compare groups.

    Offsets cost coordinate bits, so an IoU within rounding of the threshold may fall on its other side. The kernels
    compare the boxes as they are, without host synchronisation. Boxes lie in 0..``canvas_side``; groups are ``(N,)`` or
    ``(B, N)`` int64, small and not negative.
    """
    keep: Tensor
    # on an H200 3.5 to 11 times as fast as torchvision's operator at a training step's shapes, with the same result
    if runs_triton(boxes, scores, pays=True):
        keep = _grouped(boxes.detach().float(), scores.detach(), groups.expand_as(scores), iou_threshold)
    else:
        # at least float32: half precision runs out after a few classes side by side
        apart = groups.to(torch.promote_types(boxes.dtype, torch.float32)) * (canvas_side + 1)
        keep = nms_mask(boxes + apart.unsqueeze(-1), scores, iou_threshold)
    return keep


@torch.library.custom_op("smnas::grouped_nms_mask", mutates_args=())
def _grouped(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    if scores.numel() == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    from kernels.triton import nms

    with on_device_of(boxes):
        return nms.keep(boxes, scores, groups, _at_most(iou_threshold))


_grouped.register_fake(_mask)


def suppressors(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return which boxes suppress which, provided that they are kept themselves.

    Returns:
        ``(B, N, N)`` bool, True at ``(b, i, j)`` where j is better than i and overlaps it by more than the threshold.
    """
    left, top, right, bottom = (corner.unsqueeze(2) for corner in boxes.unbind(dim=2))
    width = torch.minimum(right, right.mT) - torch.maximum(left, left.mT)
    height = torch.minimum(bottom, bottom.mT) - torch.maximum(top, top.mT)
    shared = width.clamp(min=0) * height.clamp(min=0)
    area = (right - left) * (bottom - top)
    union = area + area.mT - shared
    # Two boxes without area, or two infinite ones, have a NaN quotient and drop nothing; backends differ in how NaN
    # compares.
    overlaps = (union > 0) & (shared / union > _at_most(iou_threshold))
    score = scores.unsqueeze(2)
    index = torch.arange(boxes.shape[1], device=boxes.device)
    better = (score.mT > score) | ((score.mT == score) & (index < index[:, None]))
    return overlaps & better


def _at_most(threshold: float) -> float:
    """Return the largest float32 up to a number, so that ``x > t`` agrees with torchvision's double comparison."""
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf)))


@torch.library.custom_op("smnas::greedy_keep", mutates_args=())
def greedy_keep(candidate: Tensor, suppressed_by: Tensor) -> Tensor:
    """Return the one state in which a candidate is kept exactly if no suppressor is; an ONNX ``Loop`` in a graph.

    Both are ``(B, N)`` bool; ``suppressed_by`` ``(B, N, N)`` is True at ``(b, i, j)`` where a kept j drops i, acyclic.
    """
    # sums of zeros and ones: at least 1 or exactly 0 in any precision
    votes = suppressed_by.to(torch.float32)
    keep = candidate.clone()
    for _ in range(candidate.shape[1]):
        dropped = (votes @ keep.to(torch.float32).unsqueeze(2)).squeeze(2) > 0.5
        before, keep = keep, candidate & ~dropped
        if torch.equal(before, keep):
            break
    return keep


@greedy_keep.register_fake
def _(candidate: Tensor, suppressed_by: Tensor) -> Tensor:
    return torch.empty_like(candidate)


def nms_mask_plain(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Equals :func:`nms_mask_reference`, by tensor operators of static shapes, without an NMS operator."""
    keep: Tensor = greedy_keep(scores > 0, suppressors(boxes, scores, iou_threshold))
    return keep
