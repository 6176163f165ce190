"""Anchor-free dense head: each position scores the classes and regresses the distances to an object's four sides.

Sources: Tian et al., "FCOS", arXiv 1904.01355; Li et al., "Generalized Focal Loss", arXiv 2006.04388, whose score is
the expected IoU of the box, replacing FCOS's centerness; Rezatofighi et al., "Generalized IoU", arXiv 1902.09630.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smnas.models.anchors import grid_positions
from smnas.models.boxes import PaddedTargets, batched_iou
from smnas.models.heads.dense import DensePostprocess, conv_tower, output_convs
from smnas.models.layers import NormKind
from smnas.models.losses import overlap_loss
from smnas.models.options import DetectorOptions
from smnas.models.target import Detections
from smnas.space.architecture import FCOSSpec

__all__ = [
    "Assignment",
    "FCOSHead",
    "FCOSPostprocess",
    "assign_centres",
    "decode_distances",
    "fcos_loss",
    "level_cells",
]

_LARGEST_LOG = 5.0  # distances are at most 148 strides, so that exp stays finite
_RADIUS = 1.5  # maximal distance in strides between the centres of an object and a positive position
# Longer side, in strides, from which an object belongs to the next level. Generated images, one epoch: AP50 0.25 with
# 8, 0.22 with 4, 0.10 with a task-aligned assignment; aquarium, 128 px, 4 epochs: 0.0050, 0.0016 (one seed each).
_LARGEST_SIDE = 8.0
_GAMMA = 2.0


class FCOSHead(nn.Module):
    """A classification and a regression tower of convolutions; the levels share weights.

    torchvision's head has a centerness branch and no scale per level, applies ReLU instead of exp to distances, and
    measures from a position's corner instead of its centre.
    """

    FLOAT_IN_INT8 = ("logits", "distances")

    def __init__(self, in_channels: int, levels: int, spec: FCOSSpec, num_classes: int, norm: NormKind) -> None:
        super().__init__()
        self.num_classes = num_classes
        # FCOS's towers have GroupNorm whatever the backbone's norm
        self.classify = conv_tower(norm, in_channels, spec.width, spec.depth, always_norm=True)
        self.regress = conv_tower(norm, in_channels, spec.width, spec.depth, always_norm=True)
        self.logits, self.distances = output_convs(spec.width, num_classes, 4)
        # added to log-distances: a learned scale per level
        self.log_scales = nn.Parameter(torch.zeros(levels))

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """One feature map per level to ``(B, A, classes)`` logits and ``(B, A, 4)`` log-distances, level by level.

        Distances are to the left, top, right and bottom side, in strides of the level; positions are in row-major
        order.
        """
        logits, distances = [], []
        for feature, log_scale in zip(features, self.log_scales, strict=True):
            logits.append(self.logits(self.classify(feature)).flatten(2).transpose(1, 2))
            distances.append(self.distances(self.regress(feature)).flatten(2).transpose(1, 2) + log_scale)
        return torch.cat(logits, dim=1), torch.cat(distances, dim=1)


def level_cells(level: int, width: int, height: int) -> Tensor:
    """``(rows * columns, 3)`` float32: x and y of each position's centre and its stride, in pixels, row by row."""
    stride = float(2**level)
    centres = (grid_positions(level, width, height) + 0.5) * stride
    return torch.cat([centres, torch.full((len(centres), 1), stride, device="cpu")], dim=1)


def decode_distances(distances: Tensor, cells: Tensor) -> Tensor:
    """``(..., 4)`` log-distances at ``(..., 3)`` positions to ``(..., 4)`` boxes, ``xyxy`` in pixels."""
    pixels = distances.clamp(max=_LARGEST_LOG).exp() * cells[..., 2:]
    centre = cells[..., :2]
    return torch.cat([centre - pixels[..., :2], centre + pixels[..., 2:]], dim=-1)


class FCOSPostprocess(DensePostprocess):
    """From log-distances to detections; ``cells`` are the ``(A, 3)`` centres and strides of all levels."""

    cells: Tensor

    def __init__(self, levels: Sequence[int], width: int, height: int, options: DetectorOptions) -> None:
        super().__init__("cells", [level_cells(level, width, height) for level in levels], width, height, options)

    def forward(self, logits: Tensor, distances: Tensor) -> Detections:
        """``(B, A, classes)`` logits and ``(B, A, 4)`` log-distances to detections."""
        return self.detect(logits, distances, self.cells, decode_distances)


class Assignment(NamedTuple):
    """Assignment of ``(B, A)`` positions to objects.

    Attributes:
        object_index: ``(B, A)`` int64; meaningless without an object.
        positive: ``(B, A)`` bool, whether the position has an object.
    """

    object_index: Tensor
    positive: Tensor


def assign_centres(cells: Tensor, targets: PaddedTargets) -> Assignment:
    """Assign each object to positions near its centre, on the one level that fits its size.

    A level takes objects with a longer side of 4 to 8 strides; the finest also smaller, the coarsest also larger ones.
    There, positive positions lie inside the object and less than 1.5 strides from its centre; the nearest one is always
    positive, as the object may be smaller than a stride. A contested position goes to the smallest object, but an
    object keeps its nearest position against objects that have others. ``cells`` are ``(A, 3)`` centres and strides of
    all levels.
    """
    # (B, G, A): reductions over A run along memory, as in boxes.match
    strides = cells[:, 2]
    middle = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    side = targets.boxes[..., 2:] - targets.boxes[..., :2]
    offset_x = (cells[:, 0] - middle[:, :, 0, None]).abs()
    offset_y = (cells[:, 1] - middle[:, :, 1, None]).abs()
    away = torch.maximum(offset_x, offset_y) / strides
    inside = (offset_x < side[:, :, 0, None] / 2) & (offset_y < side[:, :, 1, None] / 2)
    longer = side.amax(dim=2)[:, :, None] / strides
    smallest = torch.where(strides == strides.min(), 0.0, _LARGEST_SIDE / 2)
    largest = torch.where(strides == strides.max(), torch.inf, _LARGEST_SIDE)
    fits = (longer >= smallest) & (longer < largest) & targets.valid[:, :, None]
    nearest = torch.where(fits, away, torch.inf).argmin(dim=2, keepdim=True)
    nearest = torch.zeros_like(fits).scatter(2, nearest, targets.valid[:, :, None])
    wanted = (inside & (away < _RADIUS) & fits) | nearest
    area = side.prod(dim=2)[:, :, None].expand_as(away)
    # of the objects that contest a position: first those whose nearest it is (below 0), then by area
    rank = torch.where(nearest, -1 / (1 + area), torch.where(wanted, area, torch.inf))
    return Assignment(rank.argmin(dim=1), wanted.any(dim=1))


def fcos_loss(layer: FCOSPostprocess, logits: Tensor, distances: Tensor, targets: PaddedTargets) -> dict[str, Tensor]:
    """Quality focal loss over all positions, normalized by the sum of target scores, and GIoU loss per positive one.

    The target score is the IoU of the predicted box, so that scores rank boxes.
    """
    found = assign_centres(layer.cells, targets)
    positive = found.positive
    objects = targets.boxes.gather(1, found.object_index[:, :, None].expand(-1, -1, 4))[positive]
    label = targets.labels.gather(1, found.object_index)[positive]
    boxes = decode_distances(distances[positive], layer.cells.expand(len(logits), -1, -1)[positive])
    wanted = torch.zeros_like(logits)
    wanted[positive] = F.one_hot(label, logits.shape[2]) * batched_iou(boxes.detach()[:, None], objects[:, None])[:, 0]
    weight = (wanted - logits.sigmoid()).abs() ** _GAMMA
    score = (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight).sum()
    return {"fcos_class": score / wanted.sum().clamp(min=1), "fcos_box": overlap_loss("giou", boxes, objects)}
