"""Letterboxing: an image onto a canvas of fixed size, and boxes back onto the image.

The image keeps its aspect ratio and lies at the top left; the rest of the canvas is gray. One scale holds exactly on
both axes: the resampling window is rounded down with the resized side, so boxes need no second factor.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["PAD_VALUE", "fit_scale", "letterbox", "resized", "shrink", "to_original"]

PAD_VALUE = 114
"""Gray level of the canvas outside the image."""
_GAP = 4.0
"""Pixels per side that block averaging leaves for each of the result's; ``None`` resamples in one step."""


def fit_scale(width: int, height: int, canvas_width: int, canvas_height: int) -> float:
    """Return the largest factor at which a ``width x height`` image fits into the canvas."""
    return min(canvas_width / width, canvas_height / height)


def resized(image: NDArray[np.uint8] | Image.Image, scale: float) -> NDArray[np.uint8]:
    """Scale an image by antialiased bilinear resampling; sides are rounded down, at least 1 pixel.

    At an eighth or less, blocks are averaged first: three times as fast on photographs, and equivalent to one gray
    level in a tenth of the values (``benchmarks/README.md``, ``quick-decode``).

    Args:
        image: ``(H, W, 3)`` ``uint8``, or an RGB image, which saves converting it to an array and back.
        scale: result pixels per image pixel; ``scale > 0``.
    """
    width, height = _size(image)
    # The epsilon is there because 96 / 120 * 120 may come out as 95.999...
    new_width = max(1, int(width * scale + 1e-6))
    new_height = max(1, int(height * scale + 1e-6))
    if (new_width, new_height) == (width, height):
        return image if isinstance(image, np.ndarray) else np.array(image, dtype=np.uint8)
    window = (0.0, 0.0, min(width, new_width / scale), min(height, new_height / scale))
    pil_image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    size, bilinear = (new_width, new_height), Image.Resampling.BILINEAR
    return np.array(pil_image.resize(size, bilinear, box=window, reducing_gap=_GAP), dtype=np.uint8)


def letterbox(image: NDArray[np.uint8] | Image.Image, width: int, height: int) -> tuple[NDArray[np.uint8], float]:
    """Fit an image, RGB or ``(H, W, 3)`` ``uint8``, into a canvas of ``width x height``, enlarging a smaller one.

    Returns:
        The canvas ``(height, width, 3)`` ``uint8`` and the scale: canvas pixels per image pixel.
    """
    scale = fit_scale(*_size(image), width, height)
    small = resized(image, scale)
    canvas = np.full((height, width, 3), PAD_VALUE, dtype=np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    return canvas, scale


def shrink(image: NDArray[np.uint8], width: int, height: int) -> tuple[NDArray[np.uint8], float]:
    """Fit an image into ``width x height`` without padding or enlarging; returns it and its scale, at most 1."""
    scale = min(1.0, fit_scale(image.shape[1], image.shape[0], width, height))
    return resized(image, scale), scale


def to_original(boxes: NDArray[np.float32], scale: float, width: int, height: int) -> NDArray[np.float32]:
    """Map canvas boxes ``(N, 4)`` float32 ``xyxy`` to an image of ``width x height`` pixels and clip them to it.

    ``scale`` is from :func:`letterbox`.
    """
    limit = np.array([width, height, width, height], dtype=np.float32)
    moved: NDArray[np.float32] = np.clip(boxes / np.float32(scale), np.float32(0), limit)
    return moved


def _size(image: NDArray[np.uint8] | Image.Image) -> tuple[int, int]:
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
