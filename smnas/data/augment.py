"""Augmentation of one training picture: horizontal flip and scale jitter, straight onto its place in a batch.

The picture is resampled once, from the window that will be seen, so that an enlarged crop costs no more than a fit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smnas.data.letterbox import PAD_VALUE, fit_scale

__all__ = ["Augmentation", "View", "draw_view", "place_boxes", "place_image"]


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training picture.

    Attributes:
        flip: probability of a horizontal flip.
        scale_jitter: range of the factor by which the picture is larger than a letterboxed one. Above 1 a random part
            of it is seen; below 1 it lies at a random place of the canvas. ``(1, 1)`` is letterboxing itself.
        min_visible: a box with less than this share of its area on the canvas is dropped.
        min_side_px: a box narrower or lower than this on the canvas is dropped.
    """

    flip: float = 0.5
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    min_visible: float = 0.3
    min_side_px: float = 2.0

    def __post_init__(self) -> None:
        low, high = self.scale_jitter
        if not 0 < low <= high:
            raise ValueError(f"`0 < low <= high` must hold for scale_jitter, but got {self.scale_jitter}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"`0 <= flip <= 1` must hold, but got flip={self.flip}")


@dataclass(frozen=True)
class View:
    """Where a picture lies on the canvas: ``canvas = picture * scale + shift`` on each axis, then the flip.

    Attributes:
        scale: pixels of the canvas per pixel of the picture.
        shift_x: in pixels of the canvas; negative where the left of the picture is cut off.
        shift_y: likewise.
        left: first column of the canvas that the picture covers, before the flip.
        top: first row of the canvas that the picture covers.
        width: columns that it covers.
        height: rows that it covers.
        flipped: the canvas is mirrored horizontally at the end.
    """

    scale: float
    shift_x: float
    shift_y: float
    left: int
    top: int
    width: int
    height: int
    flipped: bool


def draw_view(
    size: tuple[int, int], canvas: tuple[int, int], augmentation: Augmentation, rng: np.random.Generator
) -> View:
    """Draw a random view of a picture.

    Args:
        size: width and height of the picture in pixels.
        canvas: width and height of the canvas in pixels.
        augmentation: the ranges to draw from.
        rng: four numbers are drawn, whatever the settings, so that one setting does not shift the others' draws.
    """
    flip, stretch, across, down = rng.random(4).tolist()
    low, high = augmentation.scale_jitter
    scale = fit_scale(*size, *canvas) * (low + (high - low) * stretch)
    if low == high == 1.0:
        across = down = 0.0
    shift_x, left, width = _along(size[0] * scale, canvas[0], across)
    shift_y, top, height = _along(size[1] * scale, canvas[1], down)
    return View(scale, shift_x, shift_y, left, top, width, height, flip < augmentation.flip)


def _along(content: float, canvas: int, position: float) -> tuple[float, int, int]:
    """Shift, first covered pixel and number of covered pixels on one axis; ``position`` in [0, 1) says where."""
    covered = max(1, int(content + 1e-6))
    if covered > canvas:
        return -position * (content - canvas), 0, canvas
    start = int(position * (canvas - covered + 1))
    return float(start), start, covered


def place_image(image: NDArray[np.uint8], image_scale: float, view: View, out: NDArray[np.uint8]) -> None:
    """Resample the visible window of a picture onto its canvas.

    Args:
        image: ``(h, w, 3)`` ``uint8``, the picture or a smaller copy of it.
        image_scale: pixels of ``image`` per pixel of the picture.
        view: where the picture goes.
        out: ``(3, H, W)`` ``uint8``, filled with the picture and the pad value.
    """
    ratio = view.scale / image_scale
    x = (view.left - view.shift_x) / ratio
    y = (view.top - view.shift_y) / ratio
    window = (x, y, min(image.shape[1], x + view.width / ratio), min(image.shape[0], y + view.height / ratio))
    size = (view.width, view.height)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=window)
    pixels = np.asarray(picture)
    left = view.left
    if view.flipped:
        pixels = pixels[:, ::-1]
        left = out.shape[2] - view.left - view.width
    if (view.height, view.width) != out.shape[1:]:
        out.fill(PAD_VALUE)
    out[:, view.top : view.top + view.height, left : left + view.width] = pixels.transpose(2, 0, 1)


def place_boxes(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    view: View,
    canvas: tuple[int, int],
    augmentation: Augmentation,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes of a picture as boxes of its canvas; what is hardly visible is dropped.

    Args:
        boxes: ``(N, 4)`` float32, ``xyxy`` in pixels of the picture.
        labels: ``(N,)`` int64.
        view: where the picture goes.
        canvas: width and height of the canvas in pixels.
        augmentation: what counts as visible.

    Returns:
        The kept boxes ``(M, 4)`` float32, ``xyxy`` in pixels of the canvas, and their labels ``(M,)`` int64.
    """
    if not len(boxes):
        return boxes.reshape(0, 4), labels
    width, height = canvas
    moved = boxes * np.float32(view.scale)
    moved[:, 0::2] += np.float32(view.shift_x)
    moved[:, 1::2] += np.float32(view.shift_y)
    whole = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
    np.clip(moved[:, 0::2], 0, width, out=moved[:, 0::2])
    np.clip(moved[:, 1::2], 0, height, out=moved[:, 1::2])
    sides = moved[:, 2:] - moved[:, :2]
    kept = (sides.min(axis=1) >= augmentation.min_side_px) & (
        sides[:, 0] * sides[:, 1] >= np.float32(augmentation.min_visible) * whole
    )
    if view.flipped:
        moved[:, 0::2] = width - moved[:, 2::-2]
    return moved[kept], labels[kept]
