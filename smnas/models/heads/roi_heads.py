"""RoI heads: RCNN with one stage, Cascade with several.

Sources: Ren et al., "Faster R-CNN", arXiv 1506.01497; Cai and Vasconcelos, "Cascade R-CNN", arXiv 1712.00726.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder

from kernels.nms import grouped_nms_mask
from kernels.roi_align import multi_level_roi_align
from smnas.models.boxes import PaddedTargets, match, sample_balanced
from smnas.models.layers import NormKind
from smnas.models.losses import USUAL_LOSSES, LossOptions, overlap_loss
from smnas.models.options import DetectorOptions
from smnas.models.target import Detections

__all__ = ["BoxHead", "BoxRefine", "CascadePostprocess", "RoIPool", "RoIStage", "select_detections"]

_BETA = 1 / 9
_NMS_IOU = 0.5
# per cascade stage: loss weight and scale of its box deltas; the paper has three, the fourth is extrapolated
_STAGES = ((1.0, 10.0), (0.5, 20.0), (0.25, 30.0), (0.125, 40.0))


def box_coder(stage: int) -> BoxCoder:
    """Delta scaling of a stage: later stages predict smaller deltas, which are magnified more."""
    scale = _STAGES[stage][1]
    return BoxCoder(weights=(scale, scale, scale / 2, scale / 2))


class RoIPool(nn.Module):
    """RoIAlign of each proposal, from the level that fits its size."""

    def __init__(self, levels: Sequence[int], output_size: int, options: DetectorOptions) -> None:
        super().__init__()
        self.strides = [2**level for level in levels]
        self.output_size = output_size
        self.canonical_size = options.canonical_size

    def extra_repr(self) -> str:
        """Everything that affects the latency."""
        return f"strides={self.strides}, output_size={self.output_size}, canonical_size={self.canonical_size}"

    def forward(self, boxes: Tensor, *features: Tensor) -> Tensor:
        """``(B, R, 4)`` boxes and one feature map per level to ``(B * R, C, size, size)``."""
        return multi_level_roi_align(list(features), boxes, self.strides, self.output_size, self.canonical_size)


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits (background last) and box deltas.

    Args:
        in_channels: Channels of the pooled feature map.
        size: Its side; with 1 it is averaged first (the c4 neck).
        width: Width of both layers.
        num_classes: Classes, without the background.
        class_agnostic: Whether the classes share one box (cascade).
        norm: ``gn-ws`` adds a LayerNorm (a GroupNorm of one group) after each layer, without which boxes train more
            slowly from scratch; ``bn`` adds none, as in torchvision.
    """

    FLOAT_IN_INT8 = ("logits", "deltas")

    def __init__(
        self, in_channels: int, size: int, width: int, num_classes: int, *, class_agnostic: bool, norm: NormKind
    ) -> None:
        super().__init__()
        self.average = size == 1
        self.fc1 = nn.Linear(in_channels * size * size, width)
        self.norm1 = nn.Identity() if norm == "bn" else nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, width)
        self.norm2 = nn.Identity() if norm == "bn" else nn.LayerNorm(width)
        self.logits = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 if class_agnostic else 4 * num_classes)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.logits, self.deltas):
            nn.init.zeros_(layer.bias)

    def extra_repr(self) -> str:
        """Add ``average``."""
        return f"average={self.average}"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, C, h, w)`` to ``(N, classes + 1)`` logits and ``(N, 4 or 4 * classes)`` deltas."""
        x = x.mean(dim=(2, 3)) if self.average else x.flatten(1)
        x = F.relu(self.norm1(self.fc1(x)))
        x = F.relu(self.norm2(self.fc2(x)))
        return self.logits(x), self.deltas(x)


class BoxRefine(nn.Module):
    """Applies a cascade stage's deltas to its boxes, for the next stage."""

    def __init__(self, stage: int, width: int, height: int) -> None:
        super().__init__()
        self.coder = box_coder(stage)
        self.width, self.height = width, height

    def forward(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        """``(B, R, 4)`` boxes and ``(B * R, 4)`` deltas to ``(B, R, 4)``; boxes without area become 0."""
        moved: Tensor = self.coder.decode_single(deltas, boxes.reshape(-1, 4)).view_as(boxes)
        limit = torch.tensor([self.width, self.height, self.width, self.height], device=boxes.device, dtype=boxes.dtype)
        moved = torch.minimum(moved.clamp(min=0), limit)
        has_area = ((boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1]))[..., None]
        return moved * has_area


def select_detections(scores: Tensor, boxes: Tensor, options: DetectorOptions, canvas_side: int) -> Detections:
    """Run class-wise NMS over all (box, class) pairs and keep the best, padded to a fixed count.

    Args:
        scores: ``(B, N, C)`` in 0..1.
        boxes: ``(B, N, C, 4)``, or ``(B, N, 1, 4)`` if the classes share a box, ``xyxy`` in canvas pixels.
        options: Thresholds and counts.
        canvas_side: The longer side in pixels.
    """
    batch, count, classes = scores.shape
    side = torch.minimum(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])
    score = torch.where((scores >= options.score_threshold) & (side >= 1e-2), scores, 0.0).flatten(1)
    top = score.topk(min(options.candidates, count * classes), dim=1)
    labels = top.indices % classes
    row = top.indices if boxes.shape[2] == classes else top.indices // classes
    box = boxes.reshape(batch, -1, 4).gather(1, row[:, :, None].expand(-1, -1, 4))
    kept = top.values * grouped_nms_mask(box, top.values, labels, _NMS_IOU, canvas_side)
    best = kept.topk(min(options.detections, kept.shape[1]), dim=1)
    real = best.values > 0
    chosen = box.gather(1, best.indices[:, :, None].expand(-1, -1, 4)) * real[:, :, None]
    return Detections(real.sum(dim=1), chosen, best.values, labels.gather(1, best.indices) * real)


class CascadePostprocess(nn.Module):
    """Averages the class scores of the stages, decodes the last stage's boxes and runs NMS; RCNN has one stage."""

    def __init__(self, stages: int, num_classes: int, width: int, height: int, options: DetectorOptions) -> None:
        super().__init__()
        self.stages, self.num_classes = stages, num_classes
        self.width, self.height = width, height
        self.options = options
        self.coder = box_coder(stages - 1)

    def extra_repr(self) -> str:
        """Everything that affects the latency."""
        return (
            f"stages={self.stages}, classes={self.num_classes}, candidates={self.options.candidates}, "
            f"detections={self.options.detections}, score_threshold={self.options.score_threshold}"
        )

    def forward(self, boxes: Tensor, deltas: Tensor, *logits: Tensor) -> Detections:
        """``(B, R, 4)`` boxes, last deltas and each stage's ``(B * R, classes + 1)`` logits to detections."""
        batch, count = boxes.shape[:2]
        probability = torch.stack([logit.softmax(dim=1) for logit in logits]).mean(dim=0)
        scores = probability[:, :-1].view(batch, count, self.num_classes)
        per_roi = deltas.shape[1] // 4
        reference = boxes.reshape(-1, 1, 4).expand(-1, per_roi, -1).reshape(-1, 4)
        decoded = self.coder.decode_single(deltas.reshape(-1, 4), reference).view(batch, count, per_roi, 4)
        limit = torch.tensor([self.width, self.height, self.width, self.height], device=boxes.device, dtype=boxes.dtype)
        decoded = torch.minimum(decoded.clamp(min=0), limit)
        has_area = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        return select_detections(scores * has_area[..., None], decoded, self.options, max(self.width, self.height))


class RoIStage(nn.Module):
    """One stage: pool, run any backbone blocks after C4 (the c4 neck), classify and regress."""

    def __init__(self, index: int, pool: RoIPool, blocks: nn.Sequential, head: BoxHead) -> None:
        super().__init__()
        self.index = index
        self.pool = pool
        self.blocks = blocks
        self.head = head
        self.coder = box_coder(index)

    def forward(self, boxes: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """``(B, R, 4)`` boxes to ``(B * R, classes + 1)`` logits and ``(B * R, 4 or 4 * classes)`` deltas."""
        out: tuple[Tensor, Tensor] = self.head(self.blocks(self.pool(boxes, *features)))
        return out

    def loss(
        self,
        candidates: Tensor,
        features: Sequence[Tensor],
        targets: PaddedTargets,
        options: DetectorOptions,
        losses: LossOptions = USUAL_LOSSES,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses over a balanced sample of the candidates and the objects themselves.

        Args:
            candidates: ``(B, R, 4)`` without gradient; boxes without area are ignored.
            features: One feature map per level.
            targets: The objects.
            options: Size of the sample, and thresholds of positive ones.
            losses: The box loss.

        Returns:
            The losses by name, and the sampled boxes ``(B, S, 4)`` with the predicted deltas applied (no gradient).
        """
        overlap, weight = options.roi_overlaps[self.index], _STAGES[self.index][0]
        candidates = torch.cat([candidates, targets.boxes], dim=1)
        matches = match(candidates, targets, overlap, overlap, keep_best=False)
        has_area = (candidates[..., 2] > candidates[..., 0]) & (candidates[..., 3] > candidates[..., 1])
        matches = matches._replace(positive=matches.positive & has_area, negative=matches.negative & has_area)
        index, positive, chosen = sample_balanced(matches, options.roi_samples, 0.25)
        boxes = candidates.gather(1, index[:, :, None].expand(-1, -1, 4))
        logits, deltas = self(boxes, features)

        object_index = matches.object_index.gather(1, index)
        background = logits.shape[1] - 1
        labels = torch.where(positive, targets.labels.gather(1, object_index), background)
        total = chosen.sum().clamp(min=1)
        per_roi = F.cross_entropy(logits, labels.flatten(), reduction="none")
        classification = (per_roi * chosen.flatten()).sum() / total

        flat = positive.flatten()
        objects = targets.boxes.gather(1, object_index[:, :, None].expand(-1, -1, 4)).reshape(-1, 4)[flat]
        delta = deltas.view(len(deltas), -1, 4)
        which = labels.flatten()[flat] if delta.shape[1] > 1 else torch.zeros_like(labels.flatten()[flat])
        moved = delta[flat, which]
        reference = boxes.reshape(-1, 4)[flat]
        if losses.box == "smooth-l1":
            wanted = self.coder.encode_single(objects, reference)
            regression = F.smooth_l1_loss(moved, wanted, beta=_BETA, reduction="sum") / total
        else:
            regression = overlap_loss(losses.box, self.coder.decode_single(moved, reference), objects)
        name = f"roi{self.index + 1}"
        parts = {f"{name}_class": weight * classification, f"{name}_box": weight * regression}
        if delta.shape[1] > 1:
            return parts, boxes
        with torch.no_grad():
            refined: Tensor = self.coder.decode_single(deltas.detach(), boxes.reshape(-1, 4)).view_as(boxes)
            return parts, refined.clamp(min=0) * chosen[:, :, None]
