"""RoIAlign over all levels of a pyramid in one launch forward and one backward.

Forward, a program finds a box's level and pools some of its channels. Backward, a program owns a tile of a level's
gradient and gathers from the boxes that reach it, in index order. Without atomic additions the same inputs give the
same sums (in float32), and every cell is written once, in its feature map's dtype, without clearing. The price: every
program scans all boxes of its image, a block at a time.

Feature maps may be contiguous or channels-last. All arithmetic is in float32, in the order of torchvision's operator.
A NaN box is pooled to NaN, and its level's gradient is NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted

__all__ = ["Launch", "backward", "forward", "launch", "level_thresholds"]

_PACES = 64


@dataclass(frozen=True)
class Launch:
    """Work of a program in powers of 2: channels (per box forward, per tile backward), tile size, boxes per scan."""

    channels: int
    rows: int
    columns: int
    boxes: int
    warps: int


def launch(channels: int) -> Launch:
    """Choose how feature maps of ``channels`` channels are spread over programs."""
    most = triton.next_power_of_2(channels)
    return Launch(min(most, 256), 16, 16, 64, 4) if interpreted() else Launch(min(most, 32), 4, 16, 128, 4)


@cache
def level_thresholds(levels: int, finest_stride: int) -> tuple[float, ...]:
    """Return the least ``side / canonical_size + 1e-6`` of a box that reads each level, or a coarser one.

    Comparisons give the result of :func:`kernels.roi_align.roi_levels` on every device. Its float32 logarithm rounds
    numbers just below a power of two up to it, and the thresholds follow that.
    """
    finest = math.log2(16 / finest_stride)
    found = [0.0]
    for level in range(1, levels):
        near = 2.0 ** (level - finest) * (1 - torch.arange(_PACES, dtype=torch.float64) * 2.0**-24)
        reached = torch.floor(torch.log2(near.float()) + finest) >= level
        found.append(float(near.float()[reached].min()))
    return tuple(found)


def forward(
    pooled: Tensor,
    features: Sequence[Tensor],
    boxes: Tensor,
    strides: Sequence[int],
    samples: int,
    canonical_size: float,
    *,
    channels_last: bool,
) -> None:
    """Fill ``pooled``, contiguous, as :func:`kernels.roi_align.multi_level_roi_align_reference` does.

    No feature map is empty, and all are contiguous or all channels-last. Boxes are float32, at least one; ``samples``
    are per bin and axis.
    """
    count, (rows, channels, output_size) = boxes.shape[1], pooled.shape[:3]
    plan = launch(channels)
    _forward[(rows, triton.cdiv(channels, plan.channels))](
        *(tuple(features), boxes.contiguous(), pooled, _geometry(features, strides), canonical_size, count, channels),
        LEVELS=len(features),
        SIZE=output_size,
        SAMPLES=samples,
        CHANNELS_LAST=channels_last,
        BINS=triton.next_power_of_2(output_size**2),
        CHANNELS=plan.channels,
        num_warps=plan.warps,
    )


def backward(
    gradients: Sequence[Tensor],
    upstream: Tensor,
    boxes: Tensor,
    strides: Sequence[int],
    samples: int,
    canonical_size: float,
    *,
    channels_last: bool,
) -> None:
    """Fill the gradients of the feature maps of :func:`forward`, ``(B, C, H_l, W_l)`` per level, in their layout.

    ``upstream`` is ``(B * R, C, output_size, output_size)``, and its dtype that of the gradients; R may be 0.
    """
    batch, count = boxes.shape[:2]
    channels, output_size = upstream.shape[1:3]
    plan = launch(channels)
    tiles = [triton.cdiv(one.shape[2], plan.rows) * triton.cdiv(one.shape[3], plan.columns) for one in gradients]
    *first_tiles, total = accumulate(tiles, initial=0)
    # A program reads many channels of a bin: channels-last, it gets them in one piece.
    turned = upstream.permute(0, 2, 3, 1).contiguous()
    _backward[(total, triton.cdiv(channels, plan.channels), batch)](
        *(tuple(gradients), boxes.contiguous(), turned),
        *(_geometry(gradients, strides), tuple(first_tiles), canonical_size, count, channels),
        LEVELS=len(gradients),
        SIZE=output_size,
        SAMPLES=samples,
        CHANNELS_LAST=channels_last,
        ROWS=plan.rows,
        COLUMNS=plan.columns,
        CHANNELS=plan.channels,
        BOXES=plan.boxes,
        num_warps=plan.warps,
    )


def _geometry(
    maps: Sequence[Tensor], strides: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Return heights, widths, positions per pixel and smallest box sizes of the levels."""
    heights, widths = tuple(one.shape[2] for one in maps), tuple(one.shape[3] for one in maps)
    return heights, widths, tuple(1 / one for one in strides), level_thresholds(len(strides), strides[0])


@triton.jit
def _of(values, level, LEVELS: tl.constexpr):
    found = values[0]
    for i in tl.static_range(1, LEVELS):
        found = tl.where(level == i, values[i], found)
    return found


@triton.jit
def _level(left, top, right, bottom, canonical_size, thresholds, LEVELS: tl.constexpr):
    width, height = right - left, bottom - top
    width = tl.where(width < 0.0, 0.0, width)
    height = tl.where(height < 0.0, 0.0, height)
    relative = tl.div_rn(tl.sqrt_rn(width * height), canonical_size) + 1e-6
    level = (relative < 0.0).to(tl.int32)  # 0, as for NaN
    for i in tl.static_range(1, LEVELS):
        level += (relative >= thresholds[i]).to(tl.int32)
    return level


@triton.jit
def _bin_side(start, end, SIZE: tl.constexpr):
    side = end - start
    return tl.where(side < 1.0, 1.0, side) / SIZE


@triton.jit
def _position(start, bin_side, index, sample, cells, SAMPLES: tl.constexpr):
    """Return the position of a bin's sample on an axis, and whether it is inside."""
    position = start + index * bin_side + (sample + 0.5) * bin_side / SAMPLES
    outside = (position < -1.0) | (position > cells)
    position = tl.where(position <= 0.0, 0.0, position)
    last = (cells - 1) * 1.0
    return tl.where(position >= last, last, position), ~outside


@triton.jit
def _neighbours(position, cells):
    """Return the pixels on both sides of a position, and its distance from the first; 0 for NaN."""
    low = tl.where(position >= 0.0, position, 0.0).to(tl.int32)
    return low, tl.minimum(low + 1, cells - 1), position - low


@triton.jit
def _forward(
    features,
    boxes,
    pooled,
    geometry,
    canonical_size,
    count,
    channels,
    LEVELS: tl.constexpr,
    SIZE: tl.constexpr,
    SAMPLES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BINS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    heights, widths, scales, thresholds = geometry
    row = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    bins = tl.arange(0, BINS)
    left, top = tl.load(boxes + row * 4), tl.load(boxes + row * 4 + 1)
    right, bottom = tl.load(boxes + row * 4 + 2), tl.load(boxes + row * 4 + 3)
    level = _level(left, top, right, bottom, canonical_size, thresholds, LEVELS)
    height, width = _of(heights, level, LEVELS), _of(widths, level, LEVELS)
    scale = _of(scales, level, LEVELS)
    feature = _of(features, level, LEVELS) + (row // count).to(tl.int64) * channels * height * width
    start_x, start_y = left * scale, top * scale
    side_x, side_y = _bin_side(start_x, right * scale, SIZE), _bin_side(start_y, bottom * scale, SIZE)
    total = tl.zeros([CHANNELS, BINS], dtype=tl.float32)
    for sample in range(SAMPLES * SAMPLES):
        y, inside_y = _position(start_y, side_y, bins // SIZE, sample // SAMPLES, height, SAMPLES)
        x, inside_x = _position(start_x, side_x, bins % SIZE, sample % SAMPLES, width, SAMPLES)
        inside = inside_y & inside_x & (bins < SIZE * SIZE)
        y_low, y_high, y_part = _neighbours(y, height)
        x_low, x_high, x_part = _neighbours(x, width)
        for corner in tl.static_range(4):
            cell = (y_high if corner // 2 else y_low) * width + (x_high if corner % 2 else x_low)
            weight = (y_part if corner // 2 else 1.0 - y_part) * (x_part if corner % 2 else 1.0 - x_part)
            if CHANNELS_LAST:
                at = cell[None, :] * channels + c[:, None]
            else:
                at = c[:, None] * (height * width) + cell[None, :]
            value = tl.load(feature + at, mask=(c < channels)[:, None] & inside[None, :], other=0.0).to(tl.float32)
            total += tl.where(inside, weight, 0.0)[None, :] * value
    to = (row.to(tl.int64) * channels + c[:, None]) * (SIZE * SIZE) + bins[None, :]
    written = (c < channels)[:, None] & (bins < SIZE * SIZE)[None, :]
    tl.store(pooled + to, (total / (SAMPLES * SAMPLES)).to(pooled.dtype.element_ty), mask=written)


@triton.jit
def _share(start, bin_side, index, cell, cells, SAMPLES: tl.constexpr):
    """Return the weights of an axis' pixels in a bin: a tent around each sample."""
    total = cell * 0.0
    for sample in tl.static_range(SAMPLES):
        position, inside = _position(start, bin_side, index, sample, cells, SAMPLES)
        tent = 1.0 - tl.abs(position - cell)
        total += tl.where(inside, tl.where(tent <= 0.0, 0.0, tent), 0.0)
    return total / SAMPLES


@triton.jit
def _bins(start, bin_side, first, after, SIZE: tl.constexpr):
    """Return the bins of a box with samples between two points of an axis: the first, and one past the last."""
    lowest, highest = (first - start) / bin_side, (after - start) / bin_side
    # NaN compares as false: all bins then
    lowest = tl.where((lowest > 0.0) & (lowest < SIZE), lowest, tl.where(lowest >= SIZE, SIZE * 1.0, 0.0))
    highest = tl.where((highest >= 0.0) & (highest < SIZE), highest + 1.0, tl.where(highest < 0.0, 0.0, SIZE * 1.0))
    return lowest.to(tl.int32), highest.to(tl.int32)


@triton.jit
def _backward(
    gradients,
    boxes,
    upstream,
    geometry,
    first_tiles,
    canonical_size,
    count,
    channels,
    LEVELS: tl.constexpr,
    SIZE: tl.constexpr,
    SAMPLES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BOXES: tl.constexpr,
):
    heights, widths, scales, thresholds = geometry
    tile = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2)
    level = (tile < 0).to(tl.int32)
    for i in tl.static_range(1, LEVELS):
        level += (tile >= first_tiles[i]).to(tl.int32)
    tile -= _of(first_tiles, level, LEVELS)
    height, width = _of(heights, level, LEVELS), _of(widths, level, LEVELS)
    scale = _of(scales, level, LEVELS)
    across = tl.cdiv(width, COLUMNS)
    first_y, first_x = (tile // across) * ROWS, (tile % across) * COLUMNS
    cell = tl.arange(0, ROWS * COLUMNS)
    y, x = first_y + cell // COLUMNS, first_x + cell % COLUMNS
    total = tl.zeros([CHANNELS, ROWS * COLUMNS], dtype=tl.float32)
    for start in range(0, count, BOXES):
        index = start + tl.arange(0, BOXES)
        box = boxes + (image * count + index) * 4
        exists = index < count
        left, top = tl.load(box, mask=exists, other=0.0), tl.load(box + 1, mask=exists, other=0.0)
        right, bottom = tl.load(box + 2, mask=exists, other=0.0), tl.load(box + 3, mask=exists, other=0.0)
        start_x, start_y = left * scale, top * scale
        side_x, side_y = _bin_side(start_x, right * scale, SIZE), _bin_side(start_y, bottom * scale, SIZE)
        # a sample in the last cell before a tile, or up to a cell outside the map, counts in it; "not beside" rather
        # than "within", so that a NaN box reaches every tile
        beside = (start_x > first_x + COLUMNS) | (start_x + SIZE * side_x < first_x - 1)
        beside |= (start_y > first_y + ROWS) | (start_y + SIZE * side_y < first_y - 1)
        reaches = exists & ~beside
        reaches &= _level(left, top, right, bottom, canonical_size, thresholds, LEVELS) == level
        for _ in range(tl.sum(reaches.to(tl.int32), axis=0)):
            own = tl.min(tl.where(reaches, index, count), axis=0)
            reaches &= index != own
            row = image * count + own
            box_x, box_y = tl.load(boxes + row * 4) * scale, tl.load(boxes + row * 4 + 1) * scale
            bin_width = _bin_side(box_x, tl.load(boxes + row * 4 + 2) * scale, SIZE)
            bin_height = _bin_side(box_y, tl.load(boxes + row * 4 + 3) * scale, SIZE)
            from_y, to_y = _bins(box_y, bin_height, first_y - 1, first_y + ROWS, SIZE)
            from_x, to_x = _bins(box_x, bin_width, first_x - 1, first_x + COLUMNS, SIZE)
            value_at = upstream + row.to(tl.int64) * (SIZE * SIZE) * channels + c
            for bin_y in range(from_y, to_y):
                share_y = _share(box_y, bin_height, bin_y, y, height, SAMPLES)
                for bin_x in range(from_x, to_x):
                    share = share_y * _share(box_x, bin_width, bin_x, x, width, SAMPLES)
                    bin_at = value_at + (bin_y * SIZE + bin_x) * channels
                    value = tl.load(bin_at, mask=c < channels, other=0.0).to(tl.float32)
                    # cells that a bin does not read stay finite whatever the bin's value
                    total += tl.where(share[None, :] == 0.0, 0.0, value[:, None] * share[None, :])
    gradient = _of(gradients, level, LEVELS) + image.to(tl.int64) * channels * height * width
    if CHANNELS_LAST:
        at = (y * width + x)[None, :] * channels + c[:, None]
    else:
        at = c[:, None] * (height * width) + (y * width + x)[None, :]
    inside = (c < channels)[:, None] & ((y < height) & (x < width))[None, :]
    tl.store(gradient + at, total.to(gradients[0].dtype.element_ty), mask=inside)
