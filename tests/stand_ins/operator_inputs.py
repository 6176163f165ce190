"""Inputs of the kernels' tests, which run in two processes: with and without Triton's interpreter."""

import torch
from torch import Tensor


def random_boxes(batch: int, count: int, side: float, generator: torch.Generator) -> Tensor:
    """``(batch, count, 4)`` boxes inside a square, most of them small."""
    corner = torch.rand(batch, count, 2, generator=generator) * side
    size = torch.rand(batch, count, 2, generator=generator) ** 2 * side
    return torch.cat([corner, (corner + size).clamp(max=side)], dim=2)


def norm_inputs(*, last: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Feature map, residual, weight and bias of 12 channels."""
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(2, 12, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = torch.randn(2, 12, generator=generator, dtype=torch.float64).unbind(0)
    layout = torch.channels_last if last else torch.contiguous_format
    drawn = (x.contiguous(memory_format=layout), residual.contiguous(memory_format=layout), weight + 1, bias)
    return tuple(one.to(dtype).requires_grad_() for one in drawn)  # type: ignore[return-value]


def pyramid_inputs(*, last: bool = False) -> tuple[list[Tensor], Tensor]:
    """Two feature maps, and boxes on them."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    maps = [torch.randn(2, 3, 16 >> level, 12 >> level, generator=generator) for level in range(2)]
    maps = [one.contiguous(memory_format=layout).requires_grad_() for one in maps]
    return maps, random_boxes(2, 5, 48.0, generator)
