"""The 12 numbers: against hand-computed values, against pycocotools fed from files, and where nothing is defined."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smnas.data.annotations import read_annotations
from smnas.data.coco import CocoFolder, DetectionDataset
from smnas.evaluation.coco_eval import CocoMetrics, CocoResult, evaluate_results

NAMES = [
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
]


def write(root: Path, annotations: list[dict[str, object]], images: int = 3) -> Path:
    content = json.dumps(
        {
            "images": [{"id": 5 + i, "file_name": "p.png", "width": 200, "height": 150} for i in range(images)],
            "annotations": annotations,
            "categories": [{"id": 2, "name": "cat"}, {"id": 6, "name": "dog"}],
        }
    )
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        Image.new("RGB", (200, 150)).save(root / split / "p.png")
        (root / "annotations" / f"instances_{split}.json").write_text(content)
    return root


def box(identity: int, image: int, category: int, *xywh: float, crowd: int = 0) -> dict[str, object]:
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "bbox": list(xywh),
        "area": xywh[2] * xywh[3],
        "iscrowd": crowd,
    }


def found(image: int, category: int, score: float, *xywh: float) -> CocoResult:
    return {"image_id": image, "category_id": category, "bbox": list(xywh), "score": score}


def truth(root: Path) -> COCO:
    return CocoFolder(root).split("val").ground_truth()


def test_perfect_detections_are_one_everywhere(tmp_path: Path) -> None:
    boxes = [(5, 2, 10, 10, 20, 20), (6, 6, 5, 5, 60, 60), (7, 2, 0, 0, 150, 120)]
    root = write(tmp_path / "d", [box(k, *entry) for k, entry in enumerate(boxes)])
    metrics = evaluate_results(truth(root), [found(entry[0], entry[1], 0.5, *entry[2:]) for entry in boxes])
    assert list(metrics.as_dict()) == NAMES
    assert metrics.as_dict() == pytest.approx(dict.fromkeys(NAMES, 1.0))


def test_a_hand_computed_precision_recall_curve(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [box(1, 5, 2, 10, 10, 40, 40), box(2, 5, 2, 100, 10, 40, 40)])
    metrics = evaluate_results(
        truth(root),
        [
            found(5, 2, 0.9, 10, 10, 40, 40),  # right: precision 1 up to recall 1/2
            found(5, 2, 0.8, 10, 100, 40, 40),  # wrong
            found(5, 2, 0.7, 100, 10, 40, 40),  # right: precision 2/3 up to recall 1
        ],
    )
    # COCO samples the curve at the 101 recalls 0, 0.01, ..., 1.
    assert metrics.ap == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert metrics.ap50 == pytest.approx(metrics.ap)
    assert metrics.ar1 == pytest.approx(0.5)
    assert metrics.ar10 == pytest.approx(1.0)


def test_a_loose_box_counts_at_loose_thresholds_only(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [box(1, 5, 2, 10, 10, 100, 100)])
    # IoU 0.78: right at 0.50, 0.55, ..., 0.75 and wrong at 0.80 to 0.95.
    metrics = evaluate_results(truth(root), [found(5, 2, 0.9, 10, 10, 100, 78)])
    assert metrics.ap == pytest.approx(0.6)
    assert (metrics.ap50, metrics.ap75) == pytest.approx((1.0, 1.0))


def test_no_detections_are_zero_and_absent_sizes_undefined(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [box(1, 5, 2, 10, 10, 20, 20)])
    metrics = evaluate_results(truth(root), [])
    assert (metrics.ap, metrics.ap50, metrics.ap_small, metrics.ar100) == (0, 0, 0, 0)
    assert math.isnan(metrics.ap_medium)
    assert math.isnan(metrics.ar_large)


def test_without_any_ground_truth_nothing_is_defined(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [])
    none = DetectionDataset(read_annotations(root / "annotations" / "instances_val.json"), root / "val")
    for results in ([], [found(5, 2, 0.9, 0, 0, 10, 10)]):
        assert all(math.isnan(value) for value in evaluate_results(none.ground_truth(), results).as_dict().values())


def test_annotation_number_zero_can_be_matched(tmp_path: Path) -> None:
    """Pycocotools itself scores 0 here: it stores the matched annotation's id and reads 0 as 'none'."""
    root = write(tmp_path / "d", [box(0, 5, 2, 10, 10, 20, 20)])
    assert evaluate_results(truth(root), [found(5, 2, 0.9, 10, 10, 20, 20)]).ap == pytest.approx(1.0)


def test_a_detection_in_a_crowd_is_not_counted_against(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [box(1, 5, 2, 10, 10, 20, 20), box(2, 5, 2, 60, 60, 80, 80, crowd=1)])
    right, in_crowd = found(5, 2, 0.5, 10, 10, 20, 20), found(5, 2, 0.9, 70, 70, 20, 20)
    assert evaluate_results(truth(root), [right, in_crowd]).ap == pytest.approx(1.0)
    elsewhere = found(5, 2, 0.9, 150, 10, 20, 20)
    assert evaluate_results(truth(root), [right, elsewhere]).ap == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_random_detections_agree_with_pycocotools_on_files(
    tmp_path: Path, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for identity in range(1, 60):
        image, category = int(rng.integers(5, 15)), int(rng.choice([2, 6]))
        x, y = rng.uniform(0, 80, size=2).tolist()
        width, height = rng.uniform(5, 70, size=2).tolist()
        annotations.append(box(identity, image, category, x, y, width, height, crowd=int(rng.random() < 0.05)))
        for _ in range(int(rng.integers(0, 4))):
            moved = (np.array([x, y, width, height]) + rng.normal(0, 3, size=4)).clip(1, 150)
            results.append(found(image, category, float(rng.random()), *moved.tolist()))
    root = write(tmp_path / "d", annotations, images=10)
    (tmp_path / "results.json").write_text(json.dumps(results))

    metrics = evaluate_results(truth(root), results)
    assert capfd.readouterr().out == ""

    file_truth = COCO(str(root / "annotations" / "instances_val.json"))
    evaluation = COCOeval(file_truth, file_truth.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    np.testing.assert_allclose(
        list(metrics.as_dict().values()), np.where(evaluation.stats < 0, np.nan, evaluation.stats), rtol=1e-9
    )
    assert 0.05 < metrics.ap < 0.95


def test_results_are_not_written_to(tmp_path: Path) -> None:
    root = write(tmp_path / "d", [box(1, 5, 2, 10, 10, 20, 20)])
    result = found(5, 2, 0.9, 10, 10, 20, 20)
    ground = truth(root)
    first = evaluate_results(ground, [result])
    assert result == found(5, 2, 0.9, 10, 10, 20, 20)
    assert evaluate_results(ground, [result]) == first or math.isnan(first.ap_large)


def test_impossible_results_are_refused(tmp_path: Path) -> None:
    ground = truth(write(tmp_path / "d", [box(1, 5, 2, 10, 10, 20, 20)]))
    with pytest.raises(ValueError, match="image of the ground truth, but got 99"):
        evaluate_results(ground, [found(99, 2, 0.9, 1, 1, 5, 5)])
    with pytest.raises(ValueError, match="finite"):
        evaluate_results(ground, [found(5, 2, math.nan, 1, 1, 5, 5)])
    with pytest.raises(ValueError, match="finite"):
        evaluate_results(ground, [found(5, 2, 0.5, 1, math.inf, 5, 5)])


def test_metrics_are_a_value() -> None:
    assert CocoMetrics(*[0.5] * 12) == CocoMetrics(*[0.5] * 12)
