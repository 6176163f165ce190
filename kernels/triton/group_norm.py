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

__all__ = ["Backward", "Launch", "backward", "forward", "launch"]

_WHOLE = 8192  # largest padded group, in elements, that one program holds: 32 per thread in eight warps
_TILE = 4096
_INTERPRETED = 1 << 20  # the interpreter needs a millisecond per program, however much it computes
_GATHER = 1024


Backward = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]
"""Gradient of the output, input, output if needed, weight, bias, and mean and reciprocal deviation of every group."""


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
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output like ``x``, and mean and reciprocal deviation of every group, ``(B, groups)`` float32.

    ``x`` is not empty and contiguous or channels-last; ``residual`` has its layout. Other arguments are those of
    :func:`kernels.group_norm.group_norm_relu_reference`.
    """
    batch, channels, cells, last = _geometry(x)
    plan = launch(batch, channels, groups, cells, channels_last=last)
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty((batch, groups), dtype=torch.float32) for _ in range(2))
    shape = groups, channels // groups, cells
    inputs = x, x if residual is None else residual, weight, bias
    what = {"LAST": last, "RELU": relu, "RESIDUAL": residual is not None}
    if plan.whole:
        grid = (triton.cdiv(batch * groups, plan.rows),)
        _forward_whole[grid](inputs, (y, mean, rstd), shape, batch * groups, eps, **what, **_whole(plan, shape))
        return y, mean, rstd
    chunks = triton.cdiv(cells, plan.cells)
    tiles = (chunks, triton.cdiv(channels, plan.channels), batch)
    moments = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
    tile = {"CHANNELS": plan.channels, "CELLS": plan.cells, "num_warps": plan.warps}
    _tile_moments[tiles](x, moments, shape, chunks, LAST=last, **tile)
    _group_moments[(batch * groups,)](moments, mean, rstd, shape, batch, chunks, eps, CELLS=plan.cells, GATHER=_GATHER)
    _normalize[tiles](inputs, (y, mean, rstd), shape, **what, **tile)
    return y, mean, rstd


def backward(inputs: Backward, relu: bool, residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of :func:`forward`.

    ``upstream`` has the layout of ``x``; ``y`` is the output if there were ReLU and a residual (without one ``x`` shows
    what was below 0); ``mean`` and ``rstd`` are the other two results; ``residual`` is whether there was one.

    Returns:
        Gradient of ``x``, that of the residual (empty without one), and ``(2, B, C)`` float32, every image's
        contribution to the gradients of bias and weight.
    """
    upstream, x, y, weight, bias, mean, rstd = inputs
    batch, channels, cells, last = _geometry(x)
    groups = mean.shape[1]
    plan = launch(batch, channels, groups, cells, channels_last=last)
    gradient = torch.empty_like(x)
    added = torch.empty_like(x) if residual else x.new_empty(0)
    gradients = gradient, added if residual else gradient
    sums = x.new_empty((2, batch, channels), dtype=torch.float32)
    shape = groups, channels // groups, cells
    read = upstream, x, x if y is None else y, weight, bias, mean, rstd
    what = {"LAST": last, "RELU": relu, "SAVED": y is not None}
    if plan.whole:
        _backward_whole[(triton.cdiv(batch * groups, plan.rows),)](
            read, gradients, sums, shape, batch * groups, **what, RESIDUAL=residual, **_whole(plan, shape)
        )
        return gradient, added, sums
    chunks = triton.cdiv(cells, plan.cells)
    tiles = (chunks, triton.cdiv(channels, plan.channels), batch)
    partial = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
    shares = x.new_empty((2, batch, groups), dtype=torch.float32)
    tile = {"CHANNELS": plan.channels, "CELLS": plan.cells, "num_warps": plan.warps}
    _tile_sums[tiles](read, partial, shape, chunks, **what, **tile)
    block = triton.next_power_of_2(shape[1])
    _group_sums[(batch * groups,)](
        (partial, weight), (sums, shares), shape, batch, chunks, CHANNELS=block, CHUNKS=max(1, _GATHER // block)
    )
    _input_gradient[tiles](read, shares, gradients, shape, **what, RESIDUAL=residual, **tile)
    return gradient, added, sums


def _geometry(x: Tensor) -> tuple[int, int, int, bool]:
    """Return the numbers of images, channels and positions, and whether the layout is channels-last."""
    batch, channels = x.shape[:2]
    return batch, channels, x.numel() // (batch * channels), not x.is_contiguous()


def _whole(plan: Launch, shape: tuple[int, int, int]) -> dict[str, int]:
    """Return the settings of a kernel whose programs hold whole groups."""
    even = shape[1] == plan.channels
    return {"EVEN": even, "ROWS": plan.rows, "CHANNELS": plan.channels, "CELLS": plan.cells, "num_warps": plan.warps}


# In kernels, `shape` is (groups, channels per group, positions).


@triton.jit
def _offsets(image, channel, cell, shape, LAST: tl.constexpr):
    """Return the offsets of elements, given what broadcasts to their images, channels and positions."""
    groups, group_channels, cells = shape
    channels = groups * group_channels
    at = channel + cell * channels if LAST else channel * cells + cell
    return image.to(tl.int64) * (channels * cells) + at


@triton.jit
def _groups(
    shape, rows, LAST: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, CELLS: tl.constexpr
):
    """Return a program's groups: rows, channels with a mask, and element offsets with a mask."""
    groups, group_channels, cells = shape
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CHANNELS)
    s = tl.arange(0, CELLS)[None, None, :]
    # without masked channels the compiler may vectorize the reads
    width = CHANNELS if EVEN else group_channels
    channel = (row % groups)[:, None] * width + c[None, :]
    is_channel = (row < rows)[:, None] & (c < width)[None, :]
    inside = is_channel[:, :, None] & (s < cells)
    if EVEN:
        inside = (row < rows)[:, None, None] & (s < cells)
    at = _offsets((row // groups)[:, None, None], channel[:, :, None], s, shape, LAST)
    return row, channel, is_channel, at, inside


@triton.jit
def _tile(shape, LAST: tl.constexpr, CHANNELS: tl.constexpr, CELLS: tl.constexpr):
    """Return a program's tile: image, channels with a mask, their groups, and element offsets with a mask."""
    groups, group_channels, cells = shape
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2)
    s = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    is_channel = c < groups * group_channels
    inside = is_channel[:, None] & (s < cells)[None, :]
    at = _offsets(image, c[:, None], s[None, :], shape, LAST)
    return image, c, is_channel, image * groups + c // group_channels, at, inside


@triton.jit
def _read(pointer, at, mask):
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _spread(pointer, index, mask):
    """Load one number per channel and broadcast it over the cells."""
    return tl.expand_dims(_read(pointer, index, mask), -1)


@triton.jit
def _upstream(inputs, at, inside, normal, scale, channel, is_channel, RELU: tl.constexpr, SAVED: tl.constexpr):
    """Return the gradient behind ReLU: 0 where the output, saved or recomputed, is not above 0."""
    upstream, _, y, _, bias, _, _ = inputs
    up = _read(upstream, at, inside)
    if RELU:
        if SAVED:
            out = _read(y, at, inside)
        else:
            shift = _spread(bias, channel, is_channel)
            out = (normal * scale + shift).to(y.dtype.element_ty).to(tl.float32)
        up = tl.where(out <= 0.0, 0.0, up)
    return up


@triton.jit
def _store_output(y, residual, out, at, inside, RELU: tl.constexpr, RESIDUAL: tl.constexpr):
    if RESIDUAL:
        out += _read(residual, at, inside)
    if RELU:
        out = tl.where(out <= 0.0, 0.0, out)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _store_gradients(gradients, out, up, at, inside, RESIDUAL: tl.constexpr):
    gradient, added = gradients
    if RESIDUAL:
        tl.store(added + at, up.to(added.dtype.element_ty), mask=inside)
    tl.store(gradient + at, out.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def _forward_whole(
    inputs,
    outputs,
    shape,
    rows,
    eps,
    LAST: tl.constexpr,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    x, residual, weight, bias = inputs
    y, mean_out, rstd_out = outputs
    row, channel, is_channel, at, inside = _groups(shape, rows, LAST, EVEN, ROWS, CHANNELS, CELLS)
    value = _read(x, at, inside)
    size = shape[1] * shape[2]
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
    inputs,
    gradients,
    sums,
    shape,
    rows,
    LAST: tl.constexpr,
    RELU: tl.constexpr,
    SAVED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    _, x, _, weight, _, mean, rstd = inputs
    groups, group_channels, cells = shape
    row, channel, is_channel, at, inside = _groups(shape, rows, LAST, EVEN, ROWS, CHANNELS, CELLS)
    middle = tl.load(mean + row, mask=row < rows, other=0.0)[:, None, None]
    factor = tl.load(rstd + row, mask=row < rows, other=0.0)[:, None, None]
    scale = _spread(weight, channel, is_channel)
    normal = tl.where(inside, (_read(x, at, inside) - middle) * factor, 0.0)
    up = _upstream(inputs, at, inside, normal, scale, channel, is_channel, RELU, SAVED)
    to_channel = (row // groups)[:, None] * (groups * group_channels) + channel
    tl.store(sums + to_channel, tl.sum(up, axis=2), mask=is_channel)
    tl.store(sums + rows * group_channels + to_channel, tl.sum(up * normal, axis=2), mask=is_channel)
    size = group_channels * cells
    share = tl.sum(tl.sum(up * scale, axis=2), axis=1) / size
    share_normal = tl.sum(tl.sum(up * scale * normal, axis=2), axis=1) / size
    out = (up * scale - share[:, None, None] - normal * share_normal[:, None, None]) * factor
    _store_gradients(gradients, out, up, at, inside, RESIDUAL)


@triton.jit
def _tile_moments(x, moments, shape, chunks, LAST: tl.constexpr, CHANNELS: tl.constexpr, CELLS: tl.constexpr):
    channels, cells = shape[0] * shape[1], shape[2]
    chunk = tl.program_id(0)
    image, c, is_channel, _, at, inside = _tile(shape, LAST, CHANNELS, CELLS)
    value = _read(x, at, inside)
    mean = tl.sum(value, axis=1) / tl.minimum(cells - chunk * CELLS, CELLS)
    centred = tl.where(inside, value - mean[:, None], 0.0)
    to_channel = (image * chunks + chunk) * channels + c
    squares = moments + tl.num_programs(2) * chunks * channels
    tl.store(moments + to_channel, mean, mask=is_channel)
    tl.store(squares + to_channel, tl.sum(centred * centred, axis=1), mask=is_channel)


@triton.jit
def _group_moments(moments, mean_out, rstd_out, shape, batch, chunks, eps, CELLS: tl.constexpr, GATHER: tl.constexpr):
    groups, group_channels, cells = shape
    channels = groups * group_channels
    squares = moments + batch * chunks * channels
    row = tl.program_id(0)
    first = (row // groups) * chunks * channels + (row % groups) * group_channels
    count = chunks * group_channels
    size = group_channels * cells
    total = tl.zeros([GATHER], dtype=tl.float32)
    for start in range(0, count, GATHER):
        i = start + tl.arange(0, GATHER)
        chunk = i // group_channels
        at = first + chunk * channels + i % group_channels
        weight = tl.minimum(cells - chunk * CELLS, CELLS)
        total += tl.where(i < count, tl.load(moments + at, mask=i < count, other=0.0) * weight, 0.0)
    mean = tl.sum(total, axis=0) / size
    # Chan et al.: squares around each tile's mean, plus the tile means' squares around the overall mean
    spread = tl.zeros([GATHER], dtype=tl.float32)
    for start in range(0, count, GATHER):
        i = start + tl.arange(0, GATHER)
        chunk = i // group_channels
        at = first + chunk * channels + i % group_channels
        weight = tl.minimum(cells - chunk * CELLS, CELLS)
        apart = tl.load(moments + at, mask=i < count, other=0.0) - mean
        spread += tl.where(i < count, tl.load(squares + at, mask=i < count, other=0.0) + apart * apart * weight, 0.0)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, 1.0 / tl.sqrt(tl.sum(spread, axis=0) / size + eps))


@triton.jit
def _normalize(
    inputs,
    outputs,
    shape,
    LAST: tl.constexpr,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    x, residual, weight, bias = inputs
    y, mean, rstd = outputs
    _, c, is_channel, group, at, inside = _tile(shape, LAST, CHANNELS, CELLS)
    middle, factor = _spread(mean, group, is_channel), _spread(rstd, group, is_channel)
    scale, shift = _spread(weight, c, is_channel), _spread(bias, c, is_channel)
    out = (_read(x, at, inside) - middle) * factor * scale + shift
    _store_output(y, residual, out, at, inside, RELU, RESIDUAL)


@triton.jit
def _tile_upstream(inputs, tile, RELU: tl.constexpr, SAVED: tl.constexpr):
    """Return the normalized input, the gradient behind ReLU, and scale and reciprocal deviation of each channel."""
    _, x, _, weight, _, mean, rstd = inputs
    _, c, is_channel, group, at, inside = tile
    middle, factor = _spread(mean, group, is_channel), _spread(rstd, group, is_channel)
    scale = _spread(weight, c, is_channel)
    normal = tl.where(inside, (_read(x, at, inside) - middle) * factor, 0.0)
    up = _upstream(inputs, at, inside, normal, scale, c, is_channel, RELU, SAVED)
    return normal, up, scale, factor


@triton.jit
def _tile_sums(
    inputs,
    partial,
    shape,
    chunks,
    LAST: tl.constexpr,
    RELU: tl.constexpr,
    SAVED: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    channels = shape[0] * shape[1]
    tile = _tile(shape, LAST, CHANNELS, CELLS)
    image, c, is_channel, _, _, _ = tile
    normal, up, _, _ = _tile_upstream(inputs, tile, RELU, SAVED)
    to_channel = (image * chunks + tl.program_id(0)) * channels + c
    tl.store(partial + to_channel, tl.sum(up, axis=1), mask=is_channel)
    partial += tl.num_programs(2) * chunks * channels
    tl.store(partial + to_channel, tl.sum(up * normal, axis=1), mask=is_channel)


@triton.jit
def _group_sums(inputs, outputs, shape, batch, chunks, CHANNELS: tl.constexpr, CHUNKS: tl.constexpr):
    partial, weight = inputs
    sums, shares = outputs
    groups, group_channels, cells = shape
    row = tl.program_id(0)
    channels = groups * group_channels
    own = tl.arange(0, CHANNELS)
    channel = (row % groups) * group_channels + own
    is_channel = own < group_channels
    to_channel = (row // groups) * channels + channel
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    for half in tl.static_range(2):  # of upstream, then of upstream times the normalized input
        total = tl.zeros([CHANNELS], dtype=tl.float32)
        for start in range(0, chunks, CHUNKS):
            chunk = start + tl.arange(0, CHUNKS)
            inside = (chunk < chunks)[:, None] & is_channel[None, :]
            at = ((half * batch + row // groups) * chunks + chunk)[:, None] * channels + channel[None, :]
            total += tl.sum(tl.load(partial + at, mask=inside, other=0.0), axis=0)
        tl.store(sums + half * batch * channels + to_channel, total, mask=is_channel)
        tl.store(shares + half * batch * groups + row, tl.sum(total * scale, axis=0) / (group_channels * cells))


@triton.jit
def _input_gradient(
    inputs,
    shares,
    gradients,
    shape,
    LAST: tl.constexpr,
    RELU: tl.constexpr,
    SAVED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
):
    tile = _tile(shape, LAST, CHANNELS, CELLS)
    _, _, is_channel, group, at, inside = tile
    normal, up, scale, factor = _tile_upstream(inputs, tile, RELU, SAVED)
    share = _spread(shares, group, is_channel)
    share_normal = _spread(shares + tl.num_programs(2) * shape[0], group, is_channel)
    _store_gradients(gradients, (up * scale - share - normal * share_normal) * factor, up, at, inside, RESIDUAL)
