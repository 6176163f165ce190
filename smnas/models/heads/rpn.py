"""Region proposal network (Ren et al., "Faster R-CNN", arXiv 1506.01497), batched and with static shapes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder

from kernels.nms import grouped_nms_mask
from smnas.models.anchors import SHAPES, level_anchors
from smnas.models.boxes import Matches, PaddedTargets, match, match_adaptive, sample_balanced
from smnas.models.layers import ConvNorm, NormKind
from smnas.models.losses import USUAL_LOSSES, LossOptions, overlap_loss
from smnas.models.options import DetectorOptions

__all__ = ["NEGATIVE_OVERLAP", "ProposalLayer", "RPNHead", "anchor_loss", "best_proposals", "rpn_loss"]

_NMS_IOU = 0.7
NEGATIVE_OVERLAP = 0.3
"""IoU below which an anchor is negative."""
_ATSS_CELLS = 9
_BETA = 1 / 9  # transition of the smooth L1 loss, as in torchvision
# The box loss is averaged over all sampled anchors, few of them positive, which is too little for short runs from
# scratch: with 5, AP of a run on 1,920 generated images rose from 0.17 to 0.24.
_BOX_WEIGHT = 5.0
_CODER = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness and box deltas per anchor; the levels share weights."""

    FLOAT_IN_INT8 = ("objectness", "deltas")

    def __init__(self, in_channels: int, anchors_per_cell: int, norm: NormKind) -> None:
        super().__init__()
        self.conv = ConvNorm(norm, in_channels, in_channels, 3)
        self.objectness = nn.Conv2d(in_channels, anchors_per_cell, 1)
        self.deltas = nn.Conv2d(in_channels, 4 * anchors_per_cell, 1)
        for layer in (self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """One feature map per level to ``(B, A)`` logits and ``(B, A, 4)`` deltas, in the anchors' order."""
        logits, deltas = [], []
        for feature in features:
            x = self.conv(feature)
            logits.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).reshape(len(feature), -1, 4))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


class ProposalLayer(nn.Module):
    """Reduces the best anchors of each level by NMS to a fixed number of proposals.

    Attributes:
        anchors: ``(A, 4)`` of all levels, finest first.
        counts: Anchors per level.
        per_cell: Anchors per position.
    """

    anchors: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        sizes: Sequence[tuple[float, ...]],
        width: int,
        height: int,
        options: DetectorOptions,
    ) -> None:
        super().__init__()
        per_level = [level_anchors(level, width, height, size) for level, size in zip(levels, sizes, strict=True)]
        self.register_buffer("anchors", torch.cat(per_level).to(torch.get_default_device()), persistent=False)
        self.counts = [len(anchors) for anchors in per_level]
        self.per_cell = len(sizes[0]) * SHAPES
        self.width, self.height = width, height
        self.options = options
        self.proposals = min(options.proposals, sum(min(options.pre_nms_top_n, count) for count in self.counts))

    def extra_repr(self) -> str:
        """Everything that affects the latency."""
        return f"counts={self.counts}, pre_nms_top_n={self.options.pre_nms_top_n}, proposals={self.proposals}"

    def forward(self, logits: Tensor, deltas: Tensor) -> Tensor:
        """``(B, A)`` logits and ``(B, A, 4)`` deltas to ``(B, R, 4)`` proposals, best first; padding has no area."""
        size = (self.width, self.height)
        return best_proposals(
            logits, deltas, lambda index: self.anchors[index.flatten()], self.counts, size, self.options
        )


def best_proposals(
    logits: Tensor,
    deltas: Tensor,
    anchors_at: Callable[[Tensor], Tensor],
    counts: Sequence[int],
    size: tuple[int, int],
    options: DetectorOptions,
) -> Tensor:
    """Select the best anchors of each level, apply their deltas, clip, and run NMS within each level.

    Args:
        logits: ``(B, A)`` objectness.
        deltas: ``(B, A, 4)``.
        anchors_at: Maps ``(B, K)`` anchor indices to ``(B * K, 4)`` boxes, ``xyxy`` in pixels.
        counts: Anchors per level, finest first; their sum is A.
        size: Canvas ``(width, height)`` in pixels.
        options: Limits of the counts.

    Returns:
        ``(B, R, 4)`` in pixels, best first; padding has no area. R is at most ``options.proposals``.
    """
    batch = logits.shape[0]
    width, height = size
    boxes, scores, levels = [], [], []
    start = 0
    for position, count in enumerate(counts):
        kept = min(options.pre_nms_top_n, count)
        top = logits[:, start : start + count].topk(kept, dim=1)
        index = top.indices + start
        delta = deltas.gather(1, index[:, :, None].expand(-1, -1, 4))
        boxes.append(_CODER.decode_single(delta.reshape(-1, 4), anchors_at(index)).view(batch, kept, 4))
        scores.append(top.values.sigmoid())
        levels.append(torch.full((kept,), position, device=logits.device))
        start += count
    limit = torch.tensor([width, height, width, height], device=logits.device)
    box = torch.minimum(torch.cat(boxes, dim=1).clamp(min=0), limit.to(logits.dtype))
    side = torch.minimum(box[..., 2] - box[..., 0], box[..., 3] - box[..., 1])
    score = torch.cat(scores, dim=1) * (side >= 1e-3)
    score = score * grouped_nms_mask(box, score, torch.cat(levels), _NMS_IOU, max(width, height))
    best = score.topk(min(options.proposals, score.shape[1]), dim=1)
    chosen = box.gather(1, best.indices[:, :, None].expand(-1, -1, 4))
    proposals: Tensor = chosen * (best.values > 0)[:, :, None]
    return proposals


def rpn_loss(
    layer: ProposalLayer,
    logits: Tensor,
    deltas: Tensor,
    targets: PaddedTargets,
    losses: LossOptions = USUAL_LOSSES,
) -> dict[str, Tensor]:
    """:func:`anchor_loss` over the layer's anchors; ATSS considers those at the nine nearest positions of a level."""
    anchors = layer.anchors[None]
    if losses.assignment == "atss":
        matches = match_adaptive(anchors, layer.counts, targets, _ATSS_CELLS * layer.per_cell)
    else:
        matches = match(anchors, targets, layer.options.rpn_overlap, NEGATIVE_OVERLAP, keep_best=True)
    return anchor_loss(anchors, matches, logits, deltas, targets, layer.options, losses)


def anchor_loss(
    anchors: Tensor,
    matches: Matches,
    logits: Tensor,
    deltas: Tensor,
    targets: PaddedTargets,
    options: DetectorOptions,
    losses: LossOptions,
) -> dict[str, Tensor]:
    """Objectness (binary cross-entropy) and box losses over a balanced sample of anchors.

    Args:
        anchors: ``(B or 1, A, 4)`` ``xyxy`` in pixels, without gradient; 1 if all images share them.
        matches: Assignment of anchors to objects.
        logits: ``(B, A)``.
        deltas: ``(B, A, 4)``.
        targets: The objects.
        options: Size of the sample, at most half of it positive.
        losses: The box loss.
    """
    index, positive, chosen = sample_balanced(matches, options.rpn_samples, 0.5)
    logit = logits.gather(1, index)
    total = chosen.sum().clamp(min=1)
    bce = F.binary_cross_entropy_with_logits(logit, positive.to(logit.dtype), reduction="none")
    wide = index[:, :, None].expand(-1, -1, 4)
    objects = targets.boxes.gather(1, matches.object_index.gather(1, index)[:, :, None].expand(-1, -1, 4))[positive]
    reference = anchors.expand(len(logits), -1, -1).gather(1, wide)[positive]
    delta = deltas.gather(1, wide)[positive]
    if losses.box == "smooth-l1":
        wanted = _CODER.encode_single(objects, reference)
        box = _BOX_WEIGHT * F.smooth_l1_loss(delta, wanted, beta=_BETA, reduction="sum") / total
    else:
        box = overlap_loss(losses.box, _CODER.decode_single(delta, reference), objects)
    return {"rpn_objectness": (bce * chosen).sum() / total, "rpn_box": box}
