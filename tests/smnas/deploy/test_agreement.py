"""The check behind every export, against torchvision and by hand."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from smnas.deploy.agreement import Agreement, box_iou, compare_detections
from smnas.evaluation.predict import DetectionArrays

A, B, C = (0, 0, 10, 10), (20, 20, 40, 30), (5, 50, 25, 90)


def arrays(*detections: tuple[tuple[float, ...], float, int], padding: int = 4) -> DetectionArrays:
    n = len(detections)
    boxes, scores, labels = (
        np.zeros((1, n + padding, 4), np.float32),
        np.zeros((1, n + padding)),
        np.zeros((1, n + padding)),
    )
    for row, (box, score, label) in enumerate(detections):
        boxes[0, row], scores[0, row], labels[0, row] = box, score, label
    return DetectionArrays(np.array([n]), boxes, scores.astype(np.float32), labels.astype(np.int64))


coordinate = st.integers(0, 12)
box = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1)
)


@given(st.lists(box, min_size=1, max_size=6), st.lists(box, min_size=1, max_size=6))
def test_iou_is_torchvisions(first: list[tuple[int, ...]], second: list[tuple[int, ...]]) -> None:
    a, b = np.array(first, np.float32), np.array(second, np.float32)
    expected = torchvision.ops.box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(box_iou(a, b), expected, atol=1e-6)


def test_boxes_without_an_area_agree_only_with_themselves() -> None:
    empty = np.array([[3, 3, 3, 3], [4, 3, 4, 3]], np.float32)
    np.testing.assert_array_equal(box_iou(empty, empty), np.eye(2))
    assert box_iou(empty[:0], empty).shape == (0, 2)


def test_order_does_not_matter() -> None:
    first = arrays((A, 0.9, 0), (B, 0.8, 1), (C, 0.7, 0))
    second = arrays((C, 0.7, 0), (A, 0.9, 0), (B, 0.8, 1), padding=1)
    agreement = compare_detections(first, second)
    assert agreement == Agreement(1, 6, 0, 1.0, 0.0)
    assert agreement.differing == 0


@pytest.mark.parametrize(
    "other",
    [
        arrays((A, 0.9, 0)),  # one is missing
        arrays((A, 0.9, 0), (B, 0.8, 0)),  # another class
        arrays((A, 0.9, 0), (B, 0.8, 1), (C, 0.6, 1)),  # one too many
        arrays((A, 0.9, 0), (B, 0.798, 1)),  # another score
        arrays((A, 0.9, 0), ((20, 20, 40, 30.02), 0.8, 1)),  # IoU 0.998
    ],
)
def test_every_kind_of_difference_breaks_it(other: DetectionArrays) -> None:
    reference = arrays((A, 0.9, 0), (B, 0.8, 1))
    assert compare_detections(reference, other).differing > 0
    assert compare_detections(other, reference).differing > 0


def test_a_score_on_the_threshold_is_no_missing_object() -> None:
    agreement = compare_detections(arrays((A, 0.0500001, 0)), arrays((A, 0.0499999, 0)))
    assert agreement.differing == 0
    assert agreement.compared == 1
    assert agreement.largest_score_difference < 1e-6


def test_detections_below_the_threshold_need_no_partner() -> None:
    agreement = compare_detections(arrays((A, 0.9, 0), (B, 0.04, 1)), arrays((A, 0.9, 0)))
    assert agreement.differing == 0


def test_which_of_equals_a_full_side_cuts_off_is_chance() -> None:
    reference = arrays((A, 0.9, 0), (B, 0.3, 1), padding=0)
    swapped = arrays((A, 0.9, 0), (C, 0.3, 1), padding=0)
    assert compare_detections(reference, swapped).differing == 0
    assert compare_detections(reference, swapped).compared == 2
    not_full = arrays((A, 0.9, 0), (C, 0.3, 1), padding=1)
    assert compare_detections(reference, not_full).differing == 1
    surer = arrays((A, 0.9, 0), (C, 0.301, 1), padding=0)
    assert compare_detections(reference, surer).differing == 1


@pytest.mark.parametrize(
    ("compared", "differing", "holds"),
    [(0, 0, True), (10, 2, True), (10, 3, False), (4000, 20, True), (4000, 21, False)],
)
def test_a_swap_of_equals_is_let_pass_and_more_is_not(compared: int, differing: int, holds: bool) -> None:
    assert Agreement(16, compared, differing, 1.0, 0.0).holds == holds


def test_rounding_of_a_sliver_is_no_difference() -> None:
    sliver, rounded = (95.976, 47.0, 96.0, 64.0), (95.9759, 47.0, 96.0, 64.0)
    assert box_iou(np.array([sliver]), np.array([rounded]))[0, 0] < 0.999
    assert compare_detections(arrays((sliver, 0.9, 0)), arrays((rounded, 0.9, 0))).differing == 0


def test_identical_boxes_each_need_their_own_partner() -> None:
    twice = arrays((A, 0.9, 0), (A, 0.8, 0))
    assert compare_detections(twice, twice).differing == 0
    assert compare_detections(twice, arrays((A, 0.9, 0))).differing == 1


def test_nothing_found_on_both_sides_agrees_and_says_that_nothing_was_compared() -> None:
    agreement = compare_detections(arrays(), arrays())
    assert agreement.differing == 0
    assert str(agreement).startswith("0 detections on 1 images")


def test_other_images_are_refused() -> None:
    two = DetectionArrays(*(np.concatenate([a, a]) for a in arrays((A, 0.9, 0))))
    with pytest.raises(ValueError, match="same images"):
        compare_detections(two, arrays((A, 0.9, 0)))


def test_rounded_detections_are_partners_while_they_overlap() -> None:
    """What 8 bits move is no alarm: 3 pixels of 100 and a score by 0.2; another place or class is."""

    def found(*rows: tuple[float, float, int]) -> DetectionArrays:
        boxes = np.array([[[x, 0, x + 100, 100] for x, _, _ in rows]], np.float32)
        scores = np.array([[score for _, score, _ in rows]], np.float32)
        return DetectionArrays(np.array([len(rows) - 1]), boxes, scores, np.array([[label for *_, label in rows]]))

    before = found((0, 0.9, 0), (500, 0.8, 1), (900, 0.7, 0), (0, 0, 0))
    after = found((3, 0.7, 0), (497, 0.69, 1), (700, 0.6, 0), (0, 0, 0))
    strict, loose = compare_detections(before, after), compare_detections(before, after, rounded=True)
    assert (strict.compared, strict.differing) == (6, 6)
    assert (loose.compared, loose.differing) == (6, 2)
    assert str(loose).startswith("4 of 6 detections on 1 images are found on both sides")
    assert "differing" not in str(loose)
    assert "loss of AP" in str(loose)
