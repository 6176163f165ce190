"""Shared by the dense heads: towers of convolutions, and the path to detections."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from smnas.models.heads.roi_heads import select_detections
from smnas.models.layers import ConvNorm, NormKind
from smnas.models.options import DetectorOptions
from smnas.models.target import Detections

__all__ = ["conv_tower", "detect_dense"]


def conv_tower(norm: NormKind, in_channels: int, width: int, depth: int, *, always_norm: bool = False) -> nn.Sequential:
    """``depth`` 3x3 convolutions of ``width`` channels with ReLU; ``always_norm`` as in ConvNorm."""
    widths = [in_channels] + [width] * depth
    return nn.Sequential(*(ConvNorm(norm, a, b, 3, always_norm=always_norm) for a, b in pairwise(widths)))


def detect_dense(
    logits: Tensor,
    regressed: Tensor,
    references: Tensor,
    counts: Sequence[int],
    decode: Callable[[Tensor, Tensor], Tensor],
    size: tuple[int, int],
    options: DetectorOptions,
) -> Detections:
    """Decode the best (position, class) pairs of each level and run class-wise NMS.

    Args:
        logits: ``(B, A, classes)``.
        regressed: ``(B, A, 4)``.
        references: ``(A, R)``, reference of each box: an anchor, or a centre and stride.
        counts: References per level, finest first; their sum is A.
        decode: Maps ``(N, 4)`` regressed values and ``(N, R)`` references to ``(N, 4)`` boxes in pixels.
        size: Canvas ``(width, height)`` in pixels.
        options: Thresholds and counts.
    """
    batch, _, classes = logits.shape
    scores, boxes, labels = [], [], []
    start = 0
    for count in counts:
        level = logits[:, start : start + count].flatten(1)
        top = level.topk(min(options.pre_nms_top_n, level.shape[1]), dim=1)
        index = top.indices // classes + start
        chosen = regressed.gather(1, index[:, :, None].expand(-1, -1, 4))
        boxes.append(decode(chosen.reshape(-1, 4), references[index.flatten()]).view(batch, -1, 4))
        scores.append(top.values.sigmoid())
        labels.append(top.indices % classes)
        start += count
    width, height = size
    limit = torch.tensor([width, height, width, height], device=logits.device)
    box = torch.minimum(torch.cat(boxes, dim=1).clamp(min=0), limit.to(logits.dtype))
    # each pair has one score: spread over the classes so that all heads share the last step
    label = torch.cat(labels, dim=1)[:, :, None]
    spread = torch.cat(scores, dim=1)[:, :, None] * (label == torch.arange(classes, device=logits.device))
    return select_detections(spread, box[:, :, None], options, max(width, height))
