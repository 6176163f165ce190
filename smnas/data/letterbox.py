"""An image onto a canvas of fixed size, and boxes back onto the image.

The image keeps its ratio and lies at the top left; the rest of the canvas is gray. One scale holds for both axes
exactly: the resized side is rounded down and the resampling window with it, so that a box needs no second factor.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["PAD_VALUE", "fit_scale", "letterbox", "resized", "shrink", "to_original"]

PAD_VALUE = 114
"""The gray level of the canvas outside the image."""
_GAP = 4.0
"""Pixels a side that averaging whole squares first leaves for one of the result; ``None`` resamples in one step."""


def fit_scale(width: int, height: int, canvas_width: int, canvas_height: int) -> float:
    """The factor by which a ``width x height`` image just fits into the canvas."""
    return min(canvas_width / width, canvas_height / height)


def resized(image: NDArray[np.uint8] | Image.Image, scale: float) -> NDArray[np.uint8]:
    """The image times ``scale`` by antialiased bilinear resampling; sides are rounded down, at least 1 pixel.

    From an eighth on whole squares are averaged first. On photographs that is three times as fast, and moves the result
    by what one gray level in one of ten values does (``benchmarks/README.md``, ``quick-decode``).

    Args:
        image: ``(H, W, 3)`` ``uint8``, or an RGB image, which saves turning it into an array and back.
        scale: pixels of the result per pixel of the image; ``scale > 0``.
    """
    width, height = _size(image)
    # A hair is added because 96 / 120 * 120 may come out as 95.999...
    new_width = max(1, int(width * scale + 1e-6))
    new_height = max(1, int(height * scale + 1e-6))
    if (new_width, new_height) == (width, height):
        return image if isinstance(image, np.ndarray) else np.array(image, dtype=np.uint8)
    window = (0.0, 0.0, min(width, new_width / scale), min(height, new_height / scale))
    pil_image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    size, bilinear = (new_width, new_height), Image.Resampling.BILINEAR
    return np.array(pil_image.resize(size, bilinear, box=window, reducing_gap=_GAP), dtype=np.uint8)


def letterbox(image: NDArray[np.uint8] | Image.Image, width: int, height: int) -> tuple[NDArray[np.uint8], float]:
    """Fit an image into a canvas, enlarging it if it is smaller.

    Args:
        image: ``(H, W, 3)`` ``uint8``, or an RGB image.
        width: of the canvas, in pixels.
        height: of the canvas, in pixels.

    Returns:
        The canvas ``(height, width, 3)`` ``uint8`` and the scale: pixels of the canvas per pixel of the image.
    """
    scale = fit_scale(*_size(image), width, height)
    small = resized(image, scale)
    canvas = np.full((height, width, 3), PAD_VALUE, dtype=np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    return canvas, scale


def shrink(image: NDArray[np.uint8], width: int, height: int) -> tuple[NDArray[np.uint8], float]:
    """Fit an image into ``width x height`` without padding and without ever enlarging it.

    Returns:
        The image ``(h, w, 3)`` ``uint8`` and its scale, at most 1.
    """
    scale = min(1.0, fit_scale(image.shape[1], image.shape[0], width, height))
    return resized(image, scale), scale


def to_original(boxes: NDArray[np.float32], scale: float, width: int, height: int) -> NDArray[np.float32]:
    """Boxes of the canvas as boxes of the image, clipped to it.

    Args:
        boxes: ``(N, 4)`` float32, ``xyxy`` in pixels of the canvas.
        scale: as :func:`letterbox` returned it.
        width: of the image, in pixels.
        height: of the image, in pixels.

    Returns:
        ``(N, 4)`` float32, ``xyxy`` in pixels of the image.
    """
    limit = np.array([width, height, width, height], dtype=np.float32)
    moved: NDArray[np.float32] = np.clip(boxes / np.float32(scale), np.float32(0), limit)
    return moved


def _size(image: NDArray[np.uint8] | Image.Image) -> tuple[int, int]:
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
