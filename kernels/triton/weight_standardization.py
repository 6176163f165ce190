"""Weight Standardization of all filters of a network in one launch forward and one backward.

Weights stay in place and are read through a table of addresses. A program takes a few filters, of whichever weights,
and passes over them three times: mean, variance, write. They are small enough that the last two passes hit the cache.
All arithmetic is in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted

__all__ = ["Launch", "backward", "forward", "launch"]


@dataclass(frozen=True)
class Launch:
    """Filters per program, elements of each per step (powers of 2), and warps."""

    filters: int
    elements: int
    warps: int


def launch() -> Launch:
    """Choose how filters are spread over programs, the same for every network."""
    return Launch(256, 128, 4) if interpreted() else Launch(4, 512, 4)


def forward(weights: Sequence[Tensor], eps: float) -> tuple[list[Tensor], Tensor]:
    """Return all weights standardized, and the reciprocal deviation of every filter, ``(F,)`` float32.

    Weights ``(O, ...)`` are not empty, of one dtype and device, each filter contiguous in memory.
    """
    out = [torch.empty_like(weight) for weight in weights]
    rstd = weights[0].new_empty(sum(map(len, weights)), dtype=torch.float32)
    _run(_standardize, (weights, out), rstd, eps)
    return out, rstd


def backward(upstream: Sequence[Tensor], out: Sequence[Tensor], rstd: Tensor) -> list[Tensor]:
    """Return the gradients of all weights.

    ``out`` and ``rstd`` are the results of :func:`forward`; ``upstream`` has dtype and layout of ``out``.
    """
    gradient = [torch.empty_like(one) for one in out]
    _run(_standardize_backward, (upstream, out, gradient), rstd)
    return gradient


def _run(kernel: Any, tensors: tuple[Sequence[Tensor], ...], rstd: Tensor, *more: float) -> None:
    """Launch a kernel on lists of tensors of the same shapes."""
    plan, out = launch(), tensors[1]
    filters = _filters(tuple((len(one), one[0].numel()) for one in out), rstd.device)
    kernel[(triton.cdiv(len(rstd), plan.filters),)](
        *(_addresses(*tensors), out[0], rstd, filters, len(rstd), len(out), *more),
        FILTERS=plan.filters,
        ELEMENTS=plan.elements,
        num_warps=plan.warps,
    )


@lru_cache(maxsize=256)
def _filters(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return every filter's weight, first element and length, given ``(filters, length)`` of each weight."""
    filters, lengths = torch.tensor(shapes).unbind(1)
    weight_of = torch.arange(len(shapes)).repeat_interleave(filters)
    length = lengths.repeat_interleave(filters)
    offset = torch.cat([torch.arange(count) for count, _ in shapes]) * length
    return weight_of.to(device, torch.int32), offset.to(device), length.to(device, torch.int32)


def _addresses(*tensors: Sequence[Tensor]) -> Tensor:
    """Return the addresses of some lists of tensors, concatenated."""
    device = tensors[0][0].device
    table = torch.tensor([one.data_ptr() for several in tensors for one in several], dtype=torch.int64)
    # from pinned memory the copy does not synchronise
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


@triton.jit
def _rows(addresses, filters, count, FILTERS: tl.constexpr):
    """Return a program's filters with a mask, where their weights' addresses are, first elements and lengths."""
    weight_of, offset, length = filters
    row = tl.program_id(0) * FILTERS + tl.arange(0, FILTERS)
    exists = row < count
    own = addresses + tl.load(weight_of + row, mask=exists, other=0)
    first = tl.load(offset + row, mask=exists, other=0)
    return row, exists, own, first, tl.load(length + row, mask=exists, other=0)


@triton.jit
def _elements(own, like, first, exists):
    """Return pointers to the first elements of filters, whose weights' addresses are at ``own``."""
    return (tl.load(own, mask=exists, other=0).to(tl.pointer_type(like.dtype.element_ty)) + first)[:, None]


@triton.jit
def _standardize(addresses, like, rstd, filters, count, weights, eps, FILTERS: tl.constexpr, ELEMENTS: tl.constexpr):
    row, exists, own, first, length = _rows(addresses, filters, count, FILTERS)
    weight, out = _elements(own, like, first, exists), _elements(own + weights, like, first, exists)
    longest, number, count = tl.max(length, axis=0), tl.maximum(length, 1), length[:, None]
    total = tl.zeros([FILTERS], dtype=tl.float32)
    for start in range(0, longest, ELEMENTS):
        i = (start + tl.arange(0, ELEMENTS))[None, :]
        total += tl.sum(tl.load(weight + i, mask=i < count, other=0.0).to(tl.float32), axis=1)
    mean = (total / number)[:, None]
    spread = tl.zeros([FILTERS], dtype=tl.float32)
    for start in range(0, longest, ELEMENTS):
        i = (start + tl.arange(0, ELEMENTS))[None, :]
        centred = tl.load(weight + i, mask=i < count, other=0.0).to(tl.float32) - mean
        spread += tl.sum(tl.where(i < count, centred * centred, 0.0), axis=1)
    factor = 1.0 / tl.sqrt(spread / number + eps)
    tl.store(rstd + row, factor, mask=exists)
    for start in range(0, longest, ELEMENTS):
        i = (start + tl.arange(0, ELEMENTS))[None, :]
        centred = tl.load(weight + i, mask=i < count, other=0.0).to(tl.float32) - mean
        tl.store(out + i, (centred * factor[:, None]).to(like.dtype.element_ty), mask=i < count)


@triton.jit
def _standardize_backward(
    addresses, like, rstd, filters, count, weights, FILTERS: tl.constexpr, ELEMENTS: tl.constexpr
):
    row, exists, own, first, length = _rows(addresses, filters, count, FILTERS)
    upstream, out = _elements(own, like, first, exists), _elements(own + weights, like, first, exists)
    gradient = _elements(own + 2 * weights, like, first, exists)
    longest, number, count = tl.max(length, axis=0), tl.maximum(length, 1), length[:, None]
    sum_up = tl.zeros([FILTERS], dtype=tl.float32)
    sum_up_normal = tl.zeros([FILTERS], dtype=tl.float32)
    for start in range(0, longest, ELEMENTS):
        i = (start + tl.arange(0, ELEMENTS))[None, :]
        up = tl.load(upstream + i, mask=i < count, other=0.0).to(tl.float32)
        normal = tl.load(out + i, mask=i < count, other=0.0).to(tl.float32)
        sum_up += tl.sum(up, axis=1)
        sum_up_normal += tl.sum(up * normal, axis=1)
    mean_up = (sum_up / number)[:, None]
    mean_up_normal = (sum_up_normal / number)[:, None]
    factor = tl.load(rstd + row, mask=exists, other=0.0)[:, None]
    for start in range(0, longest, ELEMENTS):
        i = (start + tl.arange(0, ELEMENTS))[None, :]
        up = tl.load(upstream + i, mask=i < count, other=0.0).to(tl.float32)
        normal = tl.load(out + i, mask=i < count, other=0.0).to(tl.float32)
        change = (up - mean_up - normal * mean_up_normal) * factor
        tl.store(gradient + i, change.to(like.dtype.element_ty), mask=i < count)
