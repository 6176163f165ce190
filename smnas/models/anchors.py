"""Anchors of a pyramid over a canvas of fixed size."""

import math

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

__all__ = ["SHAPES", "grid_positions", "grid_size", "level_anchors"]

_RATIOS = (0.5, 1.0, 2.0)
SHAPES = len(_RATIOS)
"""Anchors of one size per position."""


def grid_size(level: int, width: int, height: int) -> tuple[int, int]:
    """``(rows, columns)`` of pyramid level ``level``: the canvas halved ``level`` times, rounded up."""
    return math.ceil(height / 2**level), math.ceil(width / 2**level)


def level_anchors(level: int, width: int, height: int, sizes: tuple[float, ...]) -> Tensor:
    """Anchors of one level (stride ``2 ** level``) in torchvision's order: row, column, then ratio by size.

    ``width`` and ``height`` are the canvas's in pixels, ``sizes`` the square roots of the anchors' areas in pixels,
    each in height-to-width ratios 1:2, 1:1 and 2:1.

    Returns:
        ``(rows * columns * len(sizes) * 3, 4)`` float32, ``xyxy`` in pixels.
    """
    generator = AnchorGenerator((sizes,), (_RATIOS,))
    generator.set_cell_anchors(torch.float32, torch.device("cpu"))
    stride = torch.tensor(2**level, device="cpu")
    rows, columns = grid_size(level, width, height)
    anchors: Tensor = generator.grid_anchors([[rows, columns]], [[stride, stride]])[0]
    return anchors


def grid_positions(level: int, width: int, height: int) -> Tensor:
    """``(rows * columns, 2)`` int64 x and y index of each position of a level, row by row."""
    rows, columns = grid_size(level, width, height)
    y, x = torch.meshgrid(torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu"), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)
