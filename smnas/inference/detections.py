"""Named objects in image pixels."""

from dataclasses import dataclass

from smnas.data.letterbox import to_original
from smnas.evaluation.predict import DetectionArrays
from smnas.inference.runtime import Model

__all__ = ["Detection", "named_detections"]


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        label: 0-based index of the class.
        category_id: The data set's id of the class.
        score: In 0..1.
        box: ``(x1, y1, x2, y2)`` in pixels, inside the image.
    """

    name: str
    label: int
    category_id: int
    score: float
    box: tuple[float, float, float, float]


def named_detections(
    model: Model, arrays: DetectionArrays, row: int, scale: float, size: tuple[int, int], score: float
) -> tuple[Detection, ...]:
    """Convert one row of a batch to named boxes of the image, best first, without those below ``score``.

    ``scale`` is the letterbox's, ``size`` the image's width and height in pixels.
    """
    keep = int((arrays.scores[row, : int(arrays.num[row])] >= score).sum())  # sorted by score
    boxes = to_original(arrays.boxes[row, :keep], scale, *size)
    return tuple(
        Detection(model.classes[label], label, model.category_ids[label], found, (x1, y1, x2, y2))
        for label, found, (x1, y1, x2, y2) in zip(
            arrays.labels[row, :keep].tolist(), arrays.scores[row, :keep].tolist(), boxes.tolist(), strict=True
        )
    )
