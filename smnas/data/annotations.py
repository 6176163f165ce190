"""One COCO annotation file, read and checked.

Rules are checked on opening, not when training meets an entry hours later. Everything is kept in arrays (the 860,000
boxes of COCO take 60 MB instead of gigabytes of dictionaries); segmentations are dropped.
"""

import gc
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smnas.data.errors import DataError

__all__ = ["BOX_TOLERANCE_PX", "AnnotationFile", "ImageList", "read_annotations", "read_image_list"]

BOX_TOLERANCE_PX = 1.0
"""Pixels by which a box may exceed its image; rounding in annotation tools reaches this."""
_LARGEST_SIDE = 1 << 31
_NO_BOX = (float("nan"),) * 4
_DROPPABLE = "--drop-bad-boxes leaves such boxes out"
_COLUMNS = ("boxes", "labels", "crowd", "areas")  # of annotations
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ImageList:
    """Images and categories of an annotation file.

    Attributes:
        classes: class names, by ascending category id.
        category_ids: of each class.
        image_ids: ``(I,)`` int64, in file order.
        file_names: of each image, relative to the image folder.
        sizes: ``(I, 2)`` int64, width and height in pixels.
    """

    path: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]


@dataclass(frozen=True)
class AnnotationFile(ImageList):
    """Checked content of one annotation file: its images, and their boxes.

    Attributes:
        boxes: ``(A, 4)`` float64, ``x, y, width, height`` as annotated, sorted by image.
        labels: ``(A,)`` int64, index into ``classes``.
        crowd: ``(A,)`` bool.
        areas: ``(A,)`` float64, as annotated, else width times height.
        offsets: ``(I + 1,)`` int64; image ``i`` owns annotations ``offsets[i]:offsets[i + 1]``.
        dropped: number of annotations left out for their boxes.
        root: label of the class that is only the others' supercategory, such as Roboflow's with id 0, or ``None``.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    offsets: NDArray[np.int64]
    dropped: int
    root: int | None = None

    @cached_property
    def digest(self) -> str:
        """Digests of the images' names and sizes, and of the boxes with their classes, joined by a dash.

        Neither the order of entries nor their ids nor the layout of the file matter.
        """
        images = list(zip(self.file_names, *self.sizes.T.tolist(), strict=True))
        place = {image: number for number, image in enumerate(sorted(set(images)))}
        owners = np.repeat([place[image] for image in images], np.diff(self.offsets))
        # adding 0 turns -0 into 0
        rows = np.column_stack([owners, self.labels, self.crowd, self.boxes, self.areas]).astype("<f8") + 0.0
        rows = rows[np.lexsort(rows.T[::-1])]
        parts = json.dumps(sorted(images)).encode(), rows.tobytes()
        return "-".join(hashlib.sha256(part).hexdigest()[:16] for part in parts)

    def without_class(self, label: int) -> "AnnotationFile":
        """Return a copy without a class that no box has."""
        return replace(
            self,
            classes=self.classes[:label] + self.classes[label + 1 :],
            category_ids=self.category_ids[:label] + self.category_ids[label + 1 :],
            labels=self.labels - (self.labels > label),
            root=None,
        )

    def with_images(self, kept: NDArray[np.bool_]) -> "AnnotationFile":
        """Return a copy with only the images ``kept``, ``(I,)``, and their boxes."""
        counts = np.diff(self.offsets)
        rows = np.repeat(kept, counts)
        return replace(
            self,
            image_ids=self.image_ids[kept],
            file_names=tuple(name for name, keep in zip(self.file_names, kept.tolist(), strict=True) if keep),
            sizes=self.sizes[kept],
            **{name: getattr(self, name)[rows] for name in _COLUMNS},
            offsets=np.concatenate([[0], np.cumsum(counts[kept])]).astype(np.int64),
        )


def read_image_list(path: Path) -> ImageList:
    """Read the images and categories of an annotation file, which, as for a test set, may lack annotations.

    Raises:
        DataError: the file or one of these entries breaks a rule.
    """
    document = _load(path, ("images", "categories"))
    classes, category_ids = _read_categories(document["categories"], path)
    return ImageList(path, classes, category_ids, *_read_images(document["images"], path))


def read_annotations(path: Path, *, drop_bad_boxes: bool = False) -> AnnotationFile:
    """Read and check a COCO ``instances_*.json``.

    ``drop_bad_boxes`` leaves out annotations whose box breaks a rule instead of refusing the file (COCO's own
    ``train2017`` has two boxes of zero size).

    Raises:
        DataError: the file or one of its entries breaks a rule.
    """
    with _no_collection():
        return _read(path, drop_bad_boxes)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Suspend Python's garbage collector, which would scan millions of small permanent objects again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(path: Path, drop_bad_boxes: bool) -> AnnotationFile:
    document = _load(path, ("images", "annotations", "categories"))
    classes, category_ids = _read_categories(document["categories"], path)
    image_ids, file_names, sizes = _read_images(document["images"], path)
    ids, owners, columns = _read_boxes(document["annotations"], path, image_ids, category_ids, drop_bad_boxes)
    problems = _box_problems(columns["boxes"], sizes[owners])
    bad = np.zeros(len(ids), dtype=bool)
    for rule, broken in problems:
        if broken.any() and not drop_bad_boxes:
            first = int(np.argmax(broken))
            image = int(owners[first])
            box = ", ".join(f"{value:g}" for value in columns["boxes"][first])
            raise DataError(
                f"{rule}, but annotation {ids[first]} of image {image_ids[image]}"
                f" ({sizes[image, 0]}x{sizes[image, 1]}) in {path} has [{box}]; {_DROPPABLE}"
            )
        bad |= broken
    kept = np.flatnonzero(~bad)
    kept = kept[np.argsort(owners[kept], kind="stable")]
    counts = np.bincount(owners[kept], minlength=len(image_ids))
    return AnnotationFile(
        *(path, classes, category_ids, image_ids, file_names, sizes),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        dropped=int(bad.sum()),
        root=_root(document["categories"], columns["labels"]),
        **{name: column[kept] for name, column in columns.items()},
    )


def _load(path: Path, keys: Sequence[str]) -> Mapping[str, list[Any]]:
    try:
        document = json.loads(path.read_bytes(), object_hook=_without_segmentation)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise DataError(f"an annotation file must be JSON, but {path} is not: {error}") from None
    except OSError as error:
        raise DataError(f"an annotation file must be readable, but {path} is not: {error.strerror}") from None
    if not isinstance(document, dict):
        raise DataError(f"an annotation file must hold a JSON object, but {path} holds a {type(document).__name__}")
    for key in keys:
        if key not in document:
            raise DataError(f"an annotation file must have the key '{key}', but {path} has {sorted(document)}")
        entries = document[key]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"'{key}' must be a list of objects, but in {path} it is not")
    return document


def _without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    # Dropped as each object is parsed: the polygons of COCO would take more than a gigabyte by the end of the file.
    entry.pop("segmentation", None)
    return entry


def _read_categories(entries: list[Any], path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    names: dict[int, str] = {}
    for position, entry in enumerate(entries):
        category = _whole(entry, "id", f"category at position {position}", path)
        name = _get(entry, "name", f"category {category}", path)
        if not _is_text(name):
            raise DataError(f"a category must have a name, but category {category} in {path} has {name!r}")
        if category in names:
            raise DataError(f"category ids must be unique, but {path} has category {category} twice")
        names[category] = name
    if not names:
        raise DataError(f"a data set must have at least one category, but {path} has none")
    ordered = sorted(names)
    _int_array(ordered, "category", path)
    return tuple(names[category] for category in ordered), tuple(ordered)


def _root(entries: list[Any], labels: NDArray[np.int64]) -> int | None:
    """Return the class without boxes that all others name as their supercategory; one of them may share its name."""
    ordered = sorted(entries, key=lambda entry: int(entry["id"]))
    for label, entry in enumerate(ordered):
        above = [other.get("supercategory") for other in ordered if other is not entry]
        is_above = bool(above) and all(one == entry["name"] for one in above)
        if is_above and entry.get("supercategory") != entry["name"] and not (labels == label).any():
            return label
    return None


def _read_images(entries: list[Any], path: Path) -> tuple[NDArray[np.int64], tuple[str, ...], NDArray[np.int64]]:
    if not entries:
        raise DataError(f"a split must have at least one image, but {path} has none")
    ids: list[int] = []
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    for position, entry in enumerate(entries):
        image = _whole(entry, "id", f"image at position {position}", path)
        name = _get(entry, "file_name", f"image {image}", path)
        if not _is_text(name):
            raise DataError(f"an image must have a file name in UTF-8, but image {image} in {path} has {name!r}")
        width = _whole(entry, "width", f"image {image}", path)
        height = _whole(entry, "height", f"image {image}", path)
        if not (0 < width < _LARGEST_SIDE and 0 < height < _LARGEST_SIDE):
            raise DataError(f"an image must have a positive size, but image {image} in {path} has {width}x{height}")
        ids.append(image)
        names.append(name)
        sizes.append((width, height))
    _refuse_duplicates(ids, "image", path)
    return _int_array(ids, "image", path), tuple(names), np.array(sizes, dtype=np.int64)


def _read_boxes(
    entries: list[Any],
    path: Path,
    image_ids: NDArray[np.int64],
    category_ids: tuple[int, ...],
    drop_bad_boxes: bool,
) -> tuple[list[Any], NDArray[np.int64], dict[str, Any]]:
    """Return annotations in file order: their ids for messages, the index of each one's image, and their columns."""
    image_of = {int(image): index for index, image in enumerate(image_ids)}
    label_of = {category: label for label, category in enumerate(category_ids)}
    ids: list[Any] = []
    images: list[int] = []
    labels: list[int] = []
    crowd: list[bool] = []
    boxes: list[tuple[float, ...]] = []
    areas: list[float] = []
    for position, entry in enumerate(entries):
        annotation = entry.get("id", f"at position {position}")  # for messages only: it may be missing or not unique
        image = _whole(entry, "image_id", f"annotation {annotation}", path)
        category = _whole(entry, "category_id", f"annotation {annotation}", path)
        if image not in image_of:
            raise DataError(
                f"an annotation must name an image of its file, but annotation {annotation} in {path}"
                f" names image {image}, which does not exist"
            )
        if category not in label_of:
            raise DataError(
                f"an annotation must name a category of its file, but annotation {annotation} of image {image}"
                f" in {path} names category {category}; known: {list(category_ids)}"
            )
        box = _box(entry.get("bbox"))
        if box is None:
            if not drop_bad_boxes:
                raise DataError(
                    f"a box must be [x, y, width, height] in finite numbers, but annotation {annotation} of image "
                    f"{image} in {path} has {entry.get('bbox', 'none')!r}; {_DROPPABLE}"
                )
            box = _NO_BOX
        area = entry.get("area")
        ids.append(annotation)
        images.append(image_of[image])
        labels.append(label_of[category])
        crowd.append(_crowd(entry.get("iscrowd"), annotation, image, path))
        boxes.append(box)
        areas.append(_number(area) if type(area) in (int, float) else float("nan"))
    box_array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    area_array = np.array(areas, dtype=np.float64)
    stated = np.isfinite(area_array) & (area_array >= 0)
    with np.errstate(over="ignore", invalid="ignore"):
        covered = box_array[:, 2] * box_array[:, 3]
    columns = {
        "boxes": box_array,
        "labels": np.array(labels, dtype=np.int64),
        "crowd": np.array(crowd, dtype=bool),
        "areas": np.where(stated, area_array, covered),
    }
    return ids, np.array(images, dtype=np.int64), columns


def _box_problems(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> Iterable[tuple[str, NDArray[np.bool_]]]:
    """Yield each rule about boxes with the annotations that break it; a box counts under its first broken rule."""
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    yield "a box must hold finite numbers", ~finite
    positive = np.asarray((boxes[:, 2:] > 0).all(axis=1))
    yield "a box must have a positive width and height", finite & ~positive
    with np.errstate(invalid="ignore", over="ignore"):
        corner = boxes[:, :2] + boxes[:, 2:]
    inside = (boxes[:, :2] >= -BOX_TOLERANCE_PX) & (corner <= sizes + BOX_TOLERANCE_PX)
    # A box within the tolerance can still lie entirely outside, where clipping would leave nothing.
    inside &= (boxes[:, :2] < sizes) & (corner > 0)
    yield "a box must lie inside its image", finite & positive & ~np.asarray(inside.all(axis=1))


def _is_text(value: object) -> bool:
    """Whether it is text that file names and UTF-8 can hold: JSON allows zeros and lone surrogates."""
    return isinstance(value, str) and value != "" and "\0" not in value and not _HALF_CHARACTERS.search(value)


def _get(entry: Mapping[str, Any], key: str, owner: str, path: Path) -> Any:
    if key not in entry:
        raise DataError(f"every {owner.split()[0]} must have the key '{key}', but {owner} in {path} has none")
    return entry[key]


def _whole(entry: Mapping[str, Any], key: str, owner: str, path: Path) -> int:
    value = entry.get(key)
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():  # some exporters write 7.0
        return int(value)
    _get(entry, key, owner, path)
    raise DataError(f"'{key}' must be a whole number, but {owner} in {path} has {value!r}")


def _box(value: Any) -> tuple[float, ...] | None:
    """Return four numbers, which may still break a rule; ``None`` for anything else."""
    if not isinstance(value, list) or len(value) != 4 or not all(type(number) in (int, float) for number in value):
        return None
    return tuple(_number(number) for number in value)


def _crowd(value: Any, annotation: int, image: int, path: Path) -> bool:
    if value not in (0, 1, None):  # True and 1.0 are 1; a string "0" would count as true
        raise DataError(
            f"'iscrowd' must be 0 or 1, but annotation {annotation} of image {image} in {path} has {value!r}"
        )
    return bool(value)


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return float("inf")


def _int_array(values: list[int], noun: str, path: Path) -> NDArray[np.int64]:
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        raise DataError(f"{noun} ids must fit in 64 bits, but {path} has {max(values, key=abs)}") from None


def _refuse_duplicates(ids: list[int], noun: str, path: Path) -> None:
    seen: set[int] = set()
    for value in ids:
        if value in seen:
            raise DataError(f"{noun} ids must be unique, but {path} has {noun} {value} twice")
        seen.add(value)
