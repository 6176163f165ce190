"""RoIAlign over a feature pyramid: every box reads the level that fits its size.

Sources: He et al., "Mask R-CNN", arXiv 1703.06870; Lin et al., "Feature Pyramid Networks", arXiv 1612.03144, equation 1
(the level of a box).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels.dispatch import on_device_of, runs_triton

__all__ = [
    "bin_cells",
    "multi_level_roi_align",
    "multi_level_roi_align_plain",
    "multi_level_roi_align_reference",
    "roi_levels",
]

_OUTSIDE = -3.0  # a ``grid_sample`` coordinate that reads 0, whatever the size of the feature map
SAMPLES = 2  # bilinear samples per bin and axis, as in torchvision's detectors


def roi_levels(boxes: Tensor, strides: list[int], canonical_size: float) -> Tensor:
    """Return the index of the pyramid level that each box reads.

    A box of ``canonical_size`` reads the level of stride 16, one of half that size stride 8, and so on, clamped to the
    existing levels.

    Args:
        boxes: ``(..., 4)`` float, ``xyxy``.
        strides: Strides of the levels, finest first, each twice the one before.
        canonical_size: Square root of a box's area, in pixels.

    Returns:
        ``(...)`` int64 index into ``strides``.
    """
    area = (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)
    finest = math.log2(16 / strides[0])
    # 1e-6 as in torchvision: rounding must not push a box of exactly the canonical size below it
    level = torch.floor(torch.log2(torch.sqrt(area) / canonical_size + 1e-6) + finest)
    # a NaN box has no level, but is pooled all the same, so that the loss shows it
    return level.clamp(min=0, max=len(strides) - 1).nan_to_num(0).to(torch.int64)


def multi_level_roi_align_reference(
    features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> Tensor:
    """Reference: RoIAlign of every box on every level, of which each box's own level is picked.

    Args:
        features: One ``(B, C, H_l, W_l)`` feature map per level, finest first.
        boxes: ``(B, R, 4)`` float, ``xyxy`` in image pixels.
        strides: Pixels per position of each level.
        output_size: Positions on each side of the pooled feature maps.
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
    """Equals :func:`multi_level_roi_align_reference`, pooling each box on its own level only; differentiable.

    One torchvision operator per level, or one kernel for all of them, without host synchronisation.
    """
    pooled: Tensor
    if runs_triton(*features, boxes):
        pooled = _pyramid(features, boxes.detach().float(), strides, output_size, canonical_size)
    elif torch.is_grad_enabled() and any(feature.requires_grad for feature in features):
        pooled = _pool(features, boxes, strides, output_size, canonical_size)
    else:
        pooled = _inference_op(features, boxes, strides, output_size, canonical_size)
    return pooled


def multi_level_roi_align_plain(
    features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> Tensor:
    """Equals :func:`multi_level_roi_align_reference`, by tensor operators of static shapes: one ``grid_sample``.

    The feature maps are stacked vertically, so a box's level is a row offset and no box is pooled on another level.
    """
    dtype = features[0].dtype
    maps = [feature.float() if dtype in (torch.float16, torch.bfloat16) else feature for feature in features]
    batch, channels = maps[0].shape[:2]
    heights, widths = [one.shape[2] for one in maps], [one.shape[3] for one in maps]
    height, width = sum(heights), max(widths)
    atlas = torch.cat([F.pad(one, (0, width - one.shape[3])) for one in maps], dim=2) if len(maps) > 1 else maps[0]
    boxes = boxes.to(atlas.dtype)

    def fact(values: Sequence[float]) -> Tensor:
        """Select one number per level by each box's level: ``(B, R, 1)``."""
        found = torch.full_like(boxes[..., :1], values[0])
        for index, number in enumerate(values[1:], start=1):
            found = torch.where(level == index, number, found)
        return found

    level = roi_levels(boxes, strides, canonical_size).unsqueeze(2)
    scaled = boxes * fact([1 / stride for stride in strides])
    x = _sample_positions(scaled[..., 0:1], scaled[..., 2:3], fact(widths), output_size)
    y = _sample_positions(scaled[..., 1:2], scaled[..., 3:4], fact(heights), output_size)
    first_row = fact([sum(heights[:index]) for index in range(len(heights))])
    # grid_sample's coordinates: -1 and 1 are the outer edges of the map, half a cell beyond its outer cells' centres
    grid_x = torch.where(x < 0, _OUTSIDE, (2 * x + 1) / width - 1)
    grid_y = torch.where(y < 0, _OUTSIDE, (2 * (y + first_row) + 1) / height - 1)
    samples = output_size * SAMPLES
    shape = (batch, boxes.shape[1], samples, samples)
    grid = torch.stack([grid_x.unsqueeze(2).expand(shape), grid_y.unsqueeze(3).expand(shape)], dim=4)
    read = F.grid_sample(atlas, grid.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False)
    pooled = F.avg_pool2d(read, SAMPLES).view(batch, channels, boxes.shape[1], output_size, output_size)
    return pooled.transpose(1, 2).flatten(0, 1).to(dtype)


def _sample_positions(start: Tensor, end: Tensor, cells: Tensor, output_size: int) -> Tensor:
    """Return a box's sampling positions on an axis: ``(..., 1)`` ends to ``(..., samples)``, -1 for those outside."""
    step = (end - start).clamp(min=1.0) / (output_size * SAMPLES)
    offset = torch.arange(output_size * SAMPLES, device=start.device, dtype=start.dtype) + 0.5
    position = start + step * offset
    inside = (position >= -1) & (position <= cells)
    return torch.where(inside, torch.minimum(position.clamp(min=0), cells - 1), -1.0)


def _roi_align(feature: Tensor, rois: Tensor, output_size: int, stride: int) -> Tensor:
    pooled: Tensor = torchvision.ops.roi_align(feature, rois, output_size, 1 / stride, SAMPLES, aligned=False)
    return pooled


class _Bags(torch.autograd.Function):
    """RoIAlign on a CPU, all levels at once: a bin is a weighted sum of 16 positions, as in an embedding bag.

    PyTorch sums bags in a fraction of torchvision's pooling time. The gradient of a position is a bag of the bins that
    read it, found by sorting. ``benchmarks/kernels/pooling_on_cpu.py`` times both.
    """

    @staticmethod
    def forward(
        ctx: Any, boxes: Tensor, strides: list[int], output_size: int, canonical_size: float, *features: Tensor
    ) -> Tensor:
        cells, weights = bin_cells(features, boxes, strides, output_size, canonical_size)
        ctx.save_for_backward(cells, weights)
        ctx.shapes, ctx.last = [feature.shape for feature in features], _channels_last(features)
        channels = features[0].shape[1]
        # one row per cell of every image and level
        table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features])
        bins = F.embedding_bag(cells, table, mode="sum", per_sample_weights=weights)
        return bins.view(-1, output_size, output_size, channels).permute(0, 3, 1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        cells, weights = ctx.saved_tensors
        sizes = [shape[0] * shape[2] * shape[3] for shape in ctx.shapes]
        # stable: a cell sums in the same order every time
        reads = cells.flatten().sort(stable=True)
        first = torch.searchsorted(reads.values, torch.arange(sum(sizes), dtype=torch.int32))
        bins = upstream.permute(0, 2, 3, 1).reshape(-1, upstream.shape[1])
        table = F.embedding_bag(
            torch.div(reads.indices, cells.shape[1], rounding_mode="floor"),
            bins,
            first,
            mode="sum",
            per_sample_weights=weights.flatten()[reads.indices],
        )
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        gradients = [
            rows.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2).contiguous(memory_format=layout)
            for rows, shape in zip(torch.split(table, sizes), ctx.shapes, strict=True)
        ]
        return None, None, None, None, *gradients


def bin_cells(
    features: Sequence[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> tuple[Tensor, Tensor]:
    """Return the positions that every bin reads, int32 rows over all levels, and their weights: ``(bins, 16)`` each."""
    level = roi_levels(boxes, strides, canonical_size).flatten()
    heights, widths = (_numbers([feature.shape[axis] for feature in features])[level] for axis in (2, 3))
    sizes = [feature.shape[0] * feature.shape[2] * feature.shape[3] for feature in features]
    image = torch.arange(boxes.shape[0]).repeat_interleave(boxes.shape[1])
    first = _numbers([sum(sizes[:index]) for index in range(len(sizes))])[level] + image * heights * widths
    left, top, right, bottom = (boxes.flatten(0, 1) / _numbers(strides)[level, None]).unbind(1)
    y, y_weight = _axis_cells(top, bottom, heights, output_size)
    x, x_weight = _axis_cells(left, right, widths, output_size)
    rows = first[:, None, None] + y * widths[:, None, None]
    cells = (rows[:, :, None, :, None] + x[:, None, :, None, :]).to(torch.int32)
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    return cells.view(-1, (2 * SAMPLES) ** 2), weights.reshape(-1, (2 * SAMPLES) ** 2)


def _numbers(values: Sequence[int]) -> Tensor:
    """``torch.tensor(values)``, which a decomposition can not trace."""
    return torch.stack([torch.full((), value) for value in values])


def _axis_cells(start: Tensor, end: Tensor, cells: Tensor, output_size: int) -> tuple[Tensor, Tensor]:
    """Return the positions of an axis that each bin reads, and their weights, ``(N, output_size, 2 * SAMPLES)``."""
    side = ((end - start).clamp(min=1.0) / output_size)[:, None, None]
    index = torch.arange(output_size)[:, None]
    sample = torch.arange(SAMPLES) + 0.5
    # in the order of torchvision's operator, so that positions agree to the last bit
    position = start[:, None, None] + index * side + sample * side / SAMPLES
    last = (cells - 1)[:, None, None]
    inside = ~((position < -1) | (position > last + 1))
    position = torch.minimum(position.clamp(min=0), last)
    # NaN reads the first cell, with a NaN weight
    low = position.nan_to_num(0.0).to(torch.int64)
    part = position - low
    both = torch.stack([low, torch.minimum(low + 1, last)], dim=3)
    weight = torch.stack([1 - part, part], dim=3) * inside[..., None] / SAMPLES
    return both.flatten(2), weight.flatten(2)


def _with_batch_index(boxes: Tensor) -> Tensor:
    batch, count = boxes.shape[:2]
    index = torch.arange(batch, device=boxes.device, dtype=boxes.dtype).view(-1, 1, 1).expand(-1, count, 1)
    return torch.cat([index, boxes], dim=2).flatten(0, 1)


def _pool(features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float) -> Tensor:
    dtype = features[0].dtype
    if dtype in (torch.float16, torch.bfloat16):
        # half precision loses half a pixel from 256 pixels on, and not every device pools it: pool in float32
        wide = [feature.float() for feature in features]
        return _pool(wide, boxes.float(), strides, output_size, canonical_size).to(dtype)
    cells = sum(feature.shape[0] * feature.shape[2] * feature.shape[3] for feature in features)
    reads = boxes.shape[0] * boxes.shape[1] * output_size**2 * (2 * SAMPLES) ** 2
    # with few boxes on large feature maps, copying the maps would take longer than pooling
    if features[0].device.type == "cpu" and 2 * cells <= reads:
        pooled: Tensor = _Bags.apply(boxes.to(dtype), strides, output_size, canonical_size, *features)
        return pooled
    rois = _with_batch_index(boxes).to(dtype)
    if len(features) == 1:
        return _roi_align(features[0], rois, output_size, strides[0])
    level = roi_levels(boxes, strides, canonical_size).flatten()
    order: list[Tensor] = []
    parts: list[Tensor] = []
    for index, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        chosen = (level == index).nonzero().squeeze(1)
        order.append(chosen)
        parts.append(_roi_align(feature, rois[chosen], output_size, stride))
    return torch.cat(parts)[torch.argsort(torch.cat(order))]


@torch.library.custom_op("smnas::multi_level_roi_align", mutates_args=())
def _inference_op(
    features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> Tensor:
    # with one level and with no boxes, too, the result is fresh memory, as a custom operator requires
    return _pool(features, boxes, strides, output_size, canonical_size)


def _empty_pooled(
    features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> Tensor:
    return features[0].new_empty((boxes.shape[0] * boxes.shape[1], features[0].shape[1], output_size, output_size))


_inference_op.register_fake(_empty_pooled)


def _channels_last(features: Sequence[Tensor]) -> bool:
    """Whether the kernel reads channels-last: all feature maps are so, and not all are also contiguous."""
    last = all(feature.is_contiguous(memory_format=torch.channels_last) for feature in features)
    return last and not all(feature.is_contiguous() for feature in features)


@torch.library.custom_op("smnas::pyramid_roi_align", mutates_args=())
def _pyramid(
    features: list[Tensor], boxes: Tensor, strides: list[int], output_size: int, canonical_size: float
) -> Tensor:
    pooled = _empty_pooled(features, boxes, strides, output_size, canonical_size)
    if pooled.numel() == 0:
        return pooled
    from kernels.triton import roi_align

    last = _channels_last(features)
    maps = features if last else [feature.contiguous() for feature in features]
    with on_device_of(boxes):
        roi_align.forward(pooled, maps, boxes, strides, SAMPLES, canonical_size, channels_last=last)
    return pooled


_pyramid.register_fake(_empty_pooled)


@torch.library.custom_op("smnas::pyramid_roi_align_backward", mutates_args=())
def _pyramid_backward(
    upstream: Tensor,
    boxes: Tensor,
    heights: list[int],
    widths: list[int],
    strides: list[int],
    canonical_size: float,
    channels_last: bool,
) -> list[Tensor]:
    """Return gradients of the feature maps, in the dtype of ``upstream``."""
    gradients = _empty_gradients(upstream, boxes, heights, widths, channels_last)
    if 0 in gradients[0].shape:
        return gradients
    from kernels.triton import roi_align

    with on_device_of(boxes):
        roi_align.backward(gradients, upstream, boxes, strides, SAMPLES, canonical_size, channels_last=channels_last)
    return gradients


@_pyramid_backward.register_fake
def _(upstream: Tensor, boxes: Tensor, *layout: Any) -> list[Tensor]:
    heights, widths, _, _, channels_last = layout
    return _empty_gradients(upstream, boxes, heights, widths, channels_last)


def _empty_gradients(
    upstream: Tensor, boxes: Tensor, heights: Sequence[int], widths: Sequence[int], channels_last: bool
) -> list[Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shapes = [(boxes.shape[0], upstream.shape[1], *size) for size in zip(heights, widths, strict=True)]
    return [torch.empty(shape, dtype=upstream.dtype, device=upstream.device, memory_format=layout) for shape in shapes]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, strides, _, canonical_size = inputs
    ctx.save_for_backward(boxes)
    ctx.heights, ctx.widths = [one.shape[2] for one in features], [one.shape[3] for one in features]
    ctx.strides, ctx.canonical_size, ctx.channels_last = strides, canonical_size, _channels_last(features)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[list[Tensor] | None, ...]:
    (boxes,) = ctx.saved_tensors
    layout = (ctx.heights, ctx.widths, ctx.strides, ctx.canonical_size, ctx.channels_last)
    return _pyramid_backward(upstream, boxes, *layout), None, None, None, None


_pyramid.register_autograd(_gradients, setup_context=_setup)
