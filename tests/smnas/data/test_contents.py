"""A data set is what it contains: not where it lies, how its files are laid out or in which order they list things."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smnas.data.coco import CocoFolder
from smnas.data.contents import CONTENTS, contents, difference
from smnas.data.shapes import generate_shapes

Document = dict[str, Any]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("contents") / "data", train=4, val=2, width=40, height=32)


def changed(root: Path, shapes: Path, change: Callable[[Document], object], split: str = "train") -> Path:
    """A copy of the folder, with images by links and one annotation file changed."""
    (root / "annotations").mkdir(parents=True)
    for name in ("train", "val"):
        (root / name).symlink_to(shapes / name)
        file = f"annotations/instances_{name}.json"
        document = json.loads((shapes / file).read_text())
        if name == split:
            change(document)
        (root / file).write_text(json.dumps(document))
    return root


def renumber(document: Document) -> None:
    for image in document["images"]:
        image["id"] = 1000 - image["id"]
    for one in document["annotations"]:
        one["image_id"] = 1000 - one["image_id"]
        one["id"] = 0


def shuffle(document: Document) -> None:
    for entries in document.values():
        random.Random(3).shuffle(entries)


def reorder_keys(document: Document) -> None:
    for name, entries in list(document.items()):
        document[name] = [dict(reversed(entry.items())) for entry in entries]
        document["x" + name] = document.pop(name)
        document[name] = document.pop("x" + name)


def restate(document: Document) -> None:
    for one in document["annotations"]:
        one |= {"bbox": [float(value) for value in one["bbox"]], "segmentation": [[1, 2, 3, 4]], "score": 1}
        one.pop("iscrowd")
    for image in document["images"]:
        image |= {"width": float(image["width"]), "license": 3}
    document["info"] = {"year": 2026}


@pytest.mark.parametrize("change", [renumber, shuffle, reorder_keys, restate], ids=lambda one: str(one.__name__))
def test_the_same_content_written_otherwise(tmp_path: Path, shapes: Path, change: Callable[[Document], object]) -> None:
    assert contents(CocoFolder(changed(tmp_path / "other", shapes, change))) == contents(CocoFolder(shapes))


def test_the_layout_of_the_folder_does_not_matter(tmp_path: Path, shapes: Path) -> None:
    for split, name in (("train", "train"), ("val", "valid")):
        (tmp_path / name).mkdir()
        for image in (shapes / split).iterdir():
            (tmp_path / name / image.name).symlink_to(image)
        file = shapes / "annotations" / f"instances_{split}.json"
        (tmp_path / name / "_annotations.coco.json").write_text(json.dumps(json.loads(file.read_text()), indent=7))
    assert contents(CocoFolder(tmp_path)) == contents(CocoFolder(shapes))


def _first_box(document: Document) -> Document:
    found: Document = document["annotations"][0]
    return found


def _move(document: Document) -> None:
    _first_box(document)["bbox"][0] += 0.25


def _to_another_image(document: Document) -> None:
    box = document["annotations"][0]
    image = next(image for image in document["images"] if image["id"] != box["image_id"])
    box["image_id"] = image["id"]


def _other_size(document: Document) -> None:
    document["images"][0]["width"] += 1


def _other_name(document: Document) -> None:
    first, second = document["images"][:2]
    first["file_name"], second["file_name"] = second["file_name"], first["file_name"]
    document["images"].pop(2)
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] != 3]


def _other_label(document: Document) -> None:
    box = document["annotations"][0]
    box["category_id"] = box["category_id"] % 6 + 1


def _crowd(document: Document) -> None:
    _first_box(document)["iscrowd"] = 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_move, "other boxes, or classes of boxes, on training images"),
        (_to_another_image, "other boxes, or classes of boxes, on training images"),
        (_other_label, "other boxes, or classes of boxes, on training images"),
        (_crowd, "other boxes, or classes of boxes, on training images"),
        (_other_size, "other names or sizes of training images"),
        (_other_name, "3 training images instead of 4"),
        (lambda document: document["annotations"].pop(), " training boxes instead of "),
        (lambda document: document["categories"][0].update(name="disc"), "classes disc, "),
    ],
)  # fmt: skip
def test_another_content_is_named(
    tmp_path: Path, shapes: Path, change: Callable[[Document], object], says: str
) -> None:
    if says.startswith("classes"):
        root = changed(tmp_path / "half", shapes, change)
        other = changed(tmp_path / "other", root, change, "val")
    else:
        other = changed(tmp_path / "other", shapes, change)
    found = difference(contents(CocoFolder(shapes)), contents(CocoFolder(other)))
    assert found is not None
    assert says in found


def test_other_category_ids_and_other_validation_images_are_named(tmp_path: Path, shapes: Path) -> None:
    before = contents(CocoFolder(shapes))
    assert set(before) == {name for name in CONTENTS if not name.startswith("test_")}
    assert difference(before, before | {"category_ids": (0, 1)}) == ("category ids 0, 1 instead of 1, 2, 3, 4, 5, 6")
    other = contents(CocoFolder(changed(tmp_path / "other", shapes, _move, "val")))
    assert difference(before, other) == "other boxes, or classes of boxes, on validation images"


def test_what_earlier_versions_did_not_keep_is_not_compared(shapes: Path) -> None:
    before = contents(CocoFolder(shapes))
    known = {name: value for name, value in before.items() if name in ("classes", "train_images", "val_images")}
    assert difference(known, before) is None
    assert difference(known | {"val_images": 3}, before) == "2 validation images instead of 3"


def test_boxes_and_images_that_are_left_out_are_no_content(tmp_path: Path, shapes: Path) -> None:
    def spoil(document: Document) -> None:
        document["annotations"].append({**_first_box(document), "bbox": [0, 0, 0, 5]})
        document["images"].append({"id": 77, "file_name": "gone.jpg", "width": 9, "height": 9})

    other = CocoFolder(changed(tmp_path / "other", shapes, spoil), drop_bad_boxes=True, drop_bad_images=True)
    assert contents(other) == contents(CocoFolder(shapes))
