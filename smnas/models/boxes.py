"""Boxes of a whole batch at once: overlap, matching to objects, and balanced sampling.

The rules are torchvision's (``Matcher``, ``BalancedPositiveNegativeSampler``); here they take a padded batch, since a
loop over images dominates the step time of a small detector.
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
    """Objects of a batch, padded to the largest count G >= 1.

    Attributes:
        boxes: ``(B, G, 4)`` float32; padding is 0.
        labels: ``(B, G)`` int64; padding is 0.
        valid: ``(B, G)`` bool.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor


class Matches(NamedTuple):
    """How ``(B, N)`` candidate boxes relate to the objects of their image.

    Attributes:
        object_index: ``(B, N)`` int64, the object of largest overlap (meaningless without objects).
        positive: ``(B, N)`` bool.
        negative: ``(B, N)`` bool; what is neither is ignored.
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
    """Intersection over union of every pair.

    Args:
        first: ``(B, N, 4)`` ``xyxy``, B may be 1 to broadcast.
        second: ``(B, M, 4)`` ``xyxy``.

    Returns:
        ``(B, N, M)`` in 0..1; two boxes without area overlap by 0.
    """
    top_left = torch.maximum(first[:, :, None, :2], second[:, None, :, :2])
    bottom_right = torch.minimum(first[:, :, None, 2:], second[:, None, :, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=3)
    area_first = (first[..., 2] - first[..., 0]) * (first[..., 3] - first[..., 1])
    area_second = (second[..., 2] - second[..., 0]) * (second[..., 3] - second[..., 1])
    union = area_first[:, :, None] + area_second[:, None, :] - inter
    return inter / union.clamp(min=1e-9)


def match(candidates: Tensor, targets: PaddedTargets, high: float, low: float, *, keep_best: bool) -> Matches:
    """Label candidates by their overlap with the objects.

    Args:
        candidates: ``(B or 1, N, 4)`` ``xyxy``; 1 where all images share them (anchors).
        targets: The objects.
        high: Overlap from which a candidate is positive.
        low: Overlap under which it is negative.
        keep_best: Also make positive, for every object, its candidates of largest overlap (RPN and RetinaNet).
    """
    # transposed to (B, G, N): the reduction over the few objects is then a few passes over long rows
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
    """Label anchors by adaptive training sample selection (Zhang et al., "ATSS", arXiv 1912.02424).

    Of every level the ``per_level`` anchors whose centres are nearest to an object's are its candidates. Positive are
    those whose overlap with it is at least the mean plus the standard deviation of its candidates' overlaps and whose
    centre lies inside it; an object that would be left without takes the candidate of largest overlap, as long as
    there is any overlap. An anchor that several objects want goes to the one that it overlaps most. All others are
    negative.

    Args:
        anchors: ``(B or 1, A, 4)`` ``xyxy``; 1 where all images share them.
        counts: Anchors of each level; they add up to A.
        targets: The objects.
        per_level: Candidates of each level and object.
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
    """Draw candidates at random, at most ``positive_fraction`` of them positive, the rest negative.

    Args:
        matches: Candidates' labels.
        count: Candidates to draw per image.
        positive_fraction: In 0..1.

    Returns:
        ``index`` ``(B, S)`` int64, ``positive`` ``(B, S)`` bool, ``chosen`` ``(B, S)`` bool; S is at most ``count``.
        Rows that are not chosen fill up images with too few candidates and must not count.
    """
    noise = torch.rand(matches.positive.shape, device=matches.positive.device)
    want_positive = min(int(count * positive_fraction), noise.shape[1])
    # positives first in random order, cut to their quota; then negatives in random order
    positive_rank = torch.where(matches.positive, noise, -1.0)
    quota = positive_rank.topk(want_positive, dim=1)
    kept = quota.values >= 0
    key = torch.where(matches.negative, noise, -1.0)
    lifted = torch.where(kept, noise.gather(1, quota.indices) + 2.0, key.gather(1, quota.indices))
    key = key.scatter(1, quota.indices, lifted)
    drawn = key.topk(min(count, noise.shape[1]), dim=1)
    return drawn.indices, drawn.values >= 2.0, drawn.values >= 0
