"""The detector as a Python object: pictures in, named boxes in the pictures' own pixels out."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smnas.data.image import load_rgb
from smnas.data.letterbox import letterbox, to_original
from smnas.deploy.runtime import Model, load_model
from smnas.evaluation.predict import DetectionArrays

__all__ = ["Detection", "Detector", "Picture", "as_rgb", "named_detections"]

Picture = str | Path | Image.Image | NDArray[np.uint8]
"""A file, a PIL image or a ``(H, W, 3)`` ``uint8`` RGB array."""


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        name: Its class.
        label: 0-based index of the class.
        category_id: The data set's id of the class.
        score: In 0..1.
        box: ``(x1, y1, x2, y2)`` in pixels of the picture, inside it.
    """

    name: str
    label: int
    category_id: int
    score: float
    box: tuple[float, float, float, float]


class Detector:
    """A detector file, ready to use.

    Example::

        detector = Detector("my-run/models/.../model.onnx", score=0.5)
        for detection in detector(["photo.jpg"])[0]:
            print(detection.name, detection.score, detection.box)

    Args:
        path: An exported ``.onnx`` file or a checkpoint ``.pt``.
        score: Detections with a lower score are left out; the file itself keeps those from 0.01 on.
        threads: CPU threads of one run; ``None`` takes every core.

    Raises:
        UserError: The file is missing, damaged or something else.
    """

    def __init__(self, path: str | Path, *, score: float = 0.3, threads: int | None = None) -> None:
        self.model: Model = load_model(Path(path), threads=threads)
        self.score = score

    @property
    def classes(self) -> tuple[str, ...]:
        """What it can find."""
        return self.model.classes

    def __call__(self, images: Iterable[Picture]) -> list[list[Detection]]:
        """Find objects.

        Args:
            images: Pictures of any size.

        Returns:
            For each picture its detections, best first.

        Raises:
            DataError: A file that can not be decoded.
            TypeError: Something that is no picture, such as a float array.
        """
        width, height = self.model.input_size
        found = []
        for image in images:
            pixels = as_rgb(image)
            canvas, scale = letterbox(pixels, width, height)
            arrays = self.model(canvas.transpose(2, 0, 1)[None].copy())
            size = (pixels.shape[1], pixels.shape[0])
            found.append(named_detections(self.model, arrays, 0, scale, size, self.score))
        return found


def as_rgb(image: Picture) -> NDArray[np.uint8]:
    """Any kind of picture as ``(H, W, 3)`` ``uint8`` RGB.

    Raises:
        DataError: A file that can not be decoded.
        TypeError: Not a picture.
    """
    if isinstance(image, str | Path):
        return load_rgb(Path(image))
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"), dtype=np.uint8)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise TypeError(f"a picture array is uint8 (H, W, 3) RGB, but got {image.dtype} {image.shape}")
    return image


def named_detections(
    model: Model, arrays: DetectionArrays, row: int, scale: float, size: tuple[int, int], score: float
) -> list[Detection]:
    """One row of a batch as named boxes of the picture.

    Args:
        model: Names its classes.
        arrays: What the model found.
        row: Which picture of the batch.
        scale: Of its letterbox.
        size: Width and height of the picture in pixels.
        score: Lowest score to keep.
    """
    keep = int((arrays.scores[row, : int(arrays.num[row])] >= score).sum())  # sorted by score
    boxes = to_original(arrays.boxes[row, :keep], scale, *size)
    return [
        Detection(
            model.classes[label], label, model.category_ids[label], float(arrays.scores[row, i]), (x1, y1, x2, y2)
        )
        for i, (label, (x1, y1, x2, y2)) in enumerate(
            zip(arrays.labels[row, :keep].tolist(), boxes.tolist(), strict=True)
        )
    ]
