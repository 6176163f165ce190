"""What goes into a detector's loss and what comes out of its forward pass."""

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
    """Detections of a batch, padded to a fixed count K, best first.

    Attributes:
        num: ``(B,)`` int64, how many rows of each image are real.
        boxes: ``(B, K, 4)`` float32, ``xyxy`` in canvas pixels; padding is 0.
        scores: ``(B, K)`` float32 in 0..1; padding is 0.
        labels: ``(B, K)`` int64, 0-based class indices; padding is 0.
    """

    num: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor
