"""Boxes of a whole batch at once: IoU, matching to objects, and balanced sampling.

The rules are torchvision's (``Matcher``, ``BalancedPositiveNegativeSampler``), on a padded batch: a loop over images
would dominate the step time of a small detector.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smnas.models.target import Target

__all__ = [
    "Matches",
    "PaddedTargets",
    "batched_iou",
    "match",
    "match_adaptive",
    "pad_targets",
    "sample_balanced",
]


class PaddedTargets(NamedTuple):
    """Objects of a batch, padded with 0 to the largest count G >= 1.

    Attributes:
        boxes: ``(B, G, 4)`` float32.
        labels: ``(B, G)`` int64.
        valid: ``(B, G)`` bool.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor


class Matches(NamedTuple):
    """Labels of ``(B, N)`` candidate boxes.

    Attributes:
        object_index: ``(B, N)`` int64, the object of largest IoU (meaningless without objects).
        positive: ``(B, N)`` bool.
        negative: ``(B, N)`` bool; candidates that are neither are ignored.
    """

    object_index: Tensor
    positive: Tensor
    negative: Tensor


def pad_targets(targets: Sequence[Target], device: torch.device) -> PaddedTargets:
    """Stack targets of different counts."""
    count = max(1, *(len(target.labels) for target in targets))
    boxes = torch.zeros(len(targets), count, 4)
    labels = torch.zeros(len(targets), count, dtype=torch.int64)
    valid = torch.zeros(len(targets), count, dtype=torch.bool)
    for row, target in enumerate(targets):
        n = len(target.labels)
        boxes[row, :n] = target.boxes
        labels[row, :n] = target.labels
        valid[row, :n] = True
    return PaddedTargets(
        boxes.to(device, non_blocking=True), labels.to(device, non_blocking=True), valid.to(device, non_blocking=True)
    )


def batched_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of ``(B, N, 4)`` and ``(B, M, 4)`` boxes, ``xyxy``, to ``(B, N, M)`` in 0..1; B broadcasts.

    Two boxes without area have an IoU of 0.
    """
    top_left = torch.maximum(first[:, :, None, :2], second[:, None, :, :2])
    bottom_right = torch.minimum(first[:, :, None, 2:], second[:, None, :, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=3)
    area_first = (first[..., 2] - first[..., 0]) * (first[..., 3] - first[..., 1])
    area_second = (second[..., 2] - second[..., 0]) * (second[..., 3] - second[..., 1])
    union = area_first[:, :, None] + area_second[:, None, :] - inter
    return inter / union.clamp(min=1e-9)


def match(candidates: Tensor, targets: PaddedTargets, high: float, low: float, *, keep_best: bool) -> Matches:
    """Label candidates by their IoU with the objects.

    Args:
        candidates: ``(B or 1, N, 4)`` ``xyxy``; 1 if all images share them (anchors).
        targets: The objects.
        high: IoU from which a candidate is positive.
        low: IoU below which it is negative.
        keep_best: Also make each object's candidates of largest IoU positive (RPN and RetinaNet).
    """
    # (B, G, N): a reduction over few objects is then a few passes over long rows
    iou = batched_iou(targets.boxes, candidates.expand(len(targets.boxes), -1, -1))
    iou = iou.masked_fill(~targets.valid[:, :, None], -1.0)
    best, index = iou.max(dim=1)
    positive = best >= high
    negative = best < low
    if keep_best:
        largest = iou.amax(dim=2, keepdim=True)
        is_largest = (iou == largest) & (largest > 0) & targets.valid[:, :, None]
        rescued = is_largest.any(dim=1)
        positive |= rescued
        negative &= ~rescued
    return Matches(index, positive, negative)


def match_adaptive(anchors: Tensor, counts: Sequence[int], targets: PaddedTargets, per_level: int) -> Matches:
    """Label ``(B or 1, A, 4)`` anchors by adaptive training sample selection (Zhang et al., "ATSS", arXiv 1912.02424).

    On each level (of ``counts`` anchors), the ``per_level`` anchors with centres nearest to an object's are its
    candidates. Positive are those whose IoU with it is at least the mean plus the standard deviation of its candidates'
    IoUs and whose centre lies inside it. An object left without any takes the candidate of largest IoU, if above 0. A
    contested anchor goes to the object of largest IoU. All others are negative.
    """
    # (B, G, A), as in match
    iou = batched_iou(targets.boxes, anchors.expand(len(targets.boxes), -1, -1))
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    middles = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    away = (middles[:, :, None] - centres[:, None]).square().sum(dim=3)
    nearest, start = [], 0
    for count in counts:
        level = away[:, :, start : start + count].topk(min(per_level, count), dim=2, largest=False)
        nearest.append(level.indices + start)
        start += count
    index = torch.cat(nearest, dim=2)
    overlaps = iou.gather(2, index)
    threshold = overlaps.mean(dim=2) + overlaps.std(dim=2)
    where = torch.stack([centres[..., axis].expand(len(iou), -1).gather(1, index.flatten(1)) for axis in (0, 1)], dim=2)
    where = where.view(*index.shape, 2)
    inside = ((where > targets.boxes[:, :, None, :2]) & (where < targets.boxes[:, :, None, 2:])).all(dim=3)
    chosen = (overlaps >= threshold[..., None]) & inside
    best = overlaps.max(dim=2, keepdim=True)
    rescued = torch.zeros_like(chosen).scatter(2, best.indices, ~chosen.any(dim=2, keepdim=True) & (best.values > 0))
    chosen = (chosen | rescued) & targets.valid[..., None]
    wanted = torch.zeros_like(iou, dtype=torch.bool).scatter(2, index, chosen)
    taken = torch.where(wanted, iou, -1.0).max(dim=1)
    positive = taken.values >= 0
    return Matches(taken.indices, positive, ~positive)


def sample_balanced(matches: Matches, count: int, positive_fraction: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sample ``count`` candidates per image, at most ``positive_fraction`` of them positive.

    Returns:
        ``index`` ``(B, S)`` int64, ``positive`` ``(B, S)`` bool, ``chosen`` ``(B, S)`` bool; S is at most ``count``.
        Rows that are not chosen pad images with too few candidates and must not count.
    """
    noise = torch.rand(matches.positive.shape, device=matches.positive.device)
    want_positive = min(int(count * positive_fraction), noise.shape[1])
    # positives in random order, cut to their quota; then negatives in random order
    positive_rank = torch.where(matches.positive, noise, -1.0)
    quota = positive_rank.topk(want_positive, dim=1)
    kept = quota.values >= 0
    key = torch.where(matches.negative, noise, -1.0)
    lifted = torch.where(kept, noise.gather(1, quota.indices) + 2.0, key.gather(1, quota.indices))
    key = key.scatter(1, quota.indices, lifted)
    drawn = key.topk(min(count, noise.shape[1]), dim=1)
    return drawn.indices, drawn.values >= 2.0, drawn.values >= 0
