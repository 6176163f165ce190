"""Augmentation: a box that is painted on the image is found, on the canvas, where its box says it is."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from smnas.data.augment import (
    Augmentation,
    View,
    draw_tiles,
    draw_view,
    place_boxes,
    place_image,
    shift_colors,
)
from smnas.data.letterbox import PAD_VALUE, letterbox, shrink

ALL = Augmentation(flip=0.5, scale_jitter=(0.4, 2.5), min_visible=0.0, min_side_px=0.0)


def painted(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = (0, 255, 0)
    return image


@pytest.mark.parametrize("seed", range(40))
def test_painted_boxes_move_with_their_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(60, 200, size=2))
    x, y = int(rng.integers(0, width - 30)), int(rng.integers(0, height - 30))
    box = (x, y, x + int(rng.integers(15, 30)), y + int(rng.integers(15, 30)))
    small, image_scale = shrink(painted(width, height, box), 144, 120)
    view = draw_view((width, height), (96, 80), ALL, rng)
    out = np.empty((3, 80, 96), dtype=np.uint8)
    place_image(small, image_scale, view, out)
    moved, labels = place_boxes(np.array([box], dtype=np.float32), np.array([5]), view, (96, 80), ALL)
    lit = np.argwhere((out[1] > 127) & (out[0] < 100))  # green; neither black nor the gray pad
    if not len(lit):
        assert len(moved) == 0 or min(moved[0, 2:] - moved[0, :2]) < 1.5
        return
    assert labels.tolist() == [5]
    found = np.concatenate([lit.min(axis=0)[::-1], lit.max(axis=0)[::-1] + 1])
    np.testing.assert_allclose(moved[0], found, atol=1.3)
    assert (moved[0] >= 0).all()
    assert moved[0, 2] <= 96
    assert moved[0, 3] <= 80


def test_without_jitter_and_flip_a_view_is_a_letterbox() -> None:
    image = np.random.default_rng(1).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    view = draw_view((100, 70), (64, 64), Augmentation(flip=0.0), np.random.default_rng(2))
    out = np.empty((3, 64, 64), dtype=np.uint8)
    place_image(image, 1.0, view, out)
    canvas, scale = letterbox(image, 64, 64)
    assert view.scale == scale
    np.testing.assert_array_equal(out.transpose(1, 2, 0), canvas)


def test_a_certain_flip_mirrors_the_canvas() -> None:
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    plain, mirrored = np.empty((2, 3, 64, 64), dtype=np.uint8)
    for flip, out in ((0.0, plain), (1.0, mirrored)):
        place_image(image, 1.0, draw_view((64, 48), (64, 64), Augmentation(flip), np.random.default_rng(0)), out)
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    view = View(1.0, 0.0, 0.0, 0, 0, 64, 48, True)
    boxes, _ = place_boxes(np.array([[4, 5, 20, 30]], dtype=np.float32), np.array([0]), view, (64, 64), Augmentation())
    np.testing.assert_array_equal(boxes, [[44, 5, 60, 30]])


def test_hardly_visible_and_tiny_boxes_are_dropped() -> None:
    view = View(0.5, -10.0, 0.0, 0, 0, 50, 50, False)
    boxes = np.array(
        [
            [0, 10, 24, 30],  # a sixth of it is right of x = 20
            [0, 10, 40, 30],  # half of it is
            [50, 50, 53.9, 90],  # 1.95 wide on the canvas
            [50, 50, 54.1, 90],
            [0, 0, 10, 10],  # wholly outside
        ],
        dtype=np.float32,
    )
    kept, labels = place_boxes(boxes, np.arange(5), view, (50, 50), Augmentation())
    assert labels.tolist() == [1, 3]
    np.testing.assert_allclose(kept, [[0, 5, 10, 15], [15, 25, 17.05, 45]], rtol=1e-6)


def test_no_boxes_stay_no_boxes() -> None:
    view = View(1.0, 0.0, 0.0, 0, 0, 8, 8, False)
    boxes, labels = place_boxes(
        np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64), view, (8, 8), Augmentation()
    )
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)


def test_a_smaller_image_lies_anywhere_on_gray() -> None:
    corners = set()
    for seed in range(60):
        view = draw_view((100, 100), (40, 40), Augmentation(0.0, (0.5, 0.5)), np.random.default_rng(seed))
        out = np.empty((3, 40, 40), dtype=np.uint8)
        place_image(np.zeros((100, 100, 3), dtype=np.uint8), 1.0, view, out)
        black = np.argwhere((out == 0).all(axis=0))
        assert len(black) == 400
        assert ((out == 0) | (out == PAD_VALUE)).all()
        corners.add(tuple(black.min(axis=0).tolist()))
    assert min(corners) < (5, 20)
    assert max(corners) > (15, 0)
    assert len(corners) > 40


@pytest.mark.parametrize("seed", range(20))
def test_tiles_cover_the_canvas_once(seed: int) -> None:
    covered = np.zeros((40, 60), dtype=int)
    for tile in draw_tiles((60, 40), np.random.default_rng(seed)):
        assert tile.size[0] >= 15
        assert tile.size[1] >= 10
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert (covered == 1).all()


def test_a_tile_shows_its_image_at_a_share_of_the_whole_canvas_scale() -> None:
    augmentation = Augmentation(flip=0.0, mosaic=1.0, mosaic_scale=(0.5, 0.8))
    scales = [
        draw_view((200, 100), (30, 70), augmentation, np.random.default_rng(seed), mosaic_of=(100, 100)).scale
        for seed in range(200)
    ]
    assert 0.25 <= min(scales) < 0.26
    assert 0.39 < max(scales) <= 0.4


def test_colors_shift_as_pillows_enhancers_do() -> None:
    rng = np.random.default_rng(4)
    image = rng.integers(90, 150, (3, 16, 20), dtype=np.uint8)  # far enough from 0 and 255 for nothing to be clipped
    changed = image.copy()
    shift_colors(changed, 0.3, np.random.default_rng(9))
    brightness, contrast, saturation = 1 + 0.3 * (2 * np.random.default_rng(9).random(3) - 1)
    pil_image = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    for enhancer, factor in (
        (ImageEnhance.Color, saturation),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Brightness, brightness),
    ):
        pil_image = enhancer(pil_image).enhance(factor)
    assert np.abs(changed.astype(int) - image).max() > 10
    np.testing.assert_allclose(changed.transpose(1, 2, 0).astype(int), np.asarray(pil_image).astype(int), atol=3)


def test_colors_stay_without_jitter_and_inside_a_byte_with_it() -> None:
    image = np.random.default_rng(4).integers(0, 256, (3, 16, 20), dtype=np.uint8)
    same = image.copy()
    shift_colors(same, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(same, image)
    for seed in range(20):
        bright = np.full((3, 4, 4), 250, dtype=np.uint8)
        shift_colors(bright, 0.9, np.random.default_rng(seed))
        assert len(np.unique(bright)) == 1  # an overflow would wrap around to black in one channel alone


@pytest.mark.parametrize(
    "change",
    [
        {"flip": -0.1},
        {"scale_jitter": (0.0, 1.0)},
        {"scale_jitter": (2.0, 1.0)},
        {"mosaic": 1.5},
        {"mosaic_scale": (0.0, 1.0)},
        {"color_jitter": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"must hold.*{next(iter(change))}|{next(iter(change))}.*must hold"):
        Augmentation(**change)
