"""Inputs of a detector's loss and outputs of its forward pass."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Detections", "Target"]


class Target(NamedTuple):
    """The objects of one training image, on the detector's canvas.

    Attributes:
        boxes: ``(N, 4)`` float32, ``xyxy`` in canvas pixels, ``0 <= x1 < x2 <= W``; N may be 0.
        labels: ``(N,)`` int64, 0-based class indices.
    """

    boxes: Tensor
    labels: Tensor


class Detections(NamedTuple):
    """Detections of a batch, padded with 0 to a fixed count K, best first.

    Attributes:
        num: ``(B,)`` int64, number of valid rows per image.
        boxes: ``(B, K, 4)`` float32, ``xyxy`` in canvas pixels.
        scores: ``(B, K)`` float32 in 0..1.
        labels: ``(B, K)`` int64, 0-based class indices.
    """

    num: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor
