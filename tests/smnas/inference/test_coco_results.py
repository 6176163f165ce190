"""COCO results: the file that COCO's tools load, with the numbers of an evaluation."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from profiler.errors import UserError
from smnas.data.coco import CocoFolder, DataError, quiet_pycocotools
from smnas.data.image import load_rgb
from smnas.data.loader import eval_batches
from smnas.deploy.export import ExportReport
from smnas.evaluation.coco_eval import evaluate_results
from smnas.evaluation.predict import coco_results
from smnas.inference.coco_results import ListedImages, require_place
from smnas.inference.detect import detect_inputs
from smnas.inference.inputs import Inputs
from smnas.inference.pipeline import DetectOptions
from smnas.inference.results import ImageResult
from smnas.inference.runtime import load_model


def annotation_file(path: Path, listed: list[tuple[int, str, int, int]], **changes: Any) -> Path:
    document = {
        "images": [{"id": i, "file_name": name, "width": w, "height": h} for i, name, w, h in listed],
        "categories": [{"id": 7, "name": "red"}, {"id": 9, "name": "all"}, {"id": 11, "name": "more"}],
    }
    document.update(changes)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.slow
def test_the_file_has_the_numbers_of_an_evaluation(
    make_checkpoint: Callable[..., Path], aquarium_mini: Path, tmp_path: Path
) -> None:
    split = CocoFolder(aquarium_mini).split("val")
    checkpoint = make_checkpoint(
        tmp_path / "c.pt", "basicblock_8_1-1-2+fpn_2-4_16+rpn+rcnn_16+96x64", split.classes, split.category_ids
    )
    model = load_model(checkpoint)
    paths = tuple(split.path(index) for index in range(len(split)))
    annotations = aquarium_mini / "annotations" / "instances_val.json"
    listed = ListedImages(annotations, paths, model)
    report = detect_inputs(model, Inputs(paths[::-1]), DetectOptions(0.0, 4), sizes=listed.sizes)
    listed.write(report.images, tmp_path / "results.json")
    with quiet_pycocotools():
        loaded = COCO(str(annotations)).loadRes(str(tmp_path / "results.json"))
    assert set(loaded.getImgIds()) == set(split.image_ids)
    batches = eval_batches(split, *model.input_size, 1)
    expected = [one for batch in batches for one in coco_results(model(batch.images), batch, split.category_ids)]
    assert len(loaded.getAnnIds()) == len(expected) > 100
    found = json.loads((tmp_path / "results.json").read_text())
    metrics = evaluate_results(split.ground_truth(), found).as_dict()
    assert metrics == pytest.approx(evaluate_results(split.ground_truth(), expected).as_dict(), abs=1e-6, nan_ok=True)


def test_images_are_found_by_the_end_of_their_path(tmp_path: Path, red_box: Any) -> None:
    file = annotation_file(
        tmp_path / "a.json", [(5, "train/1.jpg", 4, 3), (6, "val/1.jpg", 5, 3), (8, "2.jpg", 6, 3), (9, "3.jpg", 1, 1)]
    )
    paths = [tmp_path / "data" / name for name in ("val/1.jpg", "elsewhere/2.jpg", "train/1.jpg")]
    listed = ListedImages(file, paths, red_box)
    assert [listed.sizes[path] for path in paths] == [(5, 3), (6, 3), (4, 3)]
    assert listed.results([ImageResult(path) for path in paths]) == []


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["1.jpg", "x.jpg", "y.jpg"], r"must be listed in .*a\.json, but .*x\.jpg is not, nor 1 others"),
        (["one/1.jpg", "two/1.jpg"], r"can not be the same"),
    ],
)
def test_images_that_are_not_listed(tmp_path: Path, paths: list[str], says: str, red_box: Any) -> None:
    file = annotation_file(tmp_path / "a.json", [(5, "1.jpg", 4, 3)])
    with pytest.raises(UserError, match=says):
        ListedImages(file, map(Path, paths), red_box)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"categories": [{"id": 7, "name": "red"}]}, "finds all as category 9, which .* knows as nothing"),
        ({"categories": [{"id": 7, "name": "blue"}, {"id": 9, "name": "all"}]}, "finds red .* knows as blue"),
        ({"images": None}, "'images' must be a list"),
    ],
)
def test_annotations_of_something_else(tmp_path: Path, changes: dict[str, Any], says: str, red_box: Any) -> None:
    file = annotation_file(tmp_path / "a.json", [(5, "1.jpg", 4, 3)], **changes)
    with pytest.raises(UserError, match=says):
        ListedImages(file, [Path("1.jpg")], red_box)
    with pytest.raises(DataError, match="readable"):
        ListedImages(tmp_path / "gone.json", [], red_box)


def test_images_keep_the_pixels_that_they_were_annotated_on(
    tmp_path: Path, red_box: Any, red_image: Callable[..., Image.Image]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    red_image().save(tmp_path / "1.jpg", exif=exif)
    shutil.copy(tmp_path / "1.jpg", tmp_path / "2.jpg")
    file = annotation_file(tmp_path / "a.json", [(1, "1.jpg", 480, 200), (2, "2.jpg", 481, 200)])
    paths = (tmp_path / "1.jpg", tmp_path / "2.jpg")
    listed = ListedImages(file, paths, red_box)
    report = detect_inputs(red_box, Inputs(paths), DetectOptions(0.6), sizes=listed.sizes)
    (entry,) = listed.results(report.images)
    assert (entry["image_id"], entry["category_id"]) == (1, 7)
    assert entry["bbox"] == pytest.approx([100, 40, 100, 120], abs=6)
    assert "481x200" in str(report.images[1].error)


def test_a_file_that_can_not_be_written(tmp_path: Path, red_box: Any) -> None:
    file = annotation_file(tmp_path / "a.json", [(5, "1.jpg", 4, 3)])
    with pytest.raises(UserError, match="can be written"):
        ListedImages(file, [], red_box).write([], tmp_path)


def test_exported_files_give_results_too(
    exported: Callable[[str], ExportReport], aquarium_mini: Path, tmp_path: Path
) -> None:
    model = load_model(exported("rcnn").path, threads=1)
    paths = tuple(sorted((aquarium_mini / "val").glob("*.jpg"))[:2])
    images = [(number, path.name, *load_rgb(path).shape[1::-1]) for number, path in enumerate(paths, start=40)]
    categories = [{"id": i, "name": name} for i, name in zip(model.category_ids, model.classes, strict=True)]
    listed = ListedImages(annotation_file(tmp_path / "a.json", images, categories=categories), paths, model)
    results = listed.results(detect_inputs(model, Inputs(paths), DetectOptions(0.0)).images)
    assert {entry["image_id"] for entry in results} == {40, 41}
    assert {entry["category_id"] for entry in results} <= set(model.category_ids)


def test_a_place_that_can_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "results.json"):
        with pytest.raises(UserError, match=r"COCO results (must go to a file|need a folder) that can be written"):
            require_place(path)
    require_place(tmp_path / "new" / "results.json")
    assert (tmp_path / "new").is_dir()


def test_results_without_a_detection_are_loaded_by_cocos_tools_and_count_nothing(tmp_path: Path, red_box: Any) -> None:
    file = annotation_file(tmp_path / "a.json", [(5, "1.png", 40, 30), (8, "2.png", 40, 30)])
    document = json.loads(file.read_text())
    entry = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 9, 9], "area": 81, "iscrowd": 0}
    document["annotations"] = [entry]
    file.write_text(json.dumps(document))
    paths = tuple(tmp_path / f"{number}.png" for number in (1, 2))
    for path in paths:
        Image.new("RGB", (40, 30)).save(path)
    listed = ListedImages(file, paths, red_box)
    report = detect_inputs(red_box, Inputs(paths), DetectOptions(0.0))
    assert [image.detections for image in report.images] == [(), ()]
    remark = listed.write(report.images, tmp_path / "found.json")
    assert remark is not None
    assert "found.json holds one detection of score 0" in remark
    with quiet_pycocotools():
        truth = COCO(str(file))
        scored = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    assert scored.stats[0] == 0
    assert listed.write([], tmp_path / "none.json") is not None
