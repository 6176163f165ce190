"""COCO-format folders: ``train``, ``val`` and ``annotations`` as COCO's own, or splits with annotations inside."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from smnas.data.annotations import AnnotationFile, read_annotations
from smnas.data.errors import DataError
from smnas.data.image import load_rgb, stored_size
from smnas.data.letterbox import shrink

__all__ = [
    "DEFAULT_CACHE_BYTES",
    "CocoFolder",
    "DataError",
    "DetectionDataset",
    "Sample",
    "Split",
    "box_notes",
    "has_test_split",
    "quiet_pycocotools",
]

Split = Literal["train", "val", "test"]
_ALWAYS: tuple[Split, ...] = ("train", "val")
_SUFFIXES = ("", "2017")
# Roboflow's export: a split's annotation file lies among its images
_FILE_BESIDE = "_annotations.coco.json"
_FOLDERS_BESIDE: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}

_ROUNDED = 1e-3  # by which a fraction of an image may exceed 1
_DECODERS = 4  # threads that decode a whole split

DEFAULT_CACHE_BYTES = 1 << 30
"""Default memory limit of a split's decoded pixels: 1 GiB."""


@dataclass(frozen=True)
class Sample:
    """One image with its boxes.

    Attributes:
        image: ``(H, W, 3)`` ``uint8``, RGB.
        boxes: ``(N, 4)`` float32, ``xyxy`` in pixels, clipped to the image.
        labels: ``(N,)`` int64, 0-based index into the classes.
        crowd: ``(N,)`` bool; crowds count in evaluation only, never as training targets.
        image_id: of the annotation file.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    image_id: int


class DetectionDataset:
    """One split of a folder: annotations in memory, images decoded on demand; ``cache_bytes`` limits :meth:`shrunk`.

    Attributes:
        classes: class names, by ascending category id; labels index this.
        category_ids: COCO category id of each class.
        image_ids: id of each image in the annotation file.
        dropped: number of annotations left out for their boxes (0 unless requested).
        box_count: number of annotations, crowds included.
        root_class: category id and name of the others' supercategory, which is no class, if the file has one.
        orientation_is_assumed: an EXIF orientation was applied although nothing in the file proves that the boxes were
            drawn on the rotated image.
    """

    def __init__(self, annotations: AnnotationFile, folder: Path, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.folder = folder
        self.cache_bytes = cache_bytes
        self._annotations = annotations
        self.classes, self.category_ids = annotations.classes, annotations.category_ids
        self.image_ids: tuple[int, ...] = tuple(annotations.image_ids.tolist())
        self.dropped, self.box_count = annotations.dropped, len(annotations.boxes)
        # By canvas, least recently used first, then by image.
        self._cache: dict[tuple[int, int], dict[int, tuple[NDArray[np.uint8], float]]] = {}
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self.orientation_is_assumed = False
        self.root_class: tuple[int, str] | None = None

    def __len__(self) -> int:
        return len(self._annotations.image_ids)

    @property
    def digest(self) -> str:
        """Digest of the annotated images and boxes, see :attr:`~smnas.data.annotations.AnnotationFile.digest`."""
        return self._annotations.digest

    def path(self, index: int) -> Path:
        """Return the path of an image file."""
        return self.folder / self._annotations.file_names[index]

    def size(self, index: int) -> tuple[int, int]:
        """Annotated width and height of an image in pixels (checked by decoding)."""
        width, height = self._annotations.sizes[index]
        return int(width), int(height)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode one image: ``(H, W, 3)`` ``uint8`` RGB.

        Raises:
            DataError: the file can not be decoded, or is not of the annotated size.
        """
        return load_rgb(self.path(index), self.size(index), stored=self._drawn_on_stored_pixels)

    def _drawn_on_stored_pixels(self) -> bool:
        """Whether boxes of square or half-turned images were drawn before EXIF orientations were applied."""
        stored = self._proven_orientation
        self.orientation_is_assumed |= stored is None
        return stored is True

    @cached_property
    def _proven_orientation(self) -> bool | None:
        """Result of the first image whose stated size fits only one orientation; ``None`` without any."""
        for index in range(len(self)):
            stored = stored_size(self.path(index))
            if stored is not None and self.size(index) in (stored, stored[::-1]):
                return self.size(index) == stored
        return None

    def boxes_left(self, width: int, height: int, min_side_px: float = 2.0) -> tuple[int, int]:
        """Count the training boxes large enough on a canvas of this size in pixels, and all of them, without crowds.

        Training leaves out boxes narrower or lower than ``min_side_px``, see
        :class:`~smnas.data.augment.Augmentation`.
        """
        annotations = self._annotations
        sizes = np.repeat(annotations.sizes, np.diff(annotations.offsets), axis=0)
        low = annotations.boxes[:, :2].clip(0)
        sides = np.minimum(annotations.boxes[:, :2] + annotations.boxes[:, 2:], sizes) - low
        scales = np.minimum(width / sizes[:, 0], height / sizes[:, 1])
        left = ((sides * scales[:, None]).min(axis=1, initial=np.inf) >= min_side_px) & ~annotations.crowd
        return int(left.sum()), int((~annotations.crowd).sum())

    @property
    def boxes_within_1(self) -> int:
        """Number of boxes, without crowds, that fractions of an image could be."""
        return int((_within_1(self._annotations) & ~self._annotations.crowd).sum())

    def spread(self, count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
        """Decode up to ``count`` images from all over the file, which may be sorted by class or by day.

        One is drawn from each of ``count`` equal parts of the file.

        Raises:
            DataError: as :meth:`image`.
        """
        edges = np.linspace(0, len(self), min(count, len(self)) + 1).astype(int)
        return [self.image(index) for index in np.random.default_rng(seed).integers(edges[:-1], edges[1:]).tolist()]

    def require_decodable(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Decode every image once, to find a damaged one before hours of work and not after.

        ``on_progress`` gets the numbers of finished and of all images.

        Raises:
            DataError: as :meth:`image`, for the first bad image.
        """

        def decode(index: int) -> None:
            self.image(index)

        with ThreadPoolExecutor(_DECODERS, thread_name_prefix="smnas-check") as pool:
            for done, _ in enumerate(pool.map(decode, range(len(self))), start=1):
                if on_progress is not None:
                    on_progress(done, len(self))

    def boxes(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """Return boxes ``(N, 4)`` ``xyxy`` clipped to the image, 0-based labels ``(N,)`` and crowd flags ``(N,)``."""
        rows = slice(int(self._annotations.offsets[index]), int(self._annotations.offsets[index + 1]))
        boxes = self._annotations.boxes[rows].copy()
        boxes[:, 2:] += boxes[:, :2]
        np.clip(boxes, 0, np.tile(self._annotations.sizes[index], 2), out=boxes)
        return boxes.astype(np.float32), self._annotations.labels[rows], self._annotations.crowd[rows]

    def sample(self, index: int) -> Sample:
        """Return an image at full size, with all its boxes.

        Raises:
            DataError: the file can not be decoded, or is not of the annotated size.
        """
        boxes, labels, crowd = self.boxes(index)
        return Sample(self.image(index), boxes, labels, crowd, self.image_ids[index])

    def shrunk(self, index: int, width: int, height: int) -> tuple[NDArray[np.uint8], float]:
        """Return a read-only image, shrunk if it exceeds ``width x height``, and its scale (at most 1). Thread-safe.

        Results stay in memory up to ``cache_bytes``. Then images of other sizes make room (a search moves from one
        input size to the next); those of the same size stay, because over epochs in random order a fixed set of
        residents is hit as often as any other.
        """
        size = (width, height)
        found = self._cache.get(size, {}).get(index)
        if found is None:
            found = shrink(self.image(index), width, height)
            found[0].setflags(write=False)
            self._keep(size, index, found)
        return found

    def _keep(self, size: tuple[int, int], index: int, made: tuple[NDArray[np.uint8], float]) -> None:
        with self._lock:
            residents = self._cache.pop(size, {})
            self._cache[size] = residents
            if index in residents:
                return
            for other in list(self._cache):
                if other == size or self._cached_bytes + made[0].nbytes <= self.cache_bytes:
                    break
                self._cached_bytes -= sum(image.nbytes for image, _ in self._cache.pop(other).values())
            if self._cached_bytes + made[0].nbytes <= self.cache_bytes:
                residents[index] = made
                self._cached_bytes += made[0].nbytes

    def ground_truth(self) -> COCO:
        """Return the split for pycocotools, built in memory, boxes as annotated, crowds included.

        Annotations are renumbered from 1: pycocotools takes a match with annotation 0 for no match.
        """
        annotations = self._annotations
        image_of = np.repeat(annotations.image_ids, np.diff(annotations.offsets)).tolist()
        category_of = np.array(annotations.category_ids, dtype=np.int64)[annotations.labels].tolist()
        coco = COCO()
        coco.dataset = {
            "images": [
                {"id": image, "file_name": name, "width": width, "height": height}
                for image, name, (width, height) in zip(
                    self.image_ids, annotations.file_names, annotations.sizes.tolist(), strict=True
                )
            ],
            "categories": [
                {"id": category, "name": name}
                for category, name in zip(annotations.category_ids, annotations.classes, strict=True)
            ],
            "annotations": [
                {"id": row, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
                for row, (image, category, box, area, crowd) in enumerate(
                    zip(
                        image_of,
                        category_of,
                        annotations.boxes.tolist(),
                        annotations.areas.tolist(),
                        annotations.crowd.astype(int).tolist(),
                        strict=True,
                    ),
                    start=1,
                )
            ],
        }
        with quiet_pycocotools():
            coco.createIndex()
        return coco


class CocoFolder:
    """A data set folder, checked as a whole on opening.

    Args:
        root: holds ``annotations/instances_train.json`` and ``instances_val.json`` with the images in ``train/`` and
            ``val/``, where each of these names may end in ``2017``; or, as Roboflow exports them, ``train/`` and
            ``valid/`` (or ``val/``), each with its images and ``_annotations.coco.json``. A class without boxes that
            all others name as their supercategory, such as Roboflow's with id 0, is dropped.
        drop_bad_boxes: leave out annotations whose box breaks a rule instead of refusing the data set.
        drop_bad_images: decode every image now, and leave out those that are missing, damaged or not of the annotated
            size.
        cache_bytes: memory limit of each split's decoded pixels.
        test: folder of a held-out split, which may be ``root``: its ``test`` split; or a folder of images with
            ``_annotations.coco.json`` inside; or else its validation split. ``None``: no held-out split.

    Attributes:
        splits: names of the splits.
        classes: class names, by ascending category id.
        category_ids: COCO category id of each class.
        dropped: number of annotations of all splits left out for their boxes.

    Raises:
        DataError: the folder, a file or an entry breaks a rule; the message names it.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        drop_bad_boxes: bool = False,
        drop_bad_images: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        test: Path | str | None = None,
    ) -> None:
        self.root = Path(root)
        self.test = None if test is None else Path(test)
        self.drop_bad_boxes = drop_bad_boxes
        self.drop_bad_images = drop_bad_images
        if not self.root.is_dir():
            raise DataError(f"a data set must be a folder, but there is no folder {self.root}")
        self.dropped_images = 0
        self.root_class: tuple[int, str] | None = None
        found: dict[Split, tuple[AnnotationFile, Path]] = {}
        places: dict[Split, tuple[Path, Path]] = {split: _find_split(self.root, split) for split in _ALWAYS}
        if self.test is not None:
            places["test"] = _find_test(self.test)
        for split, (file, folder) in places.items():
            annotations = read_annotations(file, drop_bad_boxes=drop_bad_boxes)
            if drop_bad_images:
                whole = _whole_images(DetectionDataset(annotations, folder))
                self.dropped_images += int((~whole).sum())
                if not whole.any():
                    raise DataError(
                        f"a split must have at least one image that can be read as annotated, but of the {len(whole)} "
                        f"images of {file} none can"
                    )
                annotations = annotations.with_images(whole)
            else:
                _require_files(annotations, folder)
            _require_a_box(annotations)
            found[split] = annotations, folder
        train = found["train"][0]
        for split, (other, _) in found.items():
            if (train.category_ids, train.classes) != (other.category_ids, other.classes):
                raise DataError(
                    f"train and {split} must have the same categories, but in {self.root} train has "
                    f"{_described(train)} and {split} has {_described(other)}"
                )
            if split == "test" and other.digest in (found["train"][0].digest, found["val"][0].digest):
                raise DataError(
                    f"held-out images must be others than those of training and validation, but {other.path} holds the "
                    "same"
                )
        if train.root is not None and all(train.root == one.root for one, _ in found.values()):
            self.root_class = train.category_ids[train.root], train.classes[train.root]
            found = {split: (one.without_class(train.root), folder) for split, (one, folder) in found.items()}
        _require_names(found["train"][0])
        self._splits = {split: DetectionDataset(*pair, cache_bytes) for split, pair in found.items()}
        self.classes, self.category_ids = self._splits["train"].classes, self._splits["train"].category_ids
        self.dropped = sum(dataset.dropped for dataset in self._splits.values())
        for dataset in self._splits.values():
            dataset.root_class = self.root_class

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for everything left out or assumed."""
        notes = []
        if self.dropped:
            notes.append(f"left out {self.dropped} boxes of {self.root} without a size or outside their image")
        if self.dropped_images:
            notes.append(f"left out {self.dropped_images} images of {self.root} that can not be read as annotated")
        if self.root_class is not None:
            number, name = self.root_class
            notes.append(
                f"category {number} {name} of {self.root} has no box and names the others' group: it is no class"
            )
        for name, dataset in self._splits.items():
            if dataset.orientation_is_assumed:
                notes.append(
                    f"square or half-turned images of {name} in {self.root} state an EXIF orientation, and no other "
                    "image shows whether boxes were drawn on turned ones: they are turned, as viewers show them"
                )
        return tuple(notes)

    @property
    def splits(self) -> tuple[Split, ...]:
        """Names of the splits: ``test`` only if one is held out."""
        return tuple(self._splits)

    def split(self, name: Split) -> DetectionDataset:
        """Return the training, the validation or the held-out split."""
        return self._splits[name]

    @property
    def reported(self) -> DetectionDataset:
        """The split that final AP is measured on: the held-out one, else the validation split."""
        return self._splits.get("test", self._splits["val"])


def has_test_split(root: Path) -> bool:
    """Whether a data set's folder has a ``test`` split with images and boxes."""
    try:
        found = _split_at(root, "test")
        return found is not None and len(read_annotations(found[0], drop_bad_boxes=True).boxes) > 0
    except DataError:  # annotations without images, or without a class
        return False


def box_notes(dataset: DetectionDataset, sizes: Iterable[tuple[int, int]], min_side_px: float = 2.0) -> tuple[str, ...]:
    """Return a line about boxes too small to train on for each input size ``(width, height)`` that loses some.

    ``min_side_px`` is as for :meth:`DetectionDataset.boxes_left`.

    Raises:
        DataError: at none of the sizes a box is left.
    """
    counts = {size: dataset.boxes_left(*size, min_side_px) for size in dict.fromkeys(sizes)}
    lost = {
        f"{width}x{height}": (total - left, total) for (width, height), (left, total) in counts.items() if left < total
    }
    fractions = dataset.boxes_within_1
    why = f", and {fractions} of them lie within 0..1, as fractions of their images do" if fractions else ""
    if counts and not any(left for left, _ in counts.values()):
        raise DataError(
            f"training needs boxes of {min_side_px:g} pixels a side on the input, but at {', '.join(lost)} none of the "
            f"{next(iter(counts.values()))[1]} boxes of {dataset.folder} is left{why or ': a larger input is needed'}"
        )
    return tuple(
        f"at {size} {gone / total:.1%} of the boxes to train on ({gone} of {total}) are left out: "
        f"under {min_side_px:g} pixels a side{why}"
        for size, (gone, total) in lost.items()
    )


def _within_1(annotations: AnnotationFile) -> NDArray[np.bool_]:
    """``(N,)`` whether all four numbers of a box are at most 1, as fractions of an image are."""
    return np.asarray((annotations.boxes <= 1 + _ROUNDED).all(axis=1))


def _whole_images(dataset: DetectionDataset) -> NDArray[np.bool_]:
    """``(I,)`` whether each image can be read as annotated."""

    def is_whole(index: int) -> bool:
        try:
            dataset.image(index)
        except DataError:
            return False
        return True

    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="smnas-check") as pool:
        return np.fromiter(pool.map(is_whole, range(len(dataset))), dtype=bool, count=len(dataset))


@contextmanager
def quiet_pycocotools() -> Iterator[None]:
    """Swallow pycocotools' prints: standard output belongs to the command."""
    with redirect_stdout(StringIO()):
        yield


def _split_at(root: Path, split: Split) -> tuple[Path, Path] | None:
    """Return a split's annotation file and image folder, if there is one."""
    for suffix in _SUFFIXES:
        file = root / "annotations" / f"instances_{split}{suffix}.json"
        if file.is_file():
            return file, _image_folder(root, split)
    for name in _FOLDERS_BESIDE[split]:
        file = root / name / _FILE_BESIDE
        if file.is_file():
            return file, file.parent
    return None


def _find_split(root: Path, split: Split) -> tuple[Path, Path]:
    found = _split_at(root, split)
    if found is not None:
        return found
    raise DataError(
        f"a data set must have annotations/instances_{split}.json (or instances_{split}2017.json), or "
        f"{_FOLDERS_BESIDE[split][0]}/{_FILE_BESIDE}, but {root} has none of them"
    )


def _find_test(root: Path) -> tuple[Path, Path]:
    """Return annotation file and image folder of held-out images."""
    beside = root / _FILE_BESIDE
    found = _split_at(root, "test") or ((beside, root) if beside.is_file() else None) or _split_at(root, "val")
    if found is None:
        missing = "none of them" if root.is_dir() else "is no folder"
        raise DataError(
            f"held-out images must be a test or val split, as annotations/instances_test.json and test/, or a folder "
            f"with {_FILE_BESIDE}, but {root} {'has ' if root.is_dir() else ''}{missing}"
        )
    return found


def _image_folder(root: Path, split: Split) -> Path:
    for suffix in _SUFFIXES:
        folder = root / f"{split}{suffix}"
        if folder.is_dir():
            return folder
    raise DataError(f"a data set must have a folder {split} (or {split}2017) of images, but {root} has neither")


def _require_files(annotations: AnnotationFile, folder: Path) -> None:
    """Check that every image exists, by one listing of the folder instead of a disk access for each of 118,000."""
    listed: dict[str, set[str]] = {}
    for image, name in zip(annotations.image_ids, annotations.file_names, strict=True):
        parent, _, base = name.rpartition("/")
        if parent not in listed:
            listed[parent] = _file_names(folder / parent)
        if base not in listed[parent]:
            raise DataError(
                f"every image must have its file, named from its image folder on with / between folders, but image "
                f"{image} of {annotations.path} names {name}, which is not in {folder}{_nearest(name, folder)}; "
                "--drop-bad-images leaves such images out"
            )


def _nearest(name: str, folder: Path) -> str:
    """Guess the intended file: without leading folders or percent-encoding, in another case or with another suffix."""
    plain = unquote(name).replace("\\", "/").rpartition("/")[2].lower()
    files = {file.name.lower(): file for file in folder.rglob("*") if file.is_file()}
    close = [one for one in files if Path(one).stem == Path(plain).stem] or get_close_matches(plain, files, 1, 0.8)
    close = [plain] if plain in files else close
    return f" (the nearest file there is {files[close[0]].relative_to(folder).as_posix()})" if close else ""


def _require_names(annotations: AnnotationFile) -> None:
    """Refuse two classes of one name: one object under two labels, each wrong for the other's boxes."""
    for name in annotations.classes:
        if annotations.classes.count(name) > 1:
            pairs = zip(annotations.category_ids, annotations.classes, strict=True)
            numbers = ", ".join(str(number) for number, other in pairs if other == name)
            raise DataError(f"class names must be unique, but {annotations.path} has {name!r} as categories {numbers}")


def _require_a_box(annotations: AnnotationFile) -> None:
    """Refuse a split without boxes (nothing to learn, no AP) now instead of after hours of training."""
    if annotations.crowd.all():
        raise DataError(
            f"a split must have at least one box that is not a crowd, but the {len(annotations.image_ids)} images of "
            f"{annotations.path} have none"
        )
    if _within_1(annotations).all():
        raise DataError(
            f"a box must be in pixels, but all {len(annotations.boxes)} boxes of {annotations.path} lie within 0..1, "
            "as fractions of their images"
        )


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def _described(annotations: AnnotationFile) -> dict[int, Any]:
    return dict(zip(annotations.category_ids, annotations.classes, strict=True))
