"""Letterboxing: the ratio is kept, one scale is exact on both axes, and boxes come back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smnas.data.letterbox import PAD_VALUE, letterbox, shrink, to_original


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=150)
def test_the_canvas_has_its_size_and_the_image_fits(width: int, height: int, across: int, down: int) -> None:
    image = np.full((height, width, 3), 7, dtype=np.uint8)
    canvas, scale = letterbox(image, across, down)
    assert canvas.shape == (down, across, 3)
    assert scale == pytest.approx(min(across / width, down / height))
    covered = (canvas == 7).all(axis=2)
    rows, columns = max(1, int(height * scale + 1e-6)), max(1, int(width * scale + 1e-6))
    assert covered[:rows, :columns].all()
    assert covered.sum() == rows * columns
    assert (canvas[~covered] == PAD_VALUE).all()


def test_an_image_of_the_canvas_size_is_not_touched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    canvas, scale = letterbox(image, 32, 24)
    assert scale == 1.0
    np.testing.assert_array_equal(canvas, image)


@pytest.mark.parametrize(("width", "height"), [(301, 199), (199, 301), (40, 30), (512, 384)])
def test_a_painted_box_is_found_where_the_scale_says(width: int, height: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    box = np.array([width * 0.6, height * 0.7, width * 0.97, height * 0.95]).astype(int)
    image[box[1] : box[3], box[0] : box[2]] = 255
    canvas, scale = letterbox(image, 128, 96)
    lit = np.argwhere((canvas > 127).all(axis=2))
    found = np.concatenate([lit.min(axis=0)[::-1], lit.max(axis=0)[::-1] + 1])
    np.testing.assert_allclose(found, box * scale, atol=0.75)
    back = to_original((box * scale).astype(np.float32)[None], scale, width, height)
    np.testing.assert_allclose(back[0], box, rtol=1e-5)


def test_to_original_clips_to_the_image() -> None:
    boxes = np.array([[-5, -5, 200, 60], [10, 20, 30, 40]], dtype=np.float32)
    back = to_original(boxes, 0.5, 100, 50)
    np.testing.assert_array_equal(back, [[0, 0, 100, 50], [20, 40, 60, 50]])
    assert back.dtype == np.float32
    assert to_original(np.zeros((0, 4), dtype=np.float32), 0.5, 10, 10).shape == (0, 4)


def test_shrinking_never_enlarges() -> None:
    image = np.zeros((30, 40, 3), dtype=np.uint8)
    same, scale = shrink(image, 80, 80)
    assert (same.shape, scale) == ((30, 40, 3), 1.0)
    less, scale = shrink(image, 20, 80)
    assert (less.shape, scale) == ((15, 20, 3), 0.5)


@pytest.mark.parametrize(("width", "height"), [(1601, 1203), (1200, 1607)])
def test_a_large_image_is_resized_as_in_one_step_but_for_rounding(width: int, height: int) -> None:
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), 90, dtype=np.uint8)
    for x, y, level in rng.integers(0, (width, height, 256), (200, 3)):
        image[y : y + 90, x : x + 70] = level
    canvas, scale = letterbox(image, 64, 48)
    small = int(width * scale + 1e-6), int(height * scale + 1e-6)
    window = (0.0, 0.0, min(width, small[0] / scale), min(height, small[1] / scale))
    expected = np.asarray(Image.fromarray(image).resize(small, Image.Resampling.BILINEAR, box=window))
    off = np.abs(canvas[: small[1], : small[0]].astype(int) - expected)
    assert 0 < off.max() <= 6  # the other way was taken, and a whole pixel of shift would be a hundred levels
    assert off.mean() < 0.5
