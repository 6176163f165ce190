"""Batched box arithmetic against torchvision's per-image parts."""

import math
import statistics

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from smnas.models.anchors import grid_size, level_anchors
from smnas.models.boxes import Matches, batched_iou, match, match_adaptive, pad_targets, sample_balanced
from smnas.models.target import Target


def random_boxes(count: int, side: float = 100.0) -> torch.Tensor:
    corner = torch.rand(count, 2) * side * 0.7
    return torch.cat([corner, corner + torch.rand(count, 2) * side * 0.3 + 1], dim=1)


def random_targets(*counts: int) -> list[Target]:
    return [Target(random_boxes(n), torch.randint(0, 5, (n,))) for n in counts]


def test_batched_iou_equals_torchvisions_per_image():
    first, second = torch.stack([random_boxes(20), random_boxes(20)]), torch.stack([random_boxes(7), random_boxes(7)])
    expected = torch.stack([box_iou(a, b) for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(batched_iou(first, second), expected)


def test_boxes_without_area_overlap_by_zero():
    nothing = torch.tensor([[[5.0, 5.0, 5.0, 5.0]]])
    assert batched_iou(nothing, nothing).item() == 0.0


@pytest.mark.parametrize("keep_best", [True, False])
def test_matching_equals_torchvisions_matcher(keep_best):
    targets = random_targets(6, 1, 3)
    candidates = random_boxes(300)
    ours = match(candidates[None], pad_targets(targets, torch.device("cpu")), 0.5, 0.3, keep_best=keep_best)
    matcher = Matcher(0.5, 0.3, allow_low_quality_matches=keep_best)
    for row, target in enumerate(targets):
        theirs = matcher(box_iou(target.boxes, candidates))
        assert torch.equal(ours.positive[row], theirs >= 0)
        assert torch.equal(ours.negative[row], theirs == Matcher.BELOW_LOW_THRESHOLD)
        positive = theirs >= 0
        assert torch.equal(ours.object_index[row][positive], theirs[positive])


def adaptive_by_loops(anchors: torch.Tensor, counts: list[int], boxes: torch.Tensor, per_level: int) -> list[int]:
    """ATSS as its paper's algorithm 1 tells it: of each anchor its object, -1 for background."""
    wanted: dict[int, tuple[float, int]] = {}
    overlap = box_iou(boxes, anchors).tolist()
    centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in anchors.tolist()]
    for row, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        candidates: list[int] = []
        start = 0
        for count in counts:
            level = sorted(
                range(start, start + count), key=lambda i: math.dist(centres[i], ((x1 + x2) / 2, (y1 + y2) / 2))
            )
            candidates += level[:per_level]
            start += count
        values = [overlap[row][i] for i in candidates]
        threshold = statistics.mean(values) + statistics.stdev(values)
        chosen = [
            i
            for i, value in zip(candidates, values, strict=True)
            if value >= threshold and x1 < centres[i][0] < x2 and y1 < centres[i][1] < y2
        ]
        if not chosen and max(values) > 0:
            chosen = [candidates[values.index(max(values))]]
        for i in chosen:
            wanted[i] = max(wanted.get(i, (-1.0, 0)), (overlap[row][i], row))
    return [wanted[i][1] if i in wanted else -1 for i in range(len(anchors))]


@pytest.mark.parametrize("seed", range(5))
def test_adaptive_matching_equals_the_papers_algorithm(seed):
    torch.manual_seed(seed)
    targets = [*random_targets(6, 0), Target(random_boxes(3, 20.0), torch.zeros(3, dtype=torch.int64))]
    counts = [150, 60, 7]
    anchors = random_boxes(sum(counts))
    ours = match_adaptive(anchors[None], counts, pad_targets(targets, torch.device("cpu")), 9)
    found = torch.where(ours.positive, ours.object_index, -1).tolist()
    assert found[1] == [-1] * len(anchors)
    assert torch.equal(ours.negative, ~ours.positive)
    for row in (0, 2):
        expected = adaptive_by_loops(anchors, counts, targets[row].boxes, 9)
        assert found[row] == expected
        assert len(set(expected) - {-1}) > 1


def test_adaptive_matching_gives_an_object_smaller_than_every_anchor_one_of_them():
    anchors = level_anchors(3, 64, 64, (32.0,))
    tiny = Target(torch.tensor([[20.5, 20.5, 23.0, 23.0]]), torch.tensor([0]))
    assert match_adaptive(anchors[None], [len(anchors)], pad_targets([tiny], torch.device("cpu")), 9).positive.any()


def test_an_image_without_objects_has_only_negatives():
    targets = pad_targets([*random_targets(2), *random_targets(0)], torch.device("cpu"))
    matches = match(random_boxes(50)[None], targets, 0.7, 0.3, keep_best=True)
    assert not matches.positive[1].any()
    assert matches.negative[1].all()


@pytest.mark.parametrize(
    ("positives", "negatives", "expected_positive", "expected_total"),
    [(100, 100, 16, 64), (3, 100, 3, 64), (100, 10, 16, 26), (0, 5, 0, 5), (2, 0, 2, 2)],
)
def test_sampling_keeps_the_quota_and_draws_only_what_is_there(positives, negatives, expected_positive, expected_total):
    label = torch.zeros(220, dtype=torch.int64)
    label[torch.randperm(220)[: positives + negatives]] = 2
    label[(label == 2).nonzero().squeeze(1)[:positives]] = 1
    matches = Matches(torch.zeros(1, 220, dtype=torch.int64), (label == 1)[None], (label == 2)[None])
    index, positive, chosen = sample_balanced(matches, 64, 0.25)
    assert int(positive.sum()) == expected_positive
    assert int(chosen.sum()) == expected_total
    drawn = index[0][chosen[0]]
    assert len(set(drawn.tolist())) == expected_total
    assert (label[drawn] > 0).all()
    assert torch.equal(label[index[0]] == 1, positive[0]) or expected_total < 64
    assert (label[index[0][positive[0]]] == 1).all()


def test_sampling_is_uniform_over_negatives():
    matches = Matches(torch.zeros(1, 40, dtype=torch.int64), torch.zeros(1, 40).bool(), torch.ones(1, 40).bool())
    counts = torch.zeros(40)
    for _ in range(2000):
        counts[sample_balanced(matches, 10, 0.5)[0][0]] += 1
    # each is drawn 500 times on average with a deviation of 19.4: five deviations leave room for 40 draws
    assert (counts - 500).abs().max() < 5 * 19.4


@pytest.mark.parametrize(("width", "height"), [(128, 96), (130, 70)])
def test_anchors_equal_torchvisions_generator(width, height):
    rows, columns = grid_size(3, width, height)
    generator = AnchorGenerator(((20.0, 30.0),), ((0.5, 1.0, 2.0),))
    # an image of exactly rows * 8 by columns * 8 pixels gives torchvision the stride 8
    images = ImageList(torch.zeros(1, 3, rows * 8, columns * 8), [(rows * 8, columns * 8)])
    expected = generator(images, [torch.zeros(1, 1, rows, columns)])[0]
    torch.testing.assert_close(level_anchors(3, width, height, (20.0, 30.0)), expected)
