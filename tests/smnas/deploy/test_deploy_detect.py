"""Detection on files: what is found lands where it is in the picture, and one bad file stops nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from profiler.errors import UserError
from smnas.deploy.detect import PictureResult, detect_files, find_pictures
from smnas.deploy.detector import Detection, Detector, as_rgb
from smnas.deploy.draw import class_colour, draw_detections
from smnas.deploy.export import ExportReport
from smnas.deploy.metadata import ModelMetadata
from smnas.deploy.runtime import load_model
from smnas.evaluation.predict import DetectionArrays


class RedBox:
    """A model that finds the bounding box of pure red, and half surely the whole canvas."""

    def __init__(self, width: int = 96, height: int = 64) -> None:
        self.metadata = ModelMetadata("none", ("red", "all"), (7, 9), width, height, "fp32")
        self.classes, self.category_ids, self.input_size = ("red", "all"), (7, 9), (width, height)

    def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
        (image,) = images
        rows, columns = np.nonzero((image[0] > 200) & (image[1] < 50))
        boxes = np.zeros((1, 2, 4), np.float32)
        if len(rows) == 0:
            return DetectionArrays(np.array([0]), boxes, np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int64))
        boxes[0, 0] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        boxes[0, 1] = 0, 0, *self.input_size
        return DetectionArrays(np.array([2]), boxes, np.array([[0.9, 0.5]], np.float32), np.array([[0, 1]]))


def red_picture(width: int = 480, height: int = 200) -> Image.Image:
    picture = Image.new("RGB", (width, height), "gray")
    picture.paste((255, 0, 0), (100, 40, 200, 160))
    return picture


def test_boxes_are_in_pixels_of_the_picture(tmp_path: Path) -> None:
    red_picture().save(tmp_path / "one.png")
    report = detect_files(RedBox(), [tmp_path / "one.png"], score=0.3)
    (result,) = report.pictures
    assert (result.width, result.height) == (480, 200)
    red, everything = result.detections
    assert (red.name, red.label, red.category_id) == ("red", 0, 7)
    assert red.box == pytest.approx((100, 40, 200, 160), abs=5)  # a pixel of the canvas is five of the picture
    assert everything.box == (0, 0, 480, 200)  # clipped to the picture
    assert [d.name for d in detect_files(RedBox(), [tmp_path / "one.png"], score=0.6).pictures[0].detections] == ["red"]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = tmp_path / "hostile"
    folder.mkdir()
    red_picture().save(folder / "a-good.jpg", quality=95)
    (folder / "b-text.jpg").write_text("this is a text file")
    (folder / "c-empty.png").write_bytes(b"")
    whole = (folder / "a-good.jpg").read_bytes()
    (folder / "d-truncated.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1), "red").save(folder / "e-pixel.png")
    Image.new("L", (20_000, 30), 200).save(folder / "f-long.png")
    frames = [red_picture().convert("P"), Image.new("P", (480, 200))]
    frames[0].save(folder / "g-animated.gif", save_all=True, append_images=frames[1:], duration=50)
    Image.new("1", (20_000, 20_000)).save(folder / "h-huge.png")
    red_picture().convert("RGBA").save(folder / "i-good.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_one_bad_file_stops_nothing(hostile: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    paths = find_pictures([hostile])
    report = detect_files(
        RedBox(),
        paths,
        score=0.6,
        out_dir=tmp_path / "drawn",
        on_picture=lambda result, done, total: seen.append((result.path.name, done, total)),
    )
    by_name = {result.path.name: result for result in report.pictures}
    assert [name for name, *_ in seen] == sorted(by_name)
    assert seen[-1][1:] == (9, 9)
    assert {r.path.name for r in report.failed} == {"b-text.jpg", "c-empty.png", "d-truncated.jpg", "h-huge.png"}
    for failed in report.failed:
        assert failed.error is not None
        assert "\n" not in failed.error
        assert failed.path.name in failed.error
        assert not failed.detections
    assert by_name["e-pixel.png"].width == 1
    assert by_name["f-long.png"].width == 20_000
    for name in ("a-good.jpg", "g-animated.gif", "i-good.png"):
        assert by_name[name].detections[0].box == pytest.approx((100, 40, 200, 160), abs=6)
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == ["a-good.jpg", "e-pixel.png", "f-long.png", "g-animated.png", "i-good.png"]
    with Image.open(tmp_path / "drawn" / "f-long.png") as picture:
        assert picture.size == (20_000, 30)


def test_the_report_is_plain_json(hostile: Path, tmp_path: Path) -> None:
    report = detect_files(RedBox(), find_pictures([hostile / "[ab]-*.jpg"]), score=0.6)
    report.write_json(tmp_path / "found.json")
    good, bad = json.loads((tmp_path / "found.json").read_text())["pictures"]
    assert good["detections"][0]["name"] == "red"
    assert good["detections"][0]["category_id"] == 7
    assert len(good["detections"][0]["box"]) == 4
    assert (good["error"], bad["detections"]) == (None, [])
    (coco,) = report.to_coco()
    assert coco["file_name"] == "a-good.jpg"
    assert coco["bbox"] == pytest.approx([100, 40, 100, 120], abs=6)
    assert report.times.network_s > 0


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "c.txt", "deep/d.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert find_pictures([tmp_path]) == [tmp_path / "a.PNG", tmp_path / "b.jpg"]
    assert find_pictures([tmp_path / "c.txt"]) == [tmp_path / "c.txt"]
    assert find_pictures([str(tmp_path / "**" / "*.jpg")]) == [tmp_path / "b.jpg", tmp_path / "deep" / "d.jpg"]
    assert find_pictures([tmp_path / "b.jpg", tmp_path, tmp_path / "b.jpg"]) == [tmp_path / "b.jpg", tmp_path / "a.PNG"]
    for argument, says in (("absent.jpg", "existing file"), ("*.gif", "existing file"), ("empty", "holds none")):
        with pytest.raises(UserError, match=says):
            find_pictures([tmp_path / argument])


def test_a_file_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    (tmp_path / "photo[1].jpg").write_bytes(b"")
    assert find_pictures([tmp_path / "photo[1].jpg"]) == [tmp_path / "photo[1].jpg"]


def test_drawn_copies_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "same.png")
        red_picture().save(paths[-1])
    report = detect_files(RedBox(), paths, out_dir=tmp_path / "drawn")
    assert [r.drawn.name for r in report.pictures if r.drawn] == ["same.png", "same-2.png"]
    assert all(r.drawn is not None and r.drawn.is_file() for r in report.pictures)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "drawn").write_text("")
    with pytest.raises(UserError, match="folder that can be made"):
        detect_files(RedBox(), [], out_dir=tmp_path / "drawn")


def test_drawing_marks_the_box_and_leaves_the_picture_alone() -> None:
    picture = np.full((120, 160, 3), 255, np.uint8)
    before = picture.copy()
    drawn = np.asarray(draw_detections(picture, [Detection("red", 0, 7, 0.9, (40.0, 50.0, 120.0, 100.0))]))
    np.testing.assert_array_equal(picture, before)
    assert drawn.shape == picture.shape
    for x, y in ((80, 100), (40, 80), (120, 80)):
        assert tuple(drawn[y, x]) == class_colour(0)
    assert (drawn[105:, :] == 255).all()
    assert (drawn[60:95, 45:115] == 255).all()


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (-5.0, -5.0, 500.0, 500.0), (159.9, 119.9, 160.0, 120.0)])
def test_drawing_takes_any_box(box: tuple[float, float, float, float]) -> None:
    for size in ((160, 120), (1, 1), (3, 400)):
        picture = draw_detections(Image.new("L", size), [Detection("a long class name", 3, 4, 0.5, box)])
        assert picture.size == size


def test_class_colours_differ() -> None:
    assert len({class_colour(label) for label in range(80)}) == 80


def test_the_python_class_takes_every_kind_of_picture(
    exported: Callable[[str], ExportReport], aquarium_mini: Path
) -> None:
    path = sorted((aquarium_mini / "val").glob("*.jpg"))[0]
    detector = Detector(exported("rcnn").path, score=0.05, threads=1)
    with Image.open(path) as picture:
        pil = picture.convert("RGB")
    results = detector([path, str(path), pil, np.asarray(pil)])
    assert detector.classes == ("fish", "jellyfish", "penguin")
    assert len(results) == 4
    assert results[0]
    assert all(found == results[0] for found in results)
    scores = [found.score for found in results[0]]
    assert scores == sorted(scores, reverse=True)
    for found in results[0]:
        assert 0 <= found.box[0] <= found.box[2] <= pil.width
        assert 0 <= found.box[1] <= found.box[3] <= pil.height
        assert found.name == detector.classes[found.label]
    assert list(detector([])) == []


def test_detect_files_and_the_class_agree(exported: Callable[[str], ExportReport], aquarium_mini: Path) -> None:
    paths = sorted((aquarium_mini / "val").glob("*.jpg"))[:3]
    report = detect_files(load_model(exported("rcnn").path, threads=1), paths, score=0.05)
    assert [list(r.detections) for r in report.pictures] == Detector(exported("rcnn").path, score=0.05, threads=1)(
        paths
    )


def test_what_is_no_picture_is_refused() -> None:
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(TypeError, match="uint8"):
            as_rgb(array)
    assert as_rgb(Image.new("L", (3, 2))).shape == (2, 3, 3)


def test_a_result_without_an_error_is_not_failed() -> None:
    assert PictureResult(Path("a")).to_dict()["drawn"] is None
