"""Augmentation of training images: flips, scale jitter, colours and mosaics, written directly into the batch.

An image is resampled once, from its visible window, so an enlarged crop costs no more than a fit. A mosaic (Bochkovskiy
et al., "YOLOv4", arXiv 2004.10934) is four such windows of four images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smnas.data.letterbox import PAD_VALUE, fit_scale

__all__ = ["Augmentation", "Tile", "View", "draw_tiles", "draw_view", "place_boxes", "place_image", "shift_colors"]


@dataclass(frozen=True)
class Augmentation:
    """Settings of training augmentation.

    Attributes:
        flip: probability of a horizontal flip.
        scale_jitter: range of the factor relative to letterboxing. Above 1 a random crop is visible; below 1 the image
            lies at a random place of the canvas. ``(1, 1)`` is letterboxing itself.
        mosaic: probability that an image shares its canvas with three others, each in its own quarter.
        mosaic_scale: range of the factor relative to letterboxing for images of a mosaic, times the scale jitter's;
            whatever does not fit into the quarter is cropped at random.
        color_jitter: brightness, contrast and saturation are each multiplied by a factor from 1 minus to 1 plus this.
        min_visible: boxes with a smaller fraction of their area on the canvas are dropped.
        min_side_px: boxes narrower or lower than this on the canvas are dropped.
    """

    flip: float = 0.5
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    mosaic: float = 0.0
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    color_jitter: float = 0.0
    min_visible: float = 0.3
    min_side_px: float = 2.0

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale_jitter", self.scale_jitter), ("mosaic_scale", self.mosaic_scale)):
            if not 0 < low <= high:
                raise ValueError(f"`0 < low <= high` must hold for {name}, but got {(low, high)}")
        for name, share in (("flip", self.flip), ("mosaic", self.mosaic), ("color_jitter", self.color_jitter)):
            if not 0 <= share <= 1:
                raise ValueError(f"`0 <= {name} <= 1` must hold, but got {name}={share}")


@dataclass(frozen=True)
class View:
    """Placement of an image on the canvas: ``canvas = image * scale + shift`` on each axis, then the flip.

    Attributes:
        scale: canvas pixels per image pixel.
        shift_x: in canvas pixels, as is ``shift_y``; negative where the image is cropped on the left (at the top).
        left: first canvas column, before the flip; with ``top``, ``width`` and ``height`` the covered rectangle.
        flipped: whether the canvas is mirrored horizontally at the end.
    """

    scale: float
    shift_x: float
    shift_y: float
    left: int
    top: int
    width: int
    height: int
    flipped: bool


@dataclass(frozen=True)
class Tile:
    """A rectangle of a canvas, in pixels, that shows one image."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top


def draw_tiles(canvas: tuple[int, int], rng: np.random.Generator) -> tuple[Tile, Tile, Tile, Tile]:
    """Draw four tiles, top left first, that meet at a random point of the canvas' middle half on each axis.

    ``canvas`` is width and height in pixels, at least 4 each; two numbers are drawn.
    """
    width, height = canvas
    x, y = (round(side * (0.25 + 0.5 * where)) for side, where in zip(canvas, rng.random(2).tolist(), strict=True))
    return Tile(0, 0, x, y), Tile(x, 0, width, y), Tile(0, y, x, height), Tile(x, y, width, height)


def draw_view(
    size: tuple[int, int],
    canvas: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    mosaic_of: tuple[int, int] | None = None,
) -> View:
    """Draw a random view of an image; sizes are width and height in pixels.

    Five numbers are always drawn, so that one setting does not shift the others' draws. ``mosaic_of`` is the size of
    the mosaic if ``canvas`` is one of its tiles.
    """
    flip, stretch, across, down, shrink = rng.random(5).tolist()
    low, high = augmentation.scale_jitter
    scale = fit_scale(*size, *(mosaic_of or canvas)) * (low + (high - low) * stretch)
    if mosaic_of is not None:
        least, most = augmentation.mosaic_scale
        scale *= least + (most - least) * shrink
    elif low == high == 1.0:
        across = down = 0.0
    shift_x, left, width = _along(size[0] * scale, canvas[0], across)
    shift_y, top, height = _along(size[1] * scale, canvas[1], down)
    return View(scale, shift_x, shift_y, left, top, width, height, flip < augmentation.flip)


def _along(content: float, canvas: int, position: float) -> tuple[float, int, int]:
    """Return shift, first covered pixel and number of covered pixels on one axis; ``position`` is in [0, 1)."""
    covered = max(1, int(content + 1e-6))
    if covered > canvas:
        return -position * (content - canvas), 0, canvas
    start = int(position * (canvas - covered + 1))
    return float(start), start, covered


def place_image(image: NDArray[np.uint8], image_scale: float, view: View, out: NDArray[np.uint8]) -> None:
    """Resample the visible window of an image onto the canvas ``out``, ``(3, H, W)``, and pad the rest.

    ``image`` ``(h, w, 3)`` may be a smaller copy, of ``image_scale`` pixels per pixel of the original.
    """
    ratio = view.scale / image_scale
    x = (view.left - view.shift_x) / ratio
    y = (view.top - view.shift_y) / ratio
    window = (x, y, min(image.shape[1], x + view.width / ratio), min(image.shape[0], y + view.height / ratio))
    size = (view.width, view.height)
    pil_image = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=window)
    pixels = np.asarray(pil_image)
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
    """Map boxes ``(N, 4)`` ``xyxy`` in image pixels to the canvas of this width and height, with their labels ``(N,)``.

    Boxes that are hardly visible by the settings of ``augmentation`` are dropped.
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


def shift_colors(image: NDArray[np.uint8], jitter: float, rng: np.random.Generator) -> None:
    """Change brightness, contrast and saturation of a ``(3, H, W)`` ``uint8`` RGB image in place.

    Each factor lies between ``1 - jitter`` and ``1 + jitter``; three numbers are drawn even if ``jitter`` is 0.
    """
    brightness, contrast, saturation = (1 + jitter * (2 * rng.random(3) - 1)).astype(np.float32).tolist()
    if jitter == 0:
        return
    # Brightness scales a pixel, contrast its distance from the mean gray and saturation its distance from its own gray:
    # per pixel one scale, and one shift that is a multiple of the gray.
    luma = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    gray = np.tensordot(luma, image, axes=1)
    slope = brightness * contrast
    shift = slope * (1 - saturation) * gray + brightness * (1 - contrast) * float(gray.mean())
    changed = image * np.float32(slope * saturation)
    changed += shift
    np.clip(changed, 0, 255, out=changed)
    image[:] = changed.astype(np.uint8)
