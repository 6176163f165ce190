"""The 12 numbers of COCO's detection challenge, computed by pycocotools.

Source: Lin et al. 2014, "Microsoft COCO: Common Objects in Context"; https://cocodataset.org/#detection-eval.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smnas.data.coco import quiet_pycocotools

__all__ = ["CocoMetrics", "CocoResult", "evaluate_results"]


class CocoResult(TypedDict):
    """One detection in COCO's results format.

    Attributes:
        image_id: Id in the annotation file.
        category_id: Id in the annotation file.
        bbox: ``[x, y, width, height]`` in pixels of the image.
        score: Confidence; higher is more certain.
    """

    image_id: int
    category_id: int
    bbox: list[float]
    score: float


@dataclass(frozen=True)
class CocoMetrics:
    """Average precision and recall, each in 0..1, averaged over 10 IoU thresholds from 0.50 to 0.95 unless stated.

    A number is NaN if no ground-truth box is in its range of sizes.

    Attributes:
        ap: average precision, the challenge's metric.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of boxes with an area under 32 x 32 pixels.
        ap_medium: of boxes between 32 x 32 and 96 x 96.
        ap_large: of boxes over 96 x 96.
        ar1: average recall of the best detection of each image and class.
        ar10: of the best 10.
        ar100: of the best 100.
        ar_small: of the best 100, small boxes.
        ar_medium: of the best 100, medium boxes.
        ar_large: of the best 100, large boxes.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, in COCO's order."""
        return asdict(self)


def evaluate_results(ground_truth: COCO, results: Sequence[CocoResult]) -> CocoMetrics:
    """Evaluate detections against the ground truth, in any order; an empty list has AP 0.

    Raises:
        ValueError: a result has an unknown image id or a number that is not finite.
    """
    known = set(ground_truth.getImgIds())
    for result in results:
        if result["image_id"] not in known:
            raise ValueError(f"a result must name an image of the ground truth, but got {result['image_id']}")
        if not math.isfinite(sum(result["bbox"]) + result["score"]):
            raise ValueError(f"a result must hold finite numbers, but got {result}")
    with quiet_pycocotools():
        if results:
            # pycocotools writes ids and areas into its input, hence copies
            detections = ground_truth.loadRes([dict(result) for result in results])
        else:
            detections = COCO()
            detections.dataset = {**ground_truth.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(ground_truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return CocoMetrics(*(math.nan if value < 0 else float(value) for value in evaluation.stats))
