"""Boxes on images: where they belong, and nowhere else."""

import numpy as np
import pytest
from PIL import Image

from smnas.inference.detections import Detection
from smnas.inference.draw import class_colour, draw_detections


def test_drawing_marks_the_box_and_leaves_the_image_alone() -> None:
    image = np.full((120, 160, 3), 255, np.uint8)
    before = image.copy()
    drawn = np.asarray(draw_detections(image, [Detection("red", 0, 7, 0.9, (40.0, 50.0, 120.0, 100.0))]))
    np.testing.assert_array_equal(image, before)
    assert drawn.shape == image.shape
    for x, y in ((80, 100), (40, 80), (120, 80)):
        assert tuple(drawn[y, x]) == class_colour(0)
    assert (drawn[105:, :] == 255).all()
    assert (drawn[60:95, 45:115] == 255).all()


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (-5.0, -5.0, 500.0, 500.0), (159.9, 119.9, 160.0, 120.0)])
def test_drawing_takes_any_box(box: tuple[float, float, float, float]) -> None:
    for size in ((160, 120), (1, 1), (3, 400)):
        image = draw_detections(Image.new("L", size), [Detection("a long class name", 3, 4, 0.5, box)])
        assert image.size == size


def test_class_colours_differ() -> None:
    assert len({class_colour(label) for label in range(80)}) == 80
