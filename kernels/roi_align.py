"""RoIAlign over a feature pyramid: every box reads the level that fits its size.

Sources: He et al., "Mask R-CNN", arXiv 1703.06870 (RoIAlign); Lin et al., "Feature Pyramid Networks", arXiv 1612.03144,
equation 1 (the level of a box).
"""

import torch
import torchvision
from torch import Tensor

__all__ = ["multi_level_roi_align", "multi_level_roi_align_reference", "roi_levels"]

SAMPLES = 2  # bilinear samples per bin and axis, as in torchvision's detectors


def roi_levels(boxes: Tensor, strides: list[int], canonical_size: float) -> Tensor:
    """Index of the pyramid level that each box reads.

    A box of ``canonical_size`` pixels (square root of its area) reads the level of stride 16, one of half that size the
    level of stride 8, and so on, clamped to the levels there are.

    Args:
        boxes: ``(..., 4)`` float, ``xyxy``.
        strides: Strides of the levels, finest first, each twice the one before.
        canonical_size: Pixels.

    Returns:
        ``(...)`` int64 index into ``strides``.
    """
    area = (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)
    finest = torch.log2(torch.tensor(16.0 / strides[0]))
    # 1e-6 as in torchvision: a box of exactly the canonical size must not fall below it by rounding
    level = torch.floor(torch.log2(torch.sqrt(area) / canonical_size + 1e-6) + finest.to(area))
    return level.clamp(min=0, max=len(strides) - 1).to(torch.int64)


def multi_level_roi_align_reference(
    features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> Tensor:
    """The specification: RoIAlign of every box on every level, then each box's own level is picked.

    Args:
        features: One ``(B, C, H_l, W_l)`` map per level, finest first.
        boxes: ``(B, R, 4)`` float, ``xyxy`` in picture pixels.
        strides: Pixels per cell of each level.
        output_size: Cells on each side of the pooled maps.
        canonical_size: See :func:`roi_levels`.

    Returns:
        ``(B * R, C, output_size, output_size)``.
    """
    rois = _with_batch_index(boxes)
    level = roi_levels(boxes, strides, canonical_size).flatten()
    pooled = torch.zeros(())
    for index, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        one = _roi_align(feature, rois, output_size, stride)
        pooled = one if index == 0 else torch.where((level == index).view(-1, 1, 1, 1), one, pooled)
    return pooled


def multi_level_roi_align(
    features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> Tensor:
    """As :func:`multi_level_roi_align_reference`, pooling each box on its own level alone; differentiable."""
    if torch.is_grad_enabled() and any(feature.requires_grad for feature in features):
        return _pool(features, boxes, strides, output_size, canonical_size)
    pooled: Tensor = _inference_op(features, boxes, strides, output_size, canonical_size)
    return pooled


def _roi_align(feature: Tensor, rois: Tensor, output_size: int, stride: int) -> Tensor:
    pooled: Tensor = torchvision.ops.roi_align(feature, rois, output_size, 1 / stride, SAMPLES, aligned=False)
    return pooled


def _with_batch_index(boxes: Tensor) -> Tensor:
    batch, count = boxes.shape[:2]
    index = torch.arange(batch, device=boxes.device, dtype=boxes.dtype).view(-1, 1, 1).expand(-1, count, 1)
    return torch.cat([index, boxes], dim=2).flatten(0, 1)


def _pool(features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float) -> Tensor:
    rois = _with_batch_index(boxes).to(features[0].dtype)
    if len(features) == 1:
        return _roi_align(features[0], rois, output_size, strides[0])
    level = roi_levels(boxes, strides, canonical_size).flatten()
    order: list[Tensor] = []
    pooled: list[Tensor] = []
    for index, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        chosen = (level == index).nonzero().squeeze(1)
        order.append(chosen)
        pooled.append(_roi_align(feature, rois[chosen], output_size, stride))
    return torch.cat(pooled)[torch.argsort(torch.cat(order))]


@torch.library.custom_op("smnas::multi_level_roi_align", mutates_args=())
def _inference_op(
    features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> Tensor:
    # one level and no boxes both return fresh memory, as a custom operator must
    return _pool(features, boxes, strides, output_size, canonical_size)


@_inference_op.register_fake
def _(features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float) -> Tensor:
    rows = boxes.shape[0] * boxes.shape[1]
    return features[0].new_empty((rows, features[0].shape[1], output_size, output_size))
