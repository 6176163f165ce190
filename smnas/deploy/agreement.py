"""Agreement of two detectors: the check behind every export."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smnas.evaluation.predict import DetectionArrays

__all__ = ["Agreement", "box_iou", "compare_detections"]

LEAST_IOU = 0.999
LEAST_ROUNDED_IOU = 0.5
LARGEST_SCORE_DIFFERENCE = 1e-3
_SAME_CORNERS_PX = 0.01
"""Boxes with corners this close are the same: a sliver of 0.02 pixels loses a hundredth of its IoU by rounding."""
_TIE = 1e-5
"""Scores this close are equal: float32 arithmetic in another order moves them by about 1e-7."""
_CHANCE = 2
_CHANCE_SHARE = 0.005


@dataclass(frozen=True)
class Agreement:
    """Distance between two sets of detections.

    Attributes:
        compared: Detections above the score threshold, on both sides together.
        differing: Those without a partner on the other side, of their class, with an IoU above 0.999 and a score
            within 0.001.
        least_iou: Smallest IoU of two partners, 1 without any; boxes whose corners lie within 0.01 pixels count as 1.
        largest_score_difference: Largest absolute score difference of two partners; 0 without any.
        rounded: One side is rounded, so partners need only an IoU above 0.5, and any score.
    """

    images: int
    compared: int
    differing: int
    least_iou: float
    largest_score_difference: float
    rounded: bool = False

    @property
    def holds(self) -> bool:
        """Whether both sides agree as far as two float32 programs can.

        Where two overlapping boxes tie to the last bits of their scores, NMS keeps one by chance, and so suppresses by
        chance. One such swap (a detection on each side), or 0.5% of many detections, passes; ``differing`` shows it.
        """
        return self.differing <= max(_CHANCE, _CHANCE_SHARE * self.compared)

    def __str__(self) -> str:
        if self.rounded:
            return (
                f"{self.compared - self.differing} of {self.compared} detections on {self.images} images are found on "
                f"both sides (IoU above {LEAST_ROUNDED_IOU}); what rounding costs is the loss of AP"
            )
        return (
            f"{self.compared} detections on {self.images} images, {self.differing} differing; of the others the "
            f"least IoU is {self.least_iou:.6f}, the largest score difference {self.largest_score_difference:.1e}"
        )


def box_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the IoU in 0..1, ``(N, M)``, of boxes ``(N, 4)`` and ``(M, 4)`` ``xyxy``.

    Two boxes without an area have IoU 1 if they are the same box and 0 otherwise.
    """
    a, b = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    overlap = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    same = np.abs(a - b).max(-1) == 0 if a.size and b.size else np.zeros(overlap.shape, bool)
    result: NDArray[np.float64] = np.where(union > 0, overlap / np.where(union > 0, union, 1), same.astype(np.float64))
    return result


def compare_detections(
    reference: DetectionArrays, other: DetectionArrays, *, min_score: float = 0.05, rounded: bool = False
) -> Agreement:
    """Match the detections of two detectors on the same images, in the same order.

    Every detection above ``min_score`` on either side needs a partner among **all** detections of the other side: a
    score of 0.0500001 against 0.0499999 is a difference of 2e-7, not a missing object. For the same reason, where a
    side is full (all K rows are real), detections of the other side that tie with its last one need none: the cut
    between equals is chance. Partners share a class; each side's detections choose by falling score, the largest
    overlap first. ``rounded`` is as in :class:`Agreement`.
    """
    wanted, difference_allowed = (LEAST_ROUNDED_IOU, 1.0) if rounded else (LEAST_IOU, LARGEST_SCORE_DIFFERENCE)
    if len(reference.num) != len(other.num):
        raise ValueError(f"both sides must have the same images, but got {len(reference.num)} and {len(other.num)}")
    compared = differing = 0
    least_iou, largest_difference = 1.0, 0.0
    for row in range(len(reference.num)):
        for ours, theirs in ((reference, other), (other, reference)):
            n, m = int(ours.num[row]), int(theirs.num[row])
            closeness = _closeness(ours, theirs, row, difference_allowed)
            full = m == theirs.scores.shape[1] > 0
            least = max(min_score, float(theirs.scores[row, m - 1]) + _TIE) if full else min_score
            for index in np.argsort(-ours.scores[row, :n], kind="stable"):
                if ours.scores[row, index] <= least:
                    break
                compared += 1
                partner = int(closeness[index].argmax()) if m else -1
                if partner < 0 or closeness[index, partner] <= wanted:
                    differing += 1
                    continue
                least_iou = min(least_iou, float(closeness[index, partner]))
                difference = abs(float(ours.scores[row, index]) - float(theirs.scores[row, partner]))
                largest_difference = max(largest_difference, difference)
                closeness[:, partner] = -1
    return Agreement(len(reference.num), compared, differing, least_iou, largest_difference, rounded)


def _closeness(
    ours: DetectionArrays, theirs: DetectionArrays, row: int, difference_allowed: float
) -> NDArray[np.float64]:
    """``(N, M)`` IoU of possible partners, -1 for pairs of other classes or other scores."""
    n, m = int(ours.num[row]), int(theirs.num[row])
    closeness = box_iou(ours.boxes[row, :n], theirs.boxes[row, :m])
    if n and m:
        apart = np.abs(ours.boxes[row, :n, None] - theirs.boxes[row, None, :m]).max(-1)
        closeness[apart <= _SAME_CORNERS_PX] = 1.0
    other_score = np.abs(ours.scores[row, :n, None] - theirs.scores[row, None, :m]) > difference_allowed
    closeness[other_score | (ours.labels[row, :n, None] != theirs.labels[row, None, :m])] = -1
    return closeness
