"""GroupNorm, residual addition and ReLU as one operator.

Source: Wu and He, "Group Normalization", arXiv 1803.08494.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels.dispatch import on_device_of, runs_triton

__all__ = ["group_norm_relu", "group_norm_relu_reference"]


def group_norm_relu_reference(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    *,
    relu: bool = True,
) -> Tensor:
    """Reference: normalize each group of an image's channels, scale and shift, add the residual, apply ReLU.

    Args:
        x: ``(B, C, ...)``.
        groups: Groups of consecutive channels; divides C.
        weight: ``(C,)``.
        bias: ``(C,)``.
        eps: Added to the (biased) variance.
        residual: Shape of ``x``; added before ReLU.
        relu: Whether to apply ReLU, which lets NaN pass.

    Returns:
        A tensor of the shape of ``x``.
    """
    flat = x.reshape(x.shape[0], groups, -1)
    mean = flat.mean(dim=2, keepdim=True)
    variance = (flat - mean).square().mean(dim=2, keepdim=True)
    channels = (1, -1, *[1] * (x.dim() - 2))
    normal = ((flat - mean) / torch.sqrt(variance + eps)).view(x.shape)
    out = normal * weight.view(channels) + bias.view(channels)
    if residual is not None:
        out = out + residual
    return torch.where(out <= 0, 0.0, out) if relu else out


def group_norm_relu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    *,
    relu: bool = True,
) -> Tensor:
    """Equals :func:`group_norm_relu_reference`: PyTorch's operators, or one kernel forward and one backward.

    The kernel keeps dtype and layout of ``x`` and computes in float32. Under autocast PyTorch's operators return
    float32.
    """
    if runs_triton(x, weight, bias, *(() if residual is None else (residual,))):
        # A detector has dozens of these, and a registered operator costs more Python time than its launches do: only
        # a compiler needs one.
        operator: Any = _forward if torch.compiler.is_compiling() else _GroupNormRelu.apply
        out: Tensor = operator(x, residual, weight, bias, groups, eps, relu)[0]
        return out
    if x.device.type == "meta" and not torch.is_grad_enabled():
        return torch.empty_like(x)  # of shapes only; PyTorch's decomposition takes a hundred times as long
    out = F.group_norm(x, groups, weight, bias, eps)
    if residual is not None:
        out += residual  # in place: no gradient reads it, and another large feature map would only cost time
    return F.relu(out, inplace=True) if relu else out


def _layout(x: Tensor) -> torch.memory_format:
    """Memory layout for the kernel: channels-last if ``x`` is so and not also contiguous."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _compute(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and mean and reciprocal deviation ``(B, groups)`` in float32 for the backward pass."""
    layout = _layout(x)
    x = x.contiguous(memory_format=layout)
    if x.numel() == 0:
        statistics = x.new_zeros((x.shape[0], groups), dtype=torch.float32)
        return torch.empty_like(x), statistics, statistics.clone()
    if residual is not None:
        if residual.shape != x.shape:
            raise ValueError(f"the residual must be of shape {tuple(x.shape)}, but got {tuple(residual.shape)}")
        residual = residual.to(x.dtype).contiguous(memory_format=layout)
    from kernels.triton import group_norm

    with on_device_of(x):
        return group_norm.forward(x, residual, weight, bias, groups, eps, relu)


_forward = torch.library.custom_op("smnas::group_norm_relu", _compute, mutates_args=())


@_forward.register_fake
def _(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((x.shape[0], groups), dtype=torch.float32)
    return torch.empty_like(x, memory_format=_layout(x)), statistics, torch.empty_like(statistics)


def _differentiate(
    upstream: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    relu: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of ``x`` and of any residual, and each image's contribution to those of bias and weight."""
    layout = _layout(x)
    x, upstream = (tensor.contiguous(memory_format=layout) for tensor in (x, upstream.to(x.dtype)))
    if x.numel() == 0:
        return torch.empty_like(x), x.new_empty(x.shape if residual else 0), _no_sums(x).zero_()
    from kernels.triton import group_norm

    with on_device_of(x):
        return group_norm.backward((upstream, x, y, weight, bias, mean, rstd), relu, residual)


_backward = torch.library.custom_op("smnas::group_norm_relu_backward", _differentiate, mutates_args=())


@_backward.register_fake
def _(
    upstream: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    relu: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = torch.empty_like(x, memory_format=_layout(x))
    return gradient, torch.empty_like(gradient) if residual else x.new_empty(0), _no_sums(x)


def _no_sums(x: Tensor) -> Tensor:
    return x.new_empty((2, x.shape[0], x.shape[1]), dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, bias, _, _, relu = inputs
    y, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.relu, ctx.residual_dtype = relu, None if residual is None else residual.dtype
    # without a residual the input shows what ReLU cut off, which saves reading one feature map
    ctx.save_for_backward(x, y if relu and residual is not None else None, weight, bias, mean, rstd)


def _gradients(ctx: Any, upstream: Tensor, *_: None, differentiate: Any = _backward) -> tuple[Tensor | None, ...]:
    x, y, weight, bias, mean, rstd = ctx.saved_tensors
    residual = ctx.residual_dtype is not None
    gradient, added, sums = differentiate(upstream, x, y, weight, bias, mean, rstd, ctx.relu, residual)
    to_bias, to_weight = sums.sum(1).unbind(0)
    to_residual = added.to(ctx.residual_dtype) if residual else None
    return gradient, to_residual, to_weight.to(weight.dtype), to_bias.to(bias.dtype), None, None, None


_forward.register_autograd(_gradients, setup_context=_setup)


class _GroupNormRelu(torch.autograd.Function):
    """The operator without its registration."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _compute(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        _setup(ctx, inputs, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *upstream, differentiate=_differentiate)
