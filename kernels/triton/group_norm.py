"""GroupNorm, residual addition and ReLU in one pass forward and one backward.

A feature map is read through its strides, ``(image, channel, position)``, so contiguous and channels-last ones share
the code. Small groups are read once: a program holds them in registers. For large ones that would leave most of a GPU
idle, so they are cut into tiles over channels and positions, whose moments (forward) or sums (backward) are gathered
per group before a second pass over the tiles. Without atomic additions the same inputs give the same sums.

All arithmetic is in float32. ``NaN <= 0`` is false: NaN passes ReLU, as in PyTorch.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted

__all__ = ["Launch", "backward", "forward", "launch"]

_WHOLE = 8192  # largest padded group, in elements, that one program holds: 32 per thread in eight warps
_TILE = 4096
_INTERPRETED = 1 << 20  # the interpreter needs a millisecond per program, however much it computes
_GATHER = 1024


@dataclass(frozen=True)
class Launch:
    """Tiling of a feature map; sizes are powers of 2.

    Attributes:
        whole: A program holds whole groups; otherwise a tile of an image.
        rows: Groups per program, if whole.
        channels: Per group, if whole, otherwise per tile.
        cells: Positions per group, if whole, otherwise per tile.
        warps: Per program.
    """

    whole: bool
    rows: int
    channels: int
    cells: int
    warps: int


def launch(batch: int, channels: int, groups: int, cells: int, *, channels_last: bool) -> Launch:
    """Choose the tiling of a feature map of ``(batch, channels, cells)``."""
    return _launch(batch, channels, groups, cells, channels_last, interpreted())


@lru_cache(maxsize=1024)  # called dozens of times a step, always with the same few shapes
def _launch(batch: int, channels: int, groups: int, cells: int, channels_last: bool, slowly: bool) -> Launch:
    group_channels, group_cells = (triton.next_power_of_2(n) for n in (channels // groups, cells))
    group = group_channels * group_cells
    whole, tile = (_INTERPRETED, _INTERPRETED) if slowly else (_WHOLE, _TILE)
    # a few channels of every cell would be read in pieces smaller than a memory transaction
    scattered = channels_last and group_channels < 8 and cells > 256
    if group <= whole and (slowly or not scattered):
        rows = max(1, min(triton.next_power_of_2(batch * groups), tile // group))
        return Launch(True, rows, group_channels, group_cells, _warps(rows * group))
    if channels_last:
        tile_channels = min(triton.next_power_of_2(channels), 64)
        tile_cells = min(group_cells, tile // tile_channels)
    else:
        tile_cells = min(group_cells, tile)
        tile_channels = min(triton.next_power_of_2(channels), max(1, tile // tile_cells))
    return Launch(False, 1, tile_channels, tile_cells, _warps(tile_channels * tile_cells))


def _warps(elements: int) -> int:
    return max(1, min(8, elements // 512))


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    relu: bool,
    shape: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output like ``x``, and mean and reciprocal deviation of every group, ``(B, groups)`` float32.

    ``x`` is not empty and contiguous or channels-last; ``residual`` has its layout. Other arguments are those of
    :func:`kernels.group_norm.group_norm_relu_reference`; ``shape`` overrides the tiling of :func:`launch`.
    """
    batch, channels, cells, *strides = _geometry(x)
    plan = shape or launch(batch, channels, groups, cells, channels_last=strides[1] == 1 and cells > 1)
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty((batch, groups), dtype=torch.float32) for _ in range(2))
    group_channels = channels // groups
    added = x if residual is None else residual
    if plan.whole:
        _forward_whole[(triton.cdiv(batch * groups, plan.rows),)](
            *(x, added, weight, bias, y, mean, rstd, batch * groups, groups, group_channels, cells, *strides, eps),
            RELU=relu,
            RESIDUAL=residual is not None,
            EVEN=group_channels == plan.channels,
            ROWS=plan.rows,
            CHANNELS=plan.channels,
            CELLS=plan.cells,
            num_warps=plan.warps,
        )
        return y, mean, rstd
    chunks = triton.cdiv(cells, plan.cells)
    grid = (chunks, triton.cdiv(channels, plan.channels), batch)
    means, squares = (x.new_empty((batch, chunks, channels), dtype=torch.float32) for _ in range(2))
    tile = {"CHANNELS": plan.channels, "CELLS": plan.cells, "num_warps": plan.warps}
    _tile_moments[grid](x, means, squares, channels, cells, chunks, *strides, **tile)
    _group_moments[(batch * groups,)](
        means, squares, mean, rstd, groups, group_channels, cells, chunks, eps, CELLS=plan.cells, GATHER=_GATHER
    )
    _normalize[grid](
        *(x, added, weight, bias, y, mean, rstd, groups, group_channels, cells, *strides),
        RELU=relu,
        RESIDUAL=residual is not None,
        **tile,
    )
    return y, mean, rstd


def backward(
    upstream: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    relu: bool,
    residual: bool,
    shape: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of :func:`forward`.

    ``upstream`` has the layout of ``x``; ``y`` is the output if there were ReLU and a residual (without one ``x`` shows
    what was below 0); ``mean`` and ``rstd`` are the other two results; ``residual`` is whether there was one.

    Returns:
        Gradient of ``x``, that of the residual (empty without one), and ``(2, B, C)`` float32, every image's
        contribution to the gradients of bias and weight.
    """
    batch, channels, cells, *strides = _geometry(x)
    groups = mean.shape[1]
    plan = shape or launch(batch, channels, groups, cells, channels_last=strides[1] == 1 and cells > 1)
    group_channels = channels // groups
    gradient = torch.empty_like(x)
    residual_gradient = torch.empty_like(x) if residual else x.new_empty(0)
    sums = x.new_empty((2, batch, channels), dtype=torch.float32)
    out, added = x if y is None else y, residual_gradient if residual else gradient
    what = {"RELU": relu, "SAVED": y is not None}
    if plan.whole:
        _backward_whole[(triton.cdiv(batch * groups, plan.rows),)](
            *(upstream, x, out, weight, bias, mean, rstd, gradient, added, sums[0], sums[1]),
            *(batch * groups, groups, group_channels, cells, *strides),
            **what,
            RESIDUAL=residual,
            EVEN=group_channels == plan.channels,
            ROWS=plan.rows,
            CHANNELS=plan.channels,
            CELLS=plan.cells,
            num_warps=plan.warps,
        )
        return gradient, residual_gradient, sums
    chunks = triton.cdiv(cells, plan.cells)
    grid = (chunks, triton.cdiv(channels, plan.channels), batch)
    partial = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
    shares = x.new_empty((2, batch, groups), dtype=torch.float32)
    tile = {"CHANNELS": plan.channels, "CELLS": plan.cells, "num_warps": plan.warps}
    read = upstream, x, out, weight, bias, mean, rstd
    shaped = groups, group_channels, cells, *strides
    _tile_sums[grid](*read, partial[0], partial[1], chunks, *shaped, **what, **tile)
    block = triton.next_power_of_2(group_channels)
    _group_sums[(batch * groups,)](
        *(partial[0], partial[1], weight, sums[0], sums[1], shares[0], shares[1]),
        *(groups, group_channels, cells, chunks),
        CHANNELS=block,
        CHUNKS=max(1, _GATHER // block),
    )
    _input_gradient[grid](*read, shares[0], shares[1], gradient, added, *shaped, **what, RESIDUAL=residual, **tile)
    return gradient, residual_gradient, sums


def _geometry(x: Tensor) -> tuple[int, int, int, int, int, int]:
    """Return the numbers of images, channels and positions, and their strides in elements."""
    batch, channels = x.shape[:2]
    cells = x.numel() // (batch * channels)
    if x.is_contiguous():
        return batch, channels, cells, channels * cells, cells, 1
    return batch, channels, cells, channels * cells, 1, channels


@triton.jit
def _groups(
    rows,
    groups,
    group_channels,
    cells,
    stride_b,
    stride_c,
    stride_s,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    """Return a program's groups: rows, channels with a mask, and element offsets with a mask."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CHANNELS)
    s = tl.arange(0, CELLS)
    # without masked channels the compiler may vectorize the reads
    width = CHANNELS if EVEN else group_channels
    channel = (row % groups)[:, None] * width + c[None, :]
    is_channel = (row < rows)[:, None] & (c < width)[None, :]
    inside = is_channel[:, :, None] & (s < cells)[None, None, :]
    if EVEN:
        inside = (row < rows)[:, None, None] & (s < cells)[None, None, :]
    image = (row // groups).to(tl.int64) * stride_b
    at = image[:, None, None] + channel[:, :, None] * stride_c + s[None, None, :] * stride_s
    return row, channel, is_channel, at, inside


@triton.jit
def _tile(channels, cells, stride_b, stride_c, stride_s, CHANNELS: tl.constexpr, CELLS: tl.constexpr):
    """Return a program's tile: image, channels with a mask, and element offsets with a mask."""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2)
    s = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    is_channel = c < channels
    inside = is_channel[:, None] & (s < cells)[None, :]
    at = image.to(tl.int64) * stride_b + c[:, None] * stride_c + s[None, :] * stride_s
    return image, c, is_channel, at, inside


@triton.jit
def _spread(pointer, index, mask):
    """Load one number per channel and broadcast it over the cells."""
    return tl.expand_dims(tl.load(pointer + index, mask=mask, other=0.0).to(tl.float32), -1)


@triton.jit
def _upstream(
    upstream, y, bias, at, inside, normal, scale, channel, is_channel, RELU: tl.constexpr, SAVED: tl.constexpr
):
    """Return the gradient behind ReLU: 0 where the output, saved or recomputed, is not above 0."""
    up = tl.load(upstream + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        if SAVED:
            out = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        else:
            shift = _spread(bias, channel, is_channel)
            out = (normal * scale + shift).to(y.dtype.element_ty).to(tl.float32)
        up = tl.where(out <= 0.0, 0.0, up)
    return up


@triton.jit
def _store_output(y, residual, out, at, inside, RELU: tl.constexpr, RESIDUAL: tl.constexpr):
    if RESIDUAL:
        out += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        out = tl.where(out <= 0.0, 0.0, out)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _forward_whole(
    x,
    residual,
    weight,
    bias,
    y,
    mean_out,
    rstd_out,
    rows,
    groups,
    group_channels,
    cells,
    stride_b,
    stride_c,
    stride_s,
    eps,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    row, channel, is_channel, at, inside = _groups(
        rows, groups, group_channels, cells, stride_b, stride_c, stride_s, EVEN, ROWS, CHANNELS, CELLS
    )
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    size = group_channels * cells
    mean = tl.sum(tl.sum(value, axis=2), axis=1) / size
    centred = tl.where(inside, value - mean[:, None, None], 0.0)
    variance = tl.sum(tl.sum(centred * centred, axis=2), axis=1) / size
    rstd = 1.0 / tl.sqrt(variance + eps)
    scale, shift = _spread(weight, channel, is_channel), _spread(bias, channel, is_channel)
    _store_output(y, residual, centred * rstd[:, None, None] * scale + shift, at, inside, RELU, RESIDUAL)
    tl.store(mean_out + row, mean, mask=row < rows)
    tl.store(rstd_out + row, rstd, mask=row < rows)


@triton.jit
def _backward_whole(
    upstream,
    x,
    y,
    weight,
    bias,
    mean,
    rstd,
    gradient,
    residual_gradient,
    sum_up,
    sum_up_normal,
    rows,
    groups,
    group_channels,
    cells,
    stride_b,
    stride_c,
    stride_s,
    RELU: tl.constexpr,
    SAVED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    row, channel, is_channel, at, inside = _groups(
        rows, groups, group_channels, cells, stride_b, stride_c, stride_s, EVEN, ROWS, CHANNELS, CELLS
    )
    middle = tl.load(mean + row, mask=row < rows, other=0.0)[:, None, None]
    factor = tl.load(rstd + row, mask=row < rows, other=0.0)[:, None, None]
    scale = _spread(weight, channel, is_channel)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    normal = tl.where(inside, (value - middle) * factor, 0.0)
    up = _upstream(upstream, y, bias, at, inside, normal, scale, channel, is_channel, RELU, SAVED)
    if RESIDUAL:
        tl.store(residual_gradient + at, up.to(residual_gradient.dtype.element_ty), mask=inside)
    by_channel = tl.sum(up, axis=2)
    by_channel_normal = tl.sum(up * normal, axis=2)
    to_channel = (row // groups)[:, None] * (groups * group_channels) + channel
    tl.store(sum_up + to_channel, by_channel, mask=is_channel)
    tl.store(sum_up_normal + to_channel, by_channel_normal, mask=is_channel)
    size = group_channels * cells
    share = tl.sum(tl.sum(up * scale, axis=2), axis=1) / size
    share_normal = tl.sum(tl.sum(up * scale * normal, axis=2), axis=1) / size
    out = (up * scale - share[:, None, None] - normal * share_normal[:, None, None]) * factor
    tl.store(gradient + at, out.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def _tile_moments(
    x,
    means,
    squares,
    channels,
    cells,
    chunks,
    stride_b,
    stride_c,
    stride_s,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    chunk = tl.program_id(0)
    image, c, is_channel, at, inside = _tile(channels, cells, stride_b, stride_c, stride_s, CHANNELS, CELLS)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=1) / tl.minimum(cells - chunk * CELLS, CELLS)
    centred = tl.where(inside, value - mean[:, None], 0.0)
    to_channel = (image * chunks + chunk) * channels + c
    tl.store(means + to_channel, mean, mask=is_channel)
    tl.store(squares + to_channel, tl.sum(centred * centred, axis=1), mask=is_channel)


@triton.jit
def _group_moments(
    means,
    squares,
    mean_out,
    rstd_out,
    groups,
    group_channels,
    cells,
    chunks,
    eps,
    CELLS: tl.constexpr,
    GATHER: tl.constexpr,
):
    row = tl.program_id(0)
    first = (row // groups) * chunks * groups * group_channels + (row % groups) * group_channels
    count = chunks * group_channels
    size = group_channels * cells
    total = tl.zeros([GATHER], dtype=tl.float32)
    for start in range(0, count, GATHER):
        i = start + tl.arange(0, GATHER)
        chunk = i // group_channels
        at = first + chunk * groups * group_channels + i % group_channels
        weight = tl.minimum(cells - chunk * CELLS, CELLS)
        total += tl.where(i < count, tl.load(means + at, mask=i < count, other=0.0) * weight, 0.0)
    mean = tl.sum(total, axis=0) / size
    # Chan et al.: squares around each tile's mean, plus the tile means' squares around the overall mean
    spread = tl.zeros([GATHER], dtype=tl.float32)
    for start in range(0, count, GATHER):
        i = start + tl.arange(0, GATHER)
        chunk = i // group_channels
        at = first + chunk * groups * group_channels + i % group_channels
        weight = tl.minimum(cells - chunk * CELLS, CELLS)
        apart = tl.load(means + at, mask=i < count, other=0.0) - mean
        spread += tl.where(i < count, tl.load(squares + at, mask=i < count, other=0.0) + apart * apart * weight, 0.0)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, 1.0 / tl.sqrt(tl.sum(spread, axis=0) / size + eps))


@triton.jit
def _normalize(
    x,
    residual,
    weight,
    bias,
    y,
    mean,
    rstd,
    groups,
    group_channels,
    cells,
    stride_b,
    stride_c,
    stride_s,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    image, c, is_channel, at, inside = _tile(
        groups * group_channels, cells, stride_b, stride_c, stride_s, CHANNELS, CELLS
    )
    group = image * groups + c // group_channels
    middle, factor = _spread(mean, group, is_channel), _spread(rstd, group, is_channel)
    scale = _spread(weight, c, is_channel)
    shift = _spread(bias, c, is_channel)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    _store_output(y, residual, (value - middle) * factor * scale + shift, at, inside, RELU, RESIDUAL)


@triton.jit
def _tile_sums(
    upstream,
    x,
    y,
    weight,
    bias,
    mean,
    rstd,
    sum_up,
    sum_up_normal,
    chunks,
    groups,
    group_channels,
    cells,
    stride_b,
    stride_c,
    stride_s,
    RELU: tl.constexpr,
    SAVED: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    chunk = tl.program_id(0)
    channels = groups * group_channels
    image, c, is_channel, at, inside = _tile(channels, cells, stride_b, stride_c, stride_s, CHANNELS, CELLS)
    group = image * groups + c // group_channels
    middle, factor = _spread(mean, group, is_channel), _spread(rstd, group, is_channel)
    scale = _spread(weight, c, is_channel)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    normal = tl.where(inside, (value - middle) * factor, 0.0)
    up = _upstream(upstream, y, bias, at, inside, normal, scale, c, is_channel, RELU, SAVED)
    to_channel = (image * chunks + chunk) * channels + c
    tl.store(sum_up + to_channel, tl.sum(up, axis=1), mask=is_channel)
    tl.store(sum_up_normal + to_channel, tl.sum(up * normal, axis=1), mask=is_channel)


@triton.jit
def _group_sums(
    tile_up,
    tile_up_normal,
    weight,
    sum_up,
    sum_up_normal,
    share,
    share_normal,
    groups,
    group_channels,
    cells,
    chunks,
    CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    row = tl.program_id(0)
    channels = groups * group_channels
    own = tl.arange(0, CHANNELS)
    channel = (row % groups) * group_channels + own
    is_channel = own < group_channels
    up = tl.zeros([CHANNELS], dtype=tl.float32)
    up_normal = tl.zeros([CHANNELS], dtype=tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        inside = (chunk < chunks)[:, None] & is_channel[None, :]
        at = ((row // groups) * chunks + chunk)[:, None] * channels + channel[None, :]
        up += tl.sum(tl.load(tile_up + at, mask=inside, other=0.0), axis=0)
        up_normal += tl.sum(tl.load(tile_up_normal + at, mask=inside, other=0.0), axis=0)
    to_channel = (row // groups) * channels + channel
    tl.store(sum_up + to_channel, up, mask=is_channel)
    tl.store(sum_up_normal + to_channel, up_normal, mask=is_channel)
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    size = group_channels * cells
    tl.store(share + row, tl.sum(up * scale, axis=0) / size)
    tl.store(share_normal + row, tl.sum(up_normal * scale, axis=0) / size)


@triton.jit
def _input_gradient(
    upstream,
    x,
    y,
    weight,
    bias,
    mean,
    rstd,
    share,
    share_normal,
    gradient,
    residual_gradient,
    groups,
    group_channels,
    cells,
    stride_b,
    stride_c,
    stride_s,
    RELU: tl.constexpr,
    SAVED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    image, c, is_channel, at, inside = _tile(
        groups * group_channels, cells, stride_b, stride_c, stride_s, CHANNELS, CELLS
    )
    group = image * groups + c // group_channels
    middle, factor = _spread(mean, group, is_channel), _spread(rstd, group, is_channel)
    scale = _spread(weight, c, is_channel)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    normal = (value - middle) * factor
    up = _upstream(upstream, y, bias, at, inside, normal, scale, c, is_channel, RELU, SAVED)
    if RESIDUAL:
        tl.store(residual_gradient + at, up.to(residual_gradient.dtype.element_ty), mask=inside)
    mean_up, mean_up_normal = _spread(share, group, is_channel), _spread(share_normal, group, is_channel)
    out = (up * scale - mean_up - normal * mean_up_normal) * factor
    tl.store(gradient + at, out.to(gradient.dtype.element_ty), mask=inside)
