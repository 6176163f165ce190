"""COCO-format folders: ``train``, ``val`` and ``annotations`` as COCO's own, or splits with their files beside them."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from smnas.data.annotations import AnnotationFile, read_annotations
from smnas.data.errors import DataError
from smnas.data.image import load_rgb
from smnas.data.letterbox import shrink

__all__ = ["DEFAULT_CACHE_BYTES", "CocoFolder", "DataError", "DetectionDataset", "Sample", "Split", "quiet_pycocotools"]

Split = Literal["train", "val"]
_SPLITS: tuple[Split, ...] = ("train", "val")
_SUFFIXES = ("", "2017")
# Roboflow's export: a split's annotation file lies among its images
_FILE_BESIDE = "_annotations.coco.json"
_FOLDERS_BESIDE: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("valid", "val")}

_DECODERS = 4  # threads that look through a split

DEFAULT_CACHE_BYTES = 1 << 30
"""How many bytes of decoded pixels a split keeps in memory, unless told otherwise: 1 GiB."""


@dataclass(frozen=True)
class Sample:
    """One image with its boxes.

    Attributes:
        image: ``(H, W, 3)`` ``uint8``, RGB.
        boxes: ``(N, 4)`` float32, ``xyxy`` in pixels of the image, clipped to it.
        labels: ``(N,)`` int64, 0-based index into the classes.
        crowd: ``(N,)`` bool; crowds count in evaluation only, never as training targets.
        image_id: the id in the annotation file.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    image_id: int


class DetectionDataset:
    """One split of a folder. Images are decoded when asked for; annotations are in memory.

    Args:
        annotations: the checked annotation file.
        folder: where the images lie.
        cache_bytes: the memory limit of :meth:`shrunk`.
    """

    def __init__(self, annotations: AnnotationFile, folder: Path, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.folder = folder
        self.cache_bytes = cache_bytes
        self._annotations = annotations
        # By canvas, the least recently used one first, then by image.
        self._cache: dict[tuple[int, int], dict[int, tuple[NDArray[np.uint8], float]]] = {}
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._annotations.image_ids)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by ascending category id; a label is an index into this."""
        return self._annotations.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category id of each class."""
        return self._annotations.category_ids

    @property
    def dropped(self) -> int:
        """How many annotations were left out because their boxes broke a rule (0 unless that was asked for)."""
        return self._annotations.dropped

    @cached_property
    def image_ids(self) -> tuple[int, ...]:
        """The id of each image in the annotation file."""
        return tuple(int(image) for image in self._annotations.image_ids)

    def path(self, index: int) -> Path:
        """The image file."""
        return self.folder / self._annotations.file_names[index]

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of the image in pixels, as annotated (decoding checks that they are right)."""
        width, height = self._annotations.sizes[index]
        return int(width), int(height)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode one image: ``(H, W, 3)`` ``uint8`` RGB.

        Raises:
            DataError: the file can not be decoded, or is not of the annotated size.
        """
        return load_rgb(self.path(index), self.size(index))

    def spread(self, count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
        """Decode images from all over the file, which may be sorted by class or by day.

        Args:
            count: how many; all of them where the split has fewer.
            seed: of the draw, one from each of ``count`` equal parts of the file.

        Raises:
            DataError: as :meth:`image`.
        """
        edges = np.linspace(0, len(self), min(count, len(self)) + 1).astype(int)
        return [self.image(index) for index in np.random.default_rng(seed).integers(edges[:-1], edges[1:]).tolist()]

    def require_decodable(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Decode every image once, so that a damaged one is found before hours of work and not after.

        Args:
            on_progress: told how many images are done, and of how many.

        Raises:
            DataError: as :meth:`image`, of the first image that breaks a rule.
        """

        def decode(index: int) -> None:
            self.image(index)

        with ThreadPoolExecutor(_DECODERS, thread_name_prefix="smnas-check") as pool:
            for done, _ in enumerate(pool.map(decode, range(len(self))), start=1):
                if on_progress is not None:
                    on_progress(done, len(self))

    def boxes(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """Boxes ``(N, 4)`` ``xyxy`` clipped to the image, 0-based labels ``(N,)`` and crowd flags ``(N,)``."""
        rows = slice(int(self._annotations.offsets[index]), int(self._annotations.offsets[index + 1]))
        boxes = self._annotations.boxes[rows].copy()
        boxes[:, 2:] += boxes[:, :2]
        np.clip(boxes, 0, np.tile(self._annotations.sizes[index], 2), out=boxes)
        return boxes.astype(np.float32), self._annotations.labels[rows], self._annotations.crowd[rows]

    def sample(self, index: int) -> Sample:
        """One image at its full size, with all its boxes.

        Raises:
            DataError: the file can not be decoded, or is not of the annotated size.
        """
        boxes, labels, crowd = self.boxes(index)
        return Sample(self.image(index), boxes, labels, crowd, self.image_ids[index])

    def shrunk(self, index: int, width: int, height: int) -> tuple[NDArray[np.uint8], float]:
        """The image, made smaller where it does not fit into ``width x height``, and its scale (at most 1).

        Results stay in memory while they fit into ``cache_bytes``. When that is full, images kept for other sizes
        make room (a search moves from one input size to the next); among those of one size nothing is thrown out,
        because over epochs in random order a fixed set of residents is hit as often as any other.
        Threads may call this together. The returned array can not be written to.
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
        """The split as pycocotools knows it, built in memory, boxes as annotated, crowds included.

        Annotations are numbered anew from 1: pycocotools takes a match with annotation 0 for no match.
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
    """A data set folder, checked as a whole when it is opened.

    Args:
        root: holds ``annotations/instances_train.json`` and ``instances_val.json`` with the images in ``train/`` and
            ``val/``, where each of these names may end in ``2017``; or, as Roboflow exports them, ``train/`` and
            ``valid/`` (or ``val/``), each with its images and ``_annotations.coco.json``.
        drop_bad_boxes: leave out annotations whose box breaks a rule instead of refusing the data set.
        cache_bytes: how many bytes of decoded pixels each split may keep in memory.

    Raises:
        DataError: the folder, a file or an entry breaks a rule; the message names it.
    """

    def __init__(
        self, root: Path | str, *, drop_bad_boxes: bool = False, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self.root = Path(root)
        self.drop_bad_boxes = drop_bad_boxes
        if not self.root.is_dir():
            raise DataError(f"a data set must be a folder, but there is no folder {self.root}")
        self._splits: dict[Split, DetectionDataset] = {}
        for split in _SPLITS:
            file, folder = _find_split(self.root, split)
            annotations = read_annotations(file, drop_bad_boxes=drop_bad_boxes)
            _require_files(annotations, folder)
            _require_a_box(annotations)
            self._splits[split] = DetectionDataset(annotations, folder, cache_bytes)
        train, val = self._splits["train"], self._splits["val"]
        if (train.category_ids, train.classes) != (val.category_ids, val.classes):
            raise DataError(
                f"train and val must have the same categories, but in {self.root} train has {_described(train)}"
                f" and val has {_described(val)}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by ascending category id."""
        return self._splits["train"].classes

    @property
    def dropped(self) -> int:
        """How many annotations of both splits were left out because their boxes broke a rule."""
        return sum(split.dropped for split in self._splits.values())

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category id of each class."""
        return self._splits["train"].category_ids

    def split(self, name: Split) -> DetectionDataset:
        """The images to train on, or those to evaluate on."""
        return self._splits[name]


@contextmanager
def quiet_pycocotools() -> Iterator[None]:
    """Swallow what pycocotools prints: standard output belongs to the command."""
    with redirect_stdout(StringIO()):
        yield


def _find_split(root: Path, split: Split) -> tuple[Path, Path]:
    """A split's annotation file and the folder of its images."""
    for suffix in _SUFFIXES:
        file = root / "annotations" / f"instances_{split}{suffix}.json"
        if file.is_file():
            return file, _image_folder(root, split)
    for name in _FOLDERS_BESIDE[split]:
        file = root / name / _FILE_BESIDE
        if file.is_file():
            return file, file.parent
    raise DataError(
        f"a data set must have annotations/instances_{split}.json (or instances_{split}2017.json), or "
        f"{_FOLDERS_BESIDE[split][0]}/{_FILE_BESIDE}, but {root} has none of them"
    )


def _image_folder(root: Path, split: Split) -> Path:
    for suffix in _SUFFIXES:
        folder = root / f"{split}{suffix}"
        if folder.is_dir():
            return folder
    raise DataError(f"a data set must have a folder {split} (or {split}2017) of images, but {root} has neither")


def _require_files(annotations: AnnotationFile, folder: Path) -> None:
    """Every image must exist: one listing of the folder, not a question to the disk for each of 118,000 files."""
    listed: dict[str, set[str]] = {}
    for image, name in zip(annotations.image_ids, annotations.file_names, strict=True):
        parent, _, base = name.rpartition("/")
        if parent not in listed:
            listed[parent] = _file_names(folder / parent)
        if base not in listed[parent]:
            raise DataError(
                f"every image must have its file, named from its image folder on with / between folders, but image "
                f"{image} of {annotations.path} names {name}, which is not in {folder}"
            )


def _require_a_box(annotations: AnnotationFile) -> None:
    """Nothing to learn, and no AP: better said now than after hours of training."""
    if annotations.crowd.all():
        raise DataError(
            f"a split must have at least one box that is not a crowd, but the {len(annotations.image_ids)} images of "
            f"{annotations.path} have none"
        )


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def _described(dataset: DetectionDataset) -> dict[int, Any]:
    return dict(zip(dataset.category_ids, dataset.classes, strict=True))
