"""Boxes on images: where they belong, and nowhere else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFont

from smnas.inference import fonts
from smnas.inference.detect import detect_inputs
from smnas.inference.detections import Detection
from smnas.inference.draw import class_colour, draw_detections, drawn_name, legend
from smnas.inference.fonts import font_for
from smnas.inference.inputs import Inputs


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


FONT = "NotoSansCJK-Regular.ttc"


@pytest.fixture
def only_packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without fonts, with the font of the extra that the tests install."""
    monkeypatch.setattr(fonts, "_folders", lambda: iter(()))
    monkeypatch.setattr(fonts, "_PACKAGES", ("noto-cjk-sans-otc",))


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_folders", lambda: iter(()))
    monkeypatch.setattr(fonts, "_PACKAGES", ())


@pytest.fixture(autouse=True)
def _no_memory() -> None:
    fonts.font_for.cache_clear()
    fonts._font_files.cache_clear()


def labelled(name: str) -> NDArray[np.uint8]:
    """The label alone, as drawn."""
    blank = np.full((120, 400, 3), 255, np.uint8)
    return np.asarray(draw_detections(blank, [Detection(name, 0, 7, 0.9, (40.0, 50.0, 120.0, 100.0))]))[:50]


@pytest.mark.usefixtures("only_packaged")
def test_names_outside_ascii_are_drawn_with_their_letters() -> None:
    """Crossed boxes are the same for every letter: names of one length that differ must differ when drawn."""
    for names in (("鱼鸟", "猫狗"), ("рыба", "волк"), ("äöü", "éèê"), ("물고기", "해파리"), ("さかな", "くらげ")):
        one, other = map(labelled, names)
        assert (one != other).any(), names
        font = font_for(names[0], 20)
        assert isinstance(font, ImageFont.FreeTypeFont)
        assert str(font.path).endswith(FONT)
        assert drawn_name(names[0], 7) == names[0]
    assert legend(("fish", "鱼", "Größe"), (1, 2, 3)) is None


@pytest.mark.usefixtures("no_fonts")
@pytest.mark.parametrize("name", ["鱼", "рыба", "Größe", "ปลา", "سمك", "मछली", "🐟", "fish 鱼"])
def test_without_a_font_a_number_stands_for_the_name(name: str) -> None:
    assert drawn_name(name, 7) == "#7"
    np.testing.assert_array_equal(labelled(name), labelled("#7"))
    line = legend(("fish", name), (1, 7))
    assert line is not None
    assert f"#7 {name}" in line
    assert "smnas[fonts]" in line
    assert "#1" not in line
    assert "\n" not in line


@pytest.mark.usefixtures("no_fonts")
def test_names_in_ascii_are_drawn_as_ever() -> None:
    assert drawn_name("fish #2 (big)", 7) == "fish #2 (big)"
    font = font_for("fish", 20)
    assert font is not None
    assert font.getname() == ImageFont.load_default(20).getname()  # type: ignore[union-attr]


@pytest.mark.usefixtures("no_fonts")
def test_detection_says_which_numbers_stand_for_which_names(tmp_path: Path, red_box: Any, red_image: Any) -> None:
    red_box.classes = ("红", "all")
    red_image().save(tmp_path / "one.png")
    inputs = Inputs((tmp_path / "one.png",))
    assert detect_inputs(red_box, inputs).remarks == ()
    (line,) = detect_inputs(red_box, inputs, out_dir=tmp_path / "drawn").remarks
    assert line.endswith(": #7 红")
