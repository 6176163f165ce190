"""One generated image: shapes of several classes on a cluttered ground, and boxes of their visible parts.

A shape's outline determines its class; its hue is a hint that is right nine times out of ten, as colour is for real
objects, so that a detector finds its first objects within minutes of training and learns form for the rest. Fills,
sizes and angles have one distribution for all classes; the clutter is thin strokes and soft blotches.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["CLASSES", "MIN_VISIBLE", "Box", "Scene", "Seen", "Shape", "draw_scene", "outline", "render", "seen"]

Box = tuple[float, float, float, float]
"""``x, y, width, height`` in pixels."""

CLASSES = ("circle", "square", "triangle", "star", "ring", "cross")
MIN_VISIBLE = 0.3
"""Shapes with a smaller visible fraction are removed from the scene."""

_FINE = 4  # points of the supersampled grid per pixel
_SMALLEST_PX = 18.0
_LARGEST_SHARE = 0.7  # of the image's shorter side
_MIN_SEEN_SIDE_PX = 4
_RING_HOLE = 0.55  # inner radius over outer
_STAR_NOTCH = 0.42
_CROSS_ARM = 0.34  # half width over half length
_HUE_IS_RIGHT = 0.9  # fraction of shapes painted in a hue of their class
_HUE_SPREAD = 0.04  # standard deviation around the class's hue, of the colour circle
_COLOUR_DRAWS = 8  # the first one that stands out is taken
_MIN_CONTRAST = 90.0  # Euclidean distance in RGB between a shape and its surroundings


@dataclass(frozen=True)
class Shape:
    """A shape: index into :data:`CLASSES`, centre and radius (to the farthest point) in pixels, angle in radians."""

    label: int
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """Shapes from back to front, each visible by :data:`MIN_VISIBLE` or more, on an image of this size in pixels."""

    width: int
    height: int
    shapes: tuple[Shape, ...]


def draw_scene(width: int, height: int, rng: np.random.Generator) -> Scene:
    """Draw one to seven shapes; those that end up mostly hidden or outside are removed."""
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(1, 8))):
        largest = min(width, height) * _LARGEST_SHARE
        radius = float(np.exp(rng.uniform(np.log(_SMALLEST_PX), np.log(largest)))) / 2
        shapes.append(
            Shape(
                label=int(rng.integers(len(CLASSES))),
                x=float(rng.uniform(0.06, 0.94)) * width,
                y=float(rng.uniform(0.06, 0.94)) * height,
                radius=radius,
                angle=float(rng.uniform(0, 2 * np.pi)),
            )
        )
    # Large ones go to the back: a big shape drawn last would hide all others.
    shapes.sort(key=lambda shape: -shape.radius * float(rng.uniform(0.5, 1.0)))
    while True:
        scene = Scene(width, height, tuple(shapes))
        hidden = _most_hidden(scene)
        if hidden is None:
            return scene
        del shapes[hidden]
        if not shapes:
            shapes.append(Shape(int(rng.integers(len(CLASSES))), width / 2, height / 2, min(width, height) / 4, 0.0))


def outline(shape: Shape) -> NDArray[np.float64]:
    """Return the corners of a shape, ``(K, 2)`` in pixels; circles and rings are polygons of many corners."""
    name = CLASSES[shape.label]
    if name in ("circle", "ring"):
        corners = _polar(np.ones(96))
    elif name == "square":
        corners = _polar(np.ones(4))
    elif name == "triangle":
        corners = _polar(np.ones(3))
    elif name == "star":
        corners = _polar(np.tile([1.0, _STAR_NOTCH], 5))
    else:
        long, short = np.cos(np.arctan(_CROSS_ARM)), np.sin(np.arctan(_CROSS_ARM))
        arm = np.array([(long, -short), (long, short), (short, short)])
        quarter = np.array([(0.0, -1.0), (1.0, 0.0)])
        corners = np.concatenate([arm @ np.linalg.matrix_power(quarter.T, turn) for turn in range(4)])
    cosine, sine = np.cos(shape.angle), np.sin(shape.angle)
    turned: NDArray[np.float64] = corners @ np.array([(cosine, sine), (-sine, cosine)])
    turned *= shape.radius
    turned += (shape.x, shape.y)
    return turned


@dataclass(frozen=True)
class Seen:
    """Visible part of a shape, on a grid of 4 x 4 points per pixel.

    Attributes:
        left: column of the window around the shape, as ``top`` is its row, in pixels.
        mask: ``(4h, 4w)`` bool, points of the window where the shape is visible.
        share: visible fraction of the shape's area.
    """

    left: int
    top: int
    mask: NDArray[np.bool_]
    share: float

    def box(self) -> Box:
        """Return the visible extent: ``x, y, width, height`` in pixels, multiples of a quarter."""
        columns = np.flatnonzero(self.mask.any(axis=0))
        rows = np.flatnonzero(self.mask.any(axis=1))
        if not len(rows):
            return float(self.left), float(self.top), 0.0, 0.0
        return (
            self.left + float(columns[0]) / _FINE,
            self.top + float(rows[0]) / _FINE,
            float(columns[-1] + 1 - columns[0]) / _FINE,
            float(rows[-1] + 1 - rows[0]) / _FINE,
        )


def seen(scene: Scene) -> list[Seen]:
    """Return the visible part of each shape: inside the image and not covered by a later shape."""
    free = np.ones((scene.height * _FINE, scene.width * _FINE), dtype=bool)
    parts: list[Seen] = []
    for shape in reversed(scene.shapes):
        left, top = (max(0, int(centre - shape.radius) - 1) for centre in (shape.x, shape.y))
        right = min(scene.width, int(shape.x + shape.radius) + 2)
        bottom = min(scene.height, int(shape.y + shape.radius) + 2)
        whole = _mask(shape, left, top, right - left, bottom - top)
        under = free[top * _FINE : bottom * _FINE, left * _FINE : right * _FINE]
        mask = whole & under
        under &= ~whole
        parts.append(Seen(left, top, mask, float(np.count_nonzero(mask)) / (_area(shape) * _FINE**2)))
    return parts[::-1]


def render(scene: Scene, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[Box]]:
    """Paint a scene.

    Returns:
        The image ``(H, W, 3)`` ``uint8`` RGB, and the box of each shape's visible part.
    """
    canvas = _ground(scene.width, scene.height, rng)
    parts = seen(scene)
    for shape, part in zip(scene.shapes, parts, strict=True):
        cover = Image.fromarray(part.mask.view(np.uint8) * np.uint8(255)).reduce(_FINE)
        alpha = np.asarray(cover, dtype=np.float32)[:, :, None] / 255
        under = canvas[part.top : part.top + alpha.shape[0], part.left : part.left + alpha.shape[1]]
        under += (_fill(shape.label, under, rng) - under) * alpha
    return _expose(canvas, rng), [part.box() for part in parts]


def _polar(radii: NDArray[np.float64]) -> NDArray[np.float64]:
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _area(shape: Shape) -> float:
    x, y = (outline(shape) - (shape.x, shape.y)).T
    area = abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
    return area * (1 - _RING_HOLE**2) if CLASSES[shape.label] == "ring" else area


def _mask(shape: Shape, left: int, top: int, width: int, height: int) -> NDArray[np.bool_]:
    image = Image.new("L", (width * _FINE, height * _FINE))
    draw = ImageDraw.Draw(image)
    # Pixel k of the fine grid covers [k, k + 1); its centre is at k + 0.5.
    corners = (outline(shape) - (left, top)) * _FINE - 0.5
    draw.polygon([(x, y) for x, y in corners.tolist()], fill=1)
    if CLASSES[shape.label] == "ring":
        centre = np.array((shape.x - left, shape.y - top)) * _FINE - 0.5
        hole = (corners - centre) * _RING_HOLE + centre
        draw.polygon([(x, y) for x, y in hole.tolist()], fill=0)
    return np.array(image).view(bool)


def _most_hidden(scene: Scene) -> int | None:
    shares = [part.share if min(part.box()[2:]) >= _MIN_SEEN_SIDE_PX else 0.0 for part in seen(scene)]
    worst = int(np.argmin(shares))
    return worst if shares[worst] < MIN_VISIBLE else None


def _ground(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Paint a gradient with soft blotches of several sizes and thin strokes, ``(H, W, 3)`` float32 in 0..255."""
    corners = rng.integers(30, 226, size=3) + rng.integers(-40, 41, size=(2, 2, 3))
    canvas = _smooth(corners, width, height)
    for cells, strength in ((3, 22), (8, 16), (24, 10)):
        amplitude = rng.uniform(0, strength)
        canvas += _smooth(rng.normal(0, amplitude, size=(cells, cells, 3)), width, height)
    fine = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).resize((2 * width, 2 * height))
    draw = ImageDraw.Draw(fine)
    for _ in range(int(rng.integers(0, 9))):
        colour = tuple(rng.integers(0, 256, size=3).tolist())
        start = rng.uniform((0, 0), fine.size)
        steps = rng.normal(0, rng.uniform(5, 35), size=(int(rng.integers(1, 5)), 2))
        points = np.concatenate([start[None], start + steps.cumsum(axis=0)])
        draw.line([(x, y) for x, y in points.tolist()], fill=colour, width=int(rng.integers(1, 5)), joint="curve")
    return np.array(fine.reduce(2), dtype=np.float32)


def _smooth(grid: NDArray[np.float64] | NDArray[np.int64], width: int, height: int) -> NDArray[np.float32]:
    """Interpolate a coarse ``(h, w, 3)`` grid to the image."""
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
        )
        for plane in np.moveaxis(np.asarray(grid, dtype=np.float32), 2, 0)
    ]
    return np.stack(planes, axis=2)


def _colour(label: int, around: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a colour that hints at the class and, if any draw does, stands out from its surroundings."""
    hint = rng.random() < _HUE_IS_RIGHT
    colour = np.zeros(3)
    for _ in range(_COLOUR_DRAWS):
        hue = rng.normal(label / len(CLASSES), _HUE_SPREAD) % 1.0 if hint else rng.random()
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 1.0), rng.uniform(0.45, 1.0)))
        if np.linalg.norm(colour - around) >= _MIN_CONTRAST:
            break
    return colour


def _fill(label: int, under: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a flat, shaded or striped paint, ``(h, w, 3)``."""
    colour = _colour(label, under.mean(axis=(0, 1)), rng)
    height, width = under.shape[:2]
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    along = x * np.cos(direction) + y * np.sin(direction)
    kind = rng.integers(3)
    strength = rng.uniform(10, 35)
    if kind == 1:
        wave = along / max(height, width) * 2 - 1
    elif kind == 2:
        wave = np.sign(np.sin(along * (2 * np.pi / rng.uniform(3, 10))))
    else:
        wave = np.zeros_like(along)
    return np.asarray((colour + strength * wave[:, :, None]).clip(0, 255), dtype=np.float32)


def _expose(canvas: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply the camera: blur, exposure and noise."""
    blur, gain, bias, noise = rng.uniform((0.0, 0.75, -20.0, 0.0), (0.8, 1.25, 20.0, 9.0)).tolist()
    soft = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    exposed = (np.asarray(soft, dtype=np.float32) - 128) * gain + 128 + bias
    exposed += rng.normal(0, noise, size=exposed.shape)
    return np.asarray(exposed.clip(0, 255), dtype=np.uint8)
