"""Detections as a COCO results file, with the image ids of an annotation file."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from profiler.atomic import require_room, write_atomic
from profiler.errors import UserError
from smnas.data.annotations import ImageList, read_image_list
from smnas.inference.results import ImageResult
from smnas.inference.runtime import Model

__all__ = ["ListedImages", "require_place"]


class ListedImages:
    """Images with ids from an annotation file.

    An image matches the entry whose ``file_name`` its path ends with, so ``val/1.jpg`` and ``train/1.jpg`` are distinct
    if they are so in the file.

    Attributes:
        sizes: Annotated width and height of each image.

    Raises:
        DataError: The annotation file breaks a rule.
        UserError: An unlisted image, two images for one entry, or other classes.
    """

    def __init__(self, annotations: Path, paths: Iterable[Path], model: Model) -> None:
        listed = read_image_list(annotations)
        known = dict(zip(listed.category_ids, listed.classes, strict=True))
        for category, name in zip(model.category_ids, model.classes, strict=True):
            if known.get(category) != name:
                raise UserError(
                    f"the detector's classes must be those of the annotations, but it finds {name} as category "
                    f"{category}, which {annotations} knows as {known.get(category, 'nothing')}"
                )
        self._category_id = model.category_ids[0]
        self._image_ids: dict[Path, int] = {}
        self.sizes: dict[Path, tuple[int, int]] = {}
        for path, index in _indices(listed, list(paths)).items():
            self._image_ids[path] = int(listed.image_ids[index])
            width, height = listed.sizes[index].tolist()
            self.sizes[path] = width, height

    def results(self, images: Iterable[ImageResult]) -> list[dict[str, Any]]:
        """Return ``image_id``, ``category_id``, ``bbox`` (``xywh`` in pixels) and ``score`` per detection."""
        return [
            {
                "image_id": self._image_ids[image.path],
                "category_id": one.category_id,
                "bbox": [one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]],
                "score": one.score,
            }
            for image in images
            for one in image.detections
        ]

    def write(self, images: Iterable[ImageResult], path: Path) -> str | None:
        """Write :meth:`results` as a file that COCO's tools load.

        They load no empty list. Without detections the file holds one of score 0 and zero size on the first image,
        which matches no object: AP is 0 either way.

        Returns:
            A line about that detection, if written.

        Raises:
            UserError: The file can not be written.
        """
        results = self.results(images)
        nothing = not results and bool(self._image_ids)
        if nothing:
            image = next(iter(self._image_ids.values()))
            results = [{"image_id": image, "category_id": self._category_id, "bbox": [0.0] * 4, "score": 0.0}]
        try:
            write_atomic(path, json.dumps(results) + "\n")
        except OSError as error:
            raise _no_place(path, error.strerror) from None
        stands_in = f"nothing was found; COCO's tools load no empty list, so {path} holds one detection of score 0"
        return stands_in if nothing else None


def require_place(path: Path) -> None:
    """Create the file's folder and refuse, before the first image, a file that could not be written afterwards.

    Raises:
        UserError: The folder can not be created or written to, its disk is full, or the file is a folder.
    """
    if path.is_dir():
        raise _no_place(path, "a folder")
    if not path.exists() or path.is_file():  # not /dev/stdout
        require_room(path.parent, "COCO results")


def _no_place(path: Path, reason: str | None) -> UserError:
    return UserError(f"COCO results must go to a file that can be written, but got {path} ({reason})")


def _indices(listed: ImageList, paths: list[Path]) -> Mapping[Path, int]:
    by_name: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(listed.file_names):
        by_name[Path(name).name].append(index)
    found: dict[Path, int] = {}
    owner: dict[int, Path] = {}
    missing = []
    for path in paths:
        parts = path.absolute().parts
        matches = [
            index
            for index in by_name.get(path.name, ())
            if parts[-len(own := Path(listed.file_names[index]).parts) :] == own
        ]
        if not matches:
            missing.append(path)
            continue
        index = max(matches, key=lambda one: len(Path(listed.file_names[one]).parts))
        if index in owner:
            raise UserError(
                f"two images can not be the same one of {listed.path}, but {owner[index]} and {path} "
                f"are both {listed.file_names[index]}"
            )
        owner[index] = path
        found[path] = index
    if missing:
        more = f", nor {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"every image must be listed in {listed.path}, but {missing[0]} is not{more}")
    return found
