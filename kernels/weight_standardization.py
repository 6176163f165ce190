"""Weight Standardization: every output filter of a convolution gets zero mean and unit variance.

Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
arXiv 1903.10520.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import on_device_of, runs_triton

__all__ = ["weight_standardize", "weight_standardize_all", "weight_standardize_reference"]


def weight_standardize_reference(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Reference: subtract each filter's mean, divide by ``sqrt(biased variance + eps)``; ``(O, I, kh, kw)``."""
    flat = weight.flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    variance = flat.var(dim=1, keepdim=True, unbiased=False)
    return ((flat - mean) / torch.sqrt(variance + eps)).view_as(weight)


def weight_standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Equals :func:`weight_standardize_reference`, in one operator forward and one backward.

    Layer normalization of the filters is the same arithmetic, fused in PyTorch. On one CPU core, forward and backward,
    it is 1.4 (ResNet-18 detector) to 2.1 times (nano baseline) as fast as batch normalization of a batch of one.
    """
    if runs_triton(weight):
        return weight_standardize_all([weight], eps)[0]
    flat = weight.flatten(1)
    return torch.nn.functional.layer_norm(flat, flat.shape[1:], eps=eps).view_as(weight)


def weight_standardize_all(weights: Sequence[Tensor], eps: float = 1e-5) -> list[Tensor]:
    """Apply :func:`weight_standardize` to each weight; on a GPU one kernel launch each way for all of them.

    All weights ``(O, I, kh, kw)`` share one dtype and device.
    """
    if not weights or not runs_triton(*weights):
        return [weight_standardize(weight, eps) for weight in weights]
    standardized: list[Tensor] = _forward(list(weights), eps)[0]
    return standardized


def _filters_together(weight: Tensor) -> Tensor:
    """Return the weight in a layout, of two, in which a filter's elements are contiguous."""
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return weight if last else weight.contiguous()


@torch.library.custom_op("smnas::weight_standardize", mutates_args=())
def _forward(weights: Sequence[Tensor], eps: float) -> tuple[list[Tensor], Tensor]:
    """Return the standardized weights, and each filter's reciprocal deviation for the backward pass."""
    weights = [_filters_together(weight) for weight in weights]
    from kernels.triton import weight_standardization

    with on_device_of(weights[0]):
        return weight_standardization.forward(weights, eps)


@_forward.register_fake
def _(weights: Sequence[Tensor], eps: float) -> tuple[list[Tensor], Tensor]:
    filters = sum(len(weight) for weight in weights)
    out = [torch.empty_like(_filters_together(weight)) for weight in weights]
    return out, weights[0].new_empty(filters, dtype=torch.float32)


@torch.library.custom_op("smnas::weight_standardize_backward", mutates_args=())
def _backward(upstream: Sequence[Tensor], out: Sequence[Tensor], rstd: Tensor) -> list[Tensor]:
    """Return the gradients of the weights, each in the layout of its output."""
    upstream = [
        up.to(one.dtype) if up.stride() == one.stride() else torch.empty_like(one).copy_(up)
        for up, one in zip(upstream, out, strict=True)
    ]
    from kernels.triton import weight_standardization

    with on_device_of(rstd):
        return weight_standardization.backward(upstream, out, rstd)


@_backward.register_fake
def _(upstream: Sequence[Tensor], out: Sequence[Tensor], rstd: Tensor) -> list[Tensor]:
    return [torch.empty_like(one) for one in out]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[list[Tensor], Tensor]) -> None:
    out, rstd = output
    ctx.save_for_backward(*out, rstd)


def _gradients(ctx: Any, upstream: list[Tensor], *_: Tensor) -> tuple[list[Tensor], None]:
    *out, rstd = ctx.saved_tensors
    return _backward(upstream, out, rstd), None


_forward.register_autograd(_gradients, setup_context=_setup)
