"""A COCO folder is checked when it is opened: each rule, each in one line that names the file and the entry."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from profiler.errors import UserError
from smnas.data.annotations import read_annotations
from smnas.data.augment import Augmentation, draw_view, place_boxes
from smnas.data.coco import CocoFolder, DataError, box_notes

Document = dict[str, Any]


def document() -> Document:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 20, "height": 20},
        ],
        "annotations": [
            {"id": 11, "image_id": 3, "category_id": 9, "bbox": [1, 2, 10, 5], "area": 42.0, "iscrowd": 0},
            {"id": 12, "image_id": 3, "category_id": 4, "bbox": [0, 0, 20, 20], "iscrowd": 1},
            {"id": 10, "image_id": 7, "category_id": 4, "bbox": [5.5, 6, 30, 20]},
        ],
        "categories": [{"id": 9, "name": "zebra"}, {"id": 4, "name": "ant"}],
    }


def write_folder(root: Path, train: Document, val: Document | None = None, suffix: str = "") -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, content in (("train", train), ("val", val if val is not None else document())):
        (root / f"{split}{suffix}").mkdir()
        for name, size in (("a.png", (40, 30)), ("b.png", (20, 20))):
            Image.new("RGB", size, (10, 20, 30)).save(root / f"{split}{suffix}" / name)
        (root / "annotations" / f"instances_{split}{suffix}.json").write_text(json.dumps(content))
    return root


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        CocoFolder(root)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["", "2017"])
def test_both_namings_open(tmp_path: Path, suffix: str) -> None:
    folder = CocoFolder(write_folder(tmp_path / "data", document(), suffix=suffix))
    assert folder.classes == ("ant", "zebra")
    assert folder.category_ids == (4, 9)
    train = folder.split("train")
    assert train.image_ids == (7, 3)
    assert len(train) == 2


def beside(root: Path, val: str) -> Path:
    """The same folder as Roboflow lays it out; its files have more keys, a class without boxes, ids from 0."""
    content = document() | {"info": {"version": "1"}, "licenses": []}
    content["categories"] += [{"id": 0, "name": "animals", "supercategory": "none"}]
    content["annotations"][0] |= {"id": 0, "segmentation": []}
    write_folder(root, content, content)
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").rename(root / split / "_annotations.coco.json")
    (root / "annotations").rmdir()
    (root / "val").rename(root / val)
    return root


@pytest.mark.parametrize("val", ["valid", "val"])
def test_annotations_beside_their_images_open(tmp_path: Path, val: str) -> None:
    root = beside(tmp_path / "data", val)
    folder, other = CocoFolder(root), CocoFolder(write_folder(tmp_path / "coco", document()))
    assert folder.classes == ("animals", *other.classes)
    assert folder.split("val").path(1) == root / val / "b.png"
    for split in ("train", "val"):
        for ours, theirs in zip(*(map(one.split(split).sample, (0, 1)) for one in (folder, other)), strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            np.testing.assert_array_equal(ours.labels, theirs.labels + 1)


def test_annotations_beside_their_images_break_the_same_rules(tmp_path: Path) -> None:
    root = beside(tmp_path / "data", "valid")
    (root / "valid" / "b.png").unlink()
    assert "names b.png" in refused(root)
    (root / "valid").rename(root / "test")
    message = refused(root)
    assert "annotations/instances_val.json" in message
    assert "valid/_annotations.coco.json" in message


def test_a_sample_has_its_own_boxes_zero_based_labels_and_crowd_flags(tmp_path: Path) -> None:
    train = CocoFolder(write_folder(tmp_path / "data", document())).split("train")
    first, second = train.sample(0), train.sample(1)
    assert first.image.shape == (30, 40, 3)
    assert first.image.dtype == np.uint8
    assert (first.image == (10, 20, 30)).all()
    assert (first.image_id, second.image_id) == (7, 3)
    np.testing.assert_array_equal(first.boxes, np.array([[5.5, 6, 35.5, 26]], dtype=np.float32))
    np.testing.assert_array_equal(second.boxes, np.array([[1, 2, 11, 7], [0, 0, 20, 20]], dtype=np.float32))
    assert second.labels.tolist() == [1, 0]
    assert second.crowd.tolist() == [False, True]
    assert (second.boxes.dtype, second.labels.dtype, second.crowd.dtype) == (np.float32, np.int64, np.bool_)


def test_an_image_without_boxes_is_kept(tmp_path: Path) -> None:
    content = document()
    content["annotations"] = content["annotations"][2:]
    sample = CocoFolder(write_folder(tmp_path / "data", content)).split("train").sample(1)
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.shape == sample.crowd.shape == (0,)


def test_a_box_less_than_a_pixel_outside_is_clipped_for_training_and_kept_for_evaluation(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["bbox"] = [-0.7, 15, 5, 5.9]
    train = CocoFolder(write_folder(tmp_path / "data", content)).split("train")
    np.testing.assert_allclose(train.sample(1).boxes[0], [0, 15, 4.3, 20], rtol=1e-6)
    truth = train.ground_truth()
    assert [entry["bbox"] for entry in truth.loadAnns(truth.getAnnIds(imgIds=[3], catIds=[9]))] == [[-0.7, 15, 5, 5.9]]


def test_what_exporters_write_and_leave_out_is_read(tmp_path: Path) -> None:
    """Ids as decimals, no ``area`` or one of ``null``, crowds as true or ``null``, an image under two ids, folders."""
    content = document()
    content["images"] += [{"id": 8.0, "file_name": "./a.png", "width": 40.0, "height": 30}]
    content["annotations"][0] |= {"image_id": 3.0, "area": None, "iscrowd": None}
    content["annotations"][1]["iscrowd"] = True
    content["annotations"] += [{"id": 13, "image_id": 8, "category_id": 9.0, "bbox": [1, 2, 3, 4], "iscrowd": False}]
    root = write_folder(tmp_path / "Bilder mit Umlauten äöü", content)
    path = root / "annotations" / "instances_train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark, as Windows' editors write
    train = CocoFolder(root).split("train")
    assert train.image_ids == (7, 3, 8)
    assert train.sample(1).crowd.tolist() == [False, True]
    assert train.ground_truth().loadAnns([2])[0]["area"] == 50.0
    np.testing.assert_array_equal(train.sample(2).boxes, np.array([[1, 2, 4, 6]], dtype=np.float32))
    np.testing.assert_array_equal(train.sample(2).image, train.sample(0).image)


def test_the_ground_truth_is_silent_complete_and_numbered_from_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = document()
    content["annotations"][0]["id"] = 0
    truth = CocoFolder(write_folder(tmp_path / "data", content)).split("train").ground_truth()
    assert capfd.readouterr().out == ""
    entries = {entry["category_id"] * 100 + entry["image_id"]: entry for entry in truth.dataset["annotations"]}
    assert sorted(entry["id"] for entry in entries.values()) == [1, 2, 3]
    assert entries[903]["area"] == 42.0
    assert entries[407]["area"] == 600.0  # absent: width times height
    assert entries[403]["iscrowd"] == 1
    assert entries[407]["iscrowd"] == 0
    assert truth.getCatIds() == [4, 9]


def broken(change: Callable[[Document], Any]) -> Document:
    content = document()
    change(content)
    return content


def set_box(*box: float) -> Callable[[Document], None]:
    return lambda content: content["annotations"][0].update(bbox=list(box))


CASES: dict[str, tuple[Callable[[Document], Any], list[str]]] = {
    "missing image id": (lambda c: c["annotations"][0].update(image_id=99), ["annotation 11", "image 99", "not exist"]),
    "unknown category": (
        lambda c: c["annotations"][0].update(category_id=5),
        ["annotation 11", "category 5", "[4, 9]"],
    ),
    "outside": (set_box(15, 0, 10, 5), ["inside its image", "annotation 11 of image 3", "[15, 0, 10, 5]", "20x20"]),
    "outside left": (set_box(-2, 0, 10, 5), ["inside its image"]),
    "wholly in the tolerance": (set_box(20.2, 0, 0.5, 5), ["inside its image"]),
    "zero width": (set_box(1, 1, 0, 5), ["positive width and height", "annotation 11", "[1, 1, 0, 5]"]),
    "negative height": (set_box(1, 1, 5, -3), ["positive width and height"]),
    "nan": (set_box(1, math.nan, 5, 5), ["finite", "annotation 11", "nan"]),
    "infinite": (set_box(1, 1, math.inf, 5), ["finite", "inf"]),
    "null in a box": (lambda c: c["annotations"][0].update(bbox=[1, None, 2, 3]), ["finite", "annotation 11", "None"]),
    "text in a box": (lambda c: c["annotations"][0].update(bbox=[1, "2", 2, 3]), ["finite", "'2'", "--drop-bad-boxes"]),
    "a huge number": (lambda c: c["annotations"][0].update(bbox=[1, 10**400, 2, 3]), ["finite", "inf"]),
    "three numbers": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), ["[x, y, width, height]", "annotation 11"]),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), ["[x, y, width, height]", "annotation 11", "none"]),
    "no image id": (lambda c: c["annotations"][0].pop("image_id"), ["'image_id'", "annotation 11"]),
    "text id": (lambda c: c["images"][0].update(id="seven"), ["whole number", "'seven'"]),
    "image twice": (lambda c: c["images"][1].update(id=7), ["unique", "image 7 twice"]),
    "category twice": (lambda c: c["categories"][1].update(id=9), ["unique", "category 9 twice"]),
    "no name": (lambda c: c["categories"][1].pop("name"), ["'name'", "category 4"]),
    "no category's text": (lambda c: c["categories"][1].update(name="a\ud800"), ["have a name", "category 4", "ud800"]),
    "huge category": (
        lambda c: c["categories"][1].update(id=1 << 70),
        ["category ids must fit in 64 bits", str(1 << 70)],
    ),
    "no boxes": (lambda c: c.update(annotations=[]), ["at least one box", "2 images"]),
    "crowds only": (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], ["at least one box", "crowd"]),
    "no categories": (lambda c: c.update(categories=[]), ["at least one category"]),
    "empty split": (lambda c: c.update(images=[], annotations=[]), ["at least one image"]),
    "no file name": (lambda c: c["images"][0].pop("file_name"), ["'file_name'", "image 7"]),
    "no file's name": (lambda c: c["images"][0].update(file_name="a\0.png"), ["file name", "image 7"]),
    "no width": (lambda c: c["images"][0].pop("width"), ["'width'", "image 7"]),
    "image of no size": (lambda c: c["images"][0].update(width=0), ["positive size", "image 7", "0x30"]),
    "missing file": (lambda c: c["images"][0].update(file_name="gone.png"), ["image 7", "gone.png"]),
    "a text for a crowd": (lambda c: c["annotations"][0].update(iscrowd="0"), ["iscrowd", "annotation 11", "'0'"]),
    "backslashes": (lambda c: c["images"][0].update(file_name="x\\a.png"), ["with / between folders", "x\\a.png"]),
    "missing subfolder": (lambda c: c["images"][0].update(file_name="x/a.png"), ["image 7", "x/a.png"]),
    "no images key": (lambda c: c.pop("images"), ["'images'"]),
    "images not a list": (lambda c: c.update(images={}), ["'images' must be a list"]),
    "image not an object": (lambda c: c.update(images=[3]), ["'images' must be a list of objects"]),
    "other classes": (lambda c: c["categories"][0].update(name="lion"), ["same categories", "lion", "zebra"]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_is_one_line_that_names_the_entry(tmp_path: Path, case: str) -> None:
    change, expected = CASES[case]
    message = refused(write_folder(tmp_path / "data", broken(change)))
    for part in expected:
        assert part in message
    assert str(tmp_path / "data") in message


def test_the_error_is_the_users_mistake() -> None:
    assert issubclass(DataError, UserError)


def test_files_and_folders_that_are_not_there(tmp_path: Path) -> None:
    assert "no folder" in refused(tmp_path / "nothing")
    root = write_folder(tmp_path / "data", document())
    (root / "annotations" / "instances_val.json").rename(root / "annotations" / "moved.json")
    assert "instances_val.json" in refused(root)
    (root / "annotations" / "moved.json").rename(root / "annotations" / "instances_val.json")
    (root / "val").rename(root / "images")
    assert "folder val" in refused(root)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}", b"[1, 2]", b"[" * 100_000, b"9" * 5000])
def test_a_file_that_is_not_an_annotation_file(tmp_path: Path, content: bytes) -> None:
    root = write_folder(tmp_path / "data", document())
    (root / "annotations" / "instances_train.json").write_bytes(content)
    assert "instances_train.json" in refused(root)


def test_bad_boxes_can_be_left_out_instead(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["bbox"] = [1, 1, 0, 5]
    content["annotations"][2]["bbox"] = [1, math.nan, 5, 5]
    content["annotations"][1]["iscrowd"] = 0
    root = write_folder(tmp_path / "data", content)
    assert "--drop-bad-boxes" in refused(root)
    folder = CocoFolder(root, drop_bad_boxes=True)
    train = folder.split("train")
    assert folder.dropped == train.dropped == 2
    assert len(train.sample(0).boxes) == 0
    assert len(train.sample(1).boxes) == 1
    assert folder.split("val").dropped == 0


NO_BOXES: list[Any] = [
    [], [1], [1, 2, 3], [1, 2, 3, 4, 5], None, {}, {"x": 1}, "1, 2, 3, 4", 5, True, ["1", "2", "3", "4"],
    [[1, 2, 3, 4]], [1, 2, None, 4], [1, 2, True, 4], [1, 2, math.nan, 4], [1, 2, math.inf, 4], [1, 2, 0, 4],
    [1, 2, 3, -4], [1, 2, 10**400, 4], [100, 2, 3, 4],
]  # fmt: skip


@pytest.mark.parametrize("value", [*NO_BOXES, "missing"], ids=repr)
def test_whatever_is_no_box_can_be_left_out(tmp_path: Path, value: Any) -> None:
    content = document()
    if value == "missing":
        content["annotations"][0].pop("bbox")
    else:
        content["annotations"][0]["bbox"] = value
    content["annotations"][2]["bbox"] = [2, 3, 4, 5]
    root = write_folder(tmp_path / "data", content)
    message = refused(root)
    assert "annotation 11 of image 3" in message
    assert "--drop-bad-boxes" in message
    train = CocoFolder(root, drop_bad_boxes=True).split("train")
    assert train.dropped == 1
    np.testing.assert_array_equal(train.sample(0).boxes, np.array([[2, 3, 6, 8]], dtype=np.float32))
    assert len(train.sample(1).boxes) == 1


ROBOFLOW = [
    {"id": 0, "name": "animals", "supercategory": "none"},
    {"id": 4, "name": "ant", "supercategory": "animals"},
    {"id": 9, "name": "zebra", "supercategory": "animals"},
]


@pytest.mark.parametrize(
    "categories",
    [
        ROBOFLOW,
        ROBOFLOW[::-1],
        [ROBOFLOW[0] | {"name": "ant"}, *({**one, "supercategory": "ant"} for one in ROBOFLOW[1:])],
        [*ROBOFLOW[1:], ROBOFLOW[0] | {"id": 77}],
        [*ROBOFLOW[1:], {"id": 5, "name": "animals"}],
    ],
)
def test_a_root_category_is_no_class(tmp_path: Path, categories: list[Document]) -> None:
    content = document() | {"categories": categories}
    folder = CocoFolder(write_folder(tmp_path / "data", content, content))
    other = CocoFolder(write_folder(tmp_path / "other", document()))
    assert (folder.classes, folder.category_ids) == (("ant", "zebra"), (4, 9))
    for split in ("train", "val"):
        for ours, theirs in zip(*(map(one.split(split).sample, (0, 1)) for one in (folder, other)), strict=True):
            np.testing.assert_array_equal(ours.labels, theirs.labels)
    (note,) = folder.notes
    assert "has no box" in note


def test_a_category_above_others_with_boxes_of_its_own_is_a_class(tmp_path: Path) -> None:
    content = document() | {"categories": ROBOFLOW}
    other = document() | {"categories": ROBOFLOW}
    other["annotations"][0]["category_id"] = 0
    assert CocoFolder(write_folder(tmp_path / "val", content, other)).classes == ("animals", "ant", "zebra")
    assert CocoFolder(write_folder(tmp_path / "train", other, content)).classes == ("animals", "ant", "zebra")
    flat = document() | {"categories": [{**one, "supercategory": "none"} for one in ROBOFLOW]}
    assert CocoFolder(write_folder(tmp_path / "flat", flat, flat)).classes == ("animals", "ant", "zebra")
    own = document() | {"categories": [{**one, "supercategory": one["name"]} for one in ROBOFLOW[1:]]}
    assert CocoFolder(write_folder(tmp_path / "own", own, own)).classes == ("ant", "zebra")


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    content = document()
    content["categories"] += [{"id": 12, "name": "ant"}]
    message = refused(write_folder(tmp_path / "data", content, content))
    assert "unique" in message
    assert "'ant' as categories 4, 12" in message


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def resize(path: Path) -> None:
    Image.new("RGB", (50, 50)).save(path)


@pytest.mark.parametrize("spoil", [damage, Path.unlink, resize])
def test_bad_images_can_be_left_out_and_are_counted(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    root = write_folder(tmp_path / "data", document())
    spoil(root / "train" / "a.png")
    with pytest.raises(DataError, match=r"a\.png"):
        CocoFolder(root).split("train").require_decodable()
    folder = CocoFolder(root, drop_bad_images=True)
    train = folder.split("train")
    assert folder.dropped_images == 1
    assert "left out 1 images" in folder.notes[0]
    assert (len(train), train.image_ids, len(folder.split("val"))) == (1, (3,), 2)
    np.testing.assert_array_equal(train.sample(0).boxes, np.array([[1, 2, 11, 7], [0, 0, 20, 20]], dtype=np.float32))
    truth = train.ground_truth()
    assert (sorted(truth.imgs), sorted(truth.anns)) == ([3], [1, 2])
    (root / "train" / "b.png").write_text("")
    with pytest.raises(DataError, match="at least one image"):
        CocoFolder(root, drop_bad_images=True)


@pytest.mark.parametrize(
    ("stated", "nearest"),
    [
        ("train/a.png", "a.png"),
        ("images/train/a.png", "a.png"),
        ("C:\\data\\train\\a.png", "a.png"),
        ("%61.png", "a.png"),
        ("caf%C3%A9%20%281%29.png", "café (1).png"),
        ("image-0001.jpg", "image-0001.png"),
        ("Image-0001.PNG", "image-0001.png"),
        ("deep.png", "sub/deep.png"),
    ],
)
def test_the_nearest_file_of_a_wrong_name_is_named(tmp_path: Path, stated: str, nearest: str) -> None:
    content = document()
    content["images"][0]["file_name"] = stated
    root = write_folder(tmp_path / "data", content)
    (root / "train" / "sub").mkdir()
    for name in ("café (1).png", "image-0001.png", "sub/deep.png"):
        (root / "train" / name).write_bytes((root / "train" / "a.png").read_bytes())
    message = refused(root)
    assert f"names {stated}," in message
    assert f"(the nearest file there is {nearest})" in message
    content["images"][0]["file_name"] = "nothing-like-it.webp"
    assert "nearest file" not in refused(write_folder(tmp_path / "other", content))


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.01])
def test_boxes_as_fractions_are_refused_when_a_folder_is_opened(tmp_path: Path, scale: float) -> None:
    content = document()
    for entry in content["annotations"]:
        entry["bbox"] = [0.0, 0.25 * scale, scale, 0.5 * scale]
    for train, val in ((content, document()), (document(), content)):
        message = refused(write_folder(tmp_path / f"{train is content}", train, val))
        assert "must be in pixels, but all 3 boxes" in message
        assert "within 0..1" in message


def test_a_split_without_an_image_that_can_be_read_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", document())
    for file in (root / "val").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"of the 2 images of .*instances_val\.json none can"):
        CocoFolder(root, drop_bad_images=True)


def test_boxes_that_vanish_on_a_canvas_are_counted(tmp_path: Path) -> None:
    """Of 40x30 on 20x20 a pixel is half a one: of sides 30, 3 (1.5 there) and 4 (2 there) the second is left out."""
    content = document()
    content["images"] = content["images"][:1]
    content["annotations"] = [
        {"image_id": 7, "category_id": 4, "bbox": [5, 5, 30, width], "iscrowd": crowd}
        for width, crowd in ((20, 0), (3, 0), (4, 0), (3, 1))
    ]
    train = CocoFolder(write_folder(tmp_path / "data", content)).split("train")
    assert train.boxes_left(20, 20) == (2, 3)
    assert train.boxes_left(40, 30) == train.boxes_left(800, 600) == (3, 3)
    assert train.boxes_left(2, 2) == (0, 3)
    assert box_notes(train, [(40, 30)]) == ()
    (note,) = box_notes(train, [(40, 30), (20, 20), (20, 20)])
    assert note.startswith("at 20x20 33.3% of the boxes to train on (1 of 3)")
    assert len(box_notes(train, [(20, 20), (2, 2), (40, 30)])) == 2
    with pytest.raises(DataError, match=r"at 2x2, 1x1 none of the 3 boxes.*is left"):
        box_notes(train, [(2, 2), (1, 1)])
    # some as fractions of their image, and one that is no fraction
    content["annotations"] = [
        {"image_id": 7, "category_id": 4, "bbox": box} for box in ([0.1, 0.2, 0.5, 0.8], [0, 0, 1, 1], [0, 0, 1.5, 1])
    ]
    train = CocoFolder(write_folder(tmp_path / "fractions", content)).split("train")
    with pytest.raises(DataError, match=r"is left, and 2 of them lie within 0\.\.1, as fractions of their images do$"):
        box_notes(train, [(40, 30)])


def test_the_count_of_vanishing_boxes_is_that_of_the_loader(aquarium_mini: Path) -> None:
    """Against what letterboxing itself keeps, box by box."""
    train = CocoFolder(aquarium_mini).split("train")
    kept = total = 0
    for index in range(len(train)):
        boxes, labels, _ = train.boxes(index)
        view = draw_view(train.size(index), (96, 96), Augmentation(flip=0.0), np.random.default_rng(0))
        kept += len(place_boxes(boxes, labels, view, (96, 96), Augmentation())[0])
        total += len(boxes)
    assert train.boxes_left(96, 96) == (kept, total)


def turned(path: Path, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize(("proof", "stored"), [((40, 30), True), ((30, 40), False), (None, False)])
def test_one_image_decides_whether_boxes_were_drawn_on_stored_pixels(
    tmp_path: Path, orientation: int, proof: tuple[int, int] | None, stored: bool
) -> None:
    content = document()
    if proof is not None:
        content["images"][0] |= {"width": proof[0], "height": proof[1]}
    content["annotations"] = [{"image_id": 3, "category_id": 4, "bbox": [1, 2, 3, 4]}]
    root = write_folder(tmp_path / "data", content)
    turned(root / "train" / "b.png", (20, 20), orientation)
    if proof is not None:
        turned(root / "train" / "a.png", (40, 30), 6)
    folder = CocoFolder(root)
    assert folder.notes == ()
    assert (folder.split("train").image(1)[0, 0, 0] == 255) == stored
    assert any("EXIF orientation" in note for note in folder.notes) == (proof is None)


@pytest.mark.parametrize("ids", [(1, 2, 1), (1, 1, 1), (None, None, None), ("a", "b", "a"), (-1, 2.5, 2**80)])
def test_annotation_ids_may_be_anything(tmp_path: Path, ids: tuple[Any, ...]) -> None:
    """As CVAT numbers them, anew in every image: nothing depends on them."""
    content = document()
    for entry, number in zip(content["annotations"], ids, strict=True):
        entry["id"] = number
    del content["annotations"][0]["id"]
    train = CocoFolder(write_folder(tmp_path / "data", content)).split("train")
    assert [len(train.sample(index).boxes) for index in range(2)] == [1, 2]
    assert sorted(entry["id"] for entry in train.ground_truth().dataset["annotations"]) == [1, 2, 3]


@pytest.mark.parametrize(("images", "count"), [(1, 64), (10, 10), (100, 64), (1000, 64), (65, 64)])
def test_images_are_drawn_from_all_over_the_file(
    tmp_path: Path, images: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = document()
    content["images"] = [{"id": number, "file_name": "a.png", "width": 40, "height": 30} for number in range(images)]
    content["annotations"] = [{"id": 1, "image_id": 0, "category_id": 4, "bbox": [1, 2, 3, 4]}]
    train = CocoFolder(write_folder(tmp_path / "data", content)).split("train")
    monkeypatch.setattr(type(train), "image", lambda self, index: index)
    drawn = train.spread(count)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(images, count)
    for number, index in enumerate(drawn):  # one from each part
        assert number * images / len(drawn) - 1 < index < (number + 1) * images / len(drawn)
    assert drawn == train.spread(count)
    if images > 2 * count:
        assert drawn != train.spread(count, seed=1)


def test_real_annotations_add_up_to_what_their_readme_says(aquarium_mini: Path) -> None:
    train = read_annotations(aquarium_mini / "annotations" / "instances_train.json")
    assert train.classes == ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")
    assert np.bincount(train.labels).tolist() == [19, 37, 20, 21, 7, 20, 8]
    val = CocoFolder(aquarium_mini).split("val")
    assert len(val) == 16
    assert sum(len(val.sample(index).boxes) for index in range(16)) == 56
