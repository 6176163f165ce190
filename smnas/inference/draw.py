"""Boxes with names and scores on images."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from smnas.inference.detections import Detection
from smnas.inference.fonts import font_for

__all__ = ["class_colour", "draw_detections", "drawn_name", "legend"]

_GOLDEN_RATIO = 0.618034
_SMALLEST_FONT_PX = 11


def class_colour(label: int) -> tuple[int, int, int]:
    """Return a saturated RGB colour for a class; neighbouring labels lie far apart on the colour wheel."""
    hue = (0.58 + label * _GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.72, 0.92)
    return round(255 * red), round(255 * green), round(255 * blue)


def drawn_name(name: str, category_id: int) -> str:
    """Return a class's name, or its category id if no font here has the letters."""
    return f"#{category_id}" if font_for(name, _SMALLEST_FONT_PX) is None else name


def legend(classes: Sequence[str], category_ids: Sequence[int]) -> str | None:
    """Return one line that maps drawn numbers to names; ``None`` if every name can be drawn."""
    numbered = [
        f"{drawn} {name}"
        for name, number in zip(classes, category_ids, strict=True)
        if (drawn := drawn_name(name, number)) != name
    ]
    if not numbered:
        return None
    return (
        "no font here has the letters of some classes, which are drawn as numbers (pip install 'smnas[fonts]', or "
        f"install a font of the system that has them): {', '.join(numbered)}"
    )


def draw_detections(image: NDArray[np.uint8] | Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """Return a copy of an RGB image ``(H, W, 3)`` ``uint8`` with its detections drawn, the best on top."""
    pil_image = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB").copy()
    pen = ImageDraw.Draw(pil_image)
    longer = max(pil_image.size)
    line = max(1, round(longer / 400))
    size = max(_SMALLEST_FONT_PX, round(longer / 55))
    for detection in sorted(detections, key=lambda one: one.score):
        colour = class_colour(detection.label)
        pen.rectangle(_inside(detection.box, pil_image), outline=colour, width=line)
    for detection in sorted(detections, key=lambda one: one.score):
        _label(pen, pil_image, detection, size, line)
    return pil_image


def _inside(box: tuple[float, float, float, float], pil_image: Image.Image) -> tuple[float, float, float, float]:
    """Round the box to pixels inside the image, its corners in order: Pillow refuses others."""
    x1, y1 = min(max(box[0], 0), pil_image.width - 1), min(max(box[1], 0), pil_image.height - 1)
    return x1, y1, max(x1, min(box[2], pil_image.width - 1)), max(y1, min(box[3], pil_image.height - 1))


def _label(
    pen: ImageDraw.ImageDraw,
    pil_image: Image.Image,
    detection: Detection,
    size: int,
    line: int,
) -> None:
    text = f"{drawn_name(detection.name, detection.category_id)} {detection.score:.2f}"
    font = font_for(detection.name, size) or ImageFont.load_default(size)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x1, y1, *_ = _inside(detection.box, pil_image)
    # Above the box if there is room, else inside it; never past the image's right edge.
    x = max(0.0, min(x1, pil_image.width - width))
    y = y1 - height if y1 >= height else y1 + line
    colour = class_colour(detection.label)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    pen.text((x + 3 - left, y + 2 - top), text, font=font, fill=(0, 0, 0) if luminance > 140 else (255, 255, 255))
