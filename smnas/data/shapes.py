"""The generated data set: a COCO folder of coloured shapes, the same bytes for the same settings."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from smnas.data.errors import DataError
from smnas.data.scene import CLASSES, draw_scene, render

__all__ = ["generate_shapes"]

_MANIFEST = "shapes.json"
_VERSION = 3
_JPEG_QUALITY = 92
_Document = dict[str, list[dict[str, object]]]


def generate_shapes(
    root: Path | str,
    *,
    train: int = 480,
    val: int = 120,
    width: int = 160,
    height: int = 160,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set of shapes, or find it already written.

    Every image has its own generator, so a larger data set begins with the images of a smaller one. The folder is
    written atomically. ``train`` and ``val`` are numbers of images of ``width x height`` pixels, at least 32 each; the
    seed is not negative; ``on_progress`` gets the numbers of finished and of all images.

    Returns:
        ``root`` as a path; open it with :class:`smnas.data.coco.CocoFolder`.

    Raises:
        DataError: a setting is out of range, or something else is at ``root``.
    """
    if train < 1 or val < 1:
        raise DataError(f"a split must have at least one image, but got train={train} and val={val}")
    if min(width, height) < 32:
        raise DataError(f"a generated image must be at least 32 pixels wide and high, but got {width}x{height}")
    if seed < 0:
        raise DataError(f"`seed >= 0` must hold, but got seed={seed}")
    root = Path(root)
    manifest = {
        "generator": "smnas shapes",
        "version": _VERSION,
        "train": train,
        "val": val,
        "width": width,
        "height": height,
        "seed": seed,
    }
    if _already_there(root, manifest):
        return root
    categories: list[dict[str, object]] = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise DataError(f"a data set's folder must be writable, but {root} is not: {error.strerror}") from None
    try:
        done = 0
        for stream, (split, count) in enumerate((("train", train), ("val", val))):
            document: _Document = {"images": [], "annotations": [], "categories": categories}
            (partial / split).mkdir()
            for index in range(count):
                _add_image(document, partial / split, (width, height), np.random.default_rng([seed, stream, index, 1]))
                done += 1
                if on_progress is not None:
                    on_progress(done, train + val)
            _write_json(partial / "annotations" / f"instances_{split}.json", document)
        _write_json(partial / _MANIFEST, manifest)
        partial.chmod(0o755)  # a temporary folder is private to its owner
        try:
            partial.replace(root)
        except OSError:
            # Another process may have finished the same data set in the meantime.
            if not _already_there(root, manifest):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _already_there(root: Path, manifest: dict[str, object]) -> bool:
    if not root.exists():
        return False
    if root.is_dir() and not any(root.iterdir()):
        return False
    try:
        found = json.loads((root / _MANIFEST).read_text())
    except (OSError, ValueError):
        raise DataError(f"generated shapes must go to a new or empty folder, but {root} holds something else") from None
    if found != manifest:
        raise DataError(
            f"generated shapes must go to a new or empty folder, but {root} holds shapes of other settings: {found}"
        )
    return True


def _add_image(document: _Document, folder: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    images, annotations = document["images"], document["annotations"]
    scene = draw_scene(*size, rng)
    pixels, boxes = render(scene, rng)
    name = f"{len(images):06d}.jpg"
    Image.fromarray(pixels).save(folder / name, quality=_JPEG_QUALITY, subsampling=0)
    images.append({"id": len(images) + 1, "file_name": name, "width": size[0], "height": size[1]})
    for shape, box in zip(scene.shapes, boxes, strict=True):
        owner = {"id": len(annotations) + 1, "image_id": len(images), "category_id": shape.label + 1}
        annotations.append({**owner, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0})


def _write_json(path: Path, document: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
