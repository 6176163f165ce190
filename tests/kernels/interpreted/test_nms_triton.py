"""The kernels of non-maximum suppression in the interpreter against torchvision's greedy one."""

import math
from collections.abc import Callable

import pytest
import torch
from operator_inputs import random_boxes
from torch import Tensor
from torchvision.ops import batched_nms, nms

from kernels.dispatch import use
from kernels.nms import grouped_nms_mask, grouped_nms_mask_reference
from kernels.triton import nms as kernel
from smnas.models.heads.rpn import best_proposals
from smnas.models.options import DetectorOptions

SuppressionSets = Callable[[str, int, int, torch.Generator], tuple[Tensor, Tensor]]
SETS = 10
SMALL = kernel.Launch(16, 1, 1, 1)
"""Several programs for every set, some of them with nothing to compare."""


def by_kernel(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    with use("triton"):
        return grouped_nms_mask(boxes, scores, groups, threshold, 1000.0)


def by_torchvision(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    expected = torch.zeros(scores.shape, dtype=torch.bool)
    for row in range(len(scores)):
        candidates = (scores[row] > 0).nonzero().squeeze(1)
        expected[row, candidates[nms(boxes[row, candidates], scores[row, candidates], threshold)]] = True
    return expected


@pytest.mark.parametrize("kind", ["random", "ties", "identical", "no area", "not finite"])
def test_suppression_is_torchvisions_on_many_sets(kind: str, suppression_sets: SuppressionSets) -> None:
    generator = torch.Generator().manual_seed(len(kind))
    for count, threshold in ((1, 0.5), (12, 0.5), (40, 0.7 if kind != "ties" else 1 / 3)):
        boxes, scores = suppression_sets(kind, SETS, count, generator)
        keep = by_kernel(boxes, scores, torch.zeros(count, dtype=torch.int64), threshold)
        assert torch.equal(keep, by_torchvision(boxes, scores, threshold)), (kind, count)
        assert count < 2 or 0 < int(keep.sum()) < keep.numel()  # something was kept and something dropped


@pytest.mark.parametrize("count", [31, 32, 33, 64, 65, 130])
def test_sets_that_end_within_words_and_programs(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "launch", lambda _: SMALL)
    generator = torch.Generator().manual_seed(count)
    boxes = random_boxes(2, count, 32.0, generator)
    scores = torch.rand(2, count, generator=generator) - 0.3  # the last candidate is somewhere in a word
    keep = by_kernel(boxes, scores, torch.zeros(count, dtype=torch.int64), 0.5)
    assert torch.equal(keep, by_torchvision(boxes, scores, 0.5))


def test_groups_do_not_drop_each_other() -> None:
    generator = torch.Generator().manual_seed(5)
    boxes, scores = random_boxes(2, 150, 64.0, generator), torch.rand(2, 150, generator=generator) + 0.01
    groups = torch.randint(0, 7, (2, 150), generator=generator)
    keep = by_kernel(boxes, scores, groups, 0.5)
    for row in range(2):
        expected = batched_nms(boxes[row], scores[row], groups[row], 0.5)
        assert torch.equal(keep[row].nonzero().squeeze(1), expected.sort().values)
    assert torch.equal(keep, grouped_nms_mask_reference(boxes, scores, groups, 0.5))
    # exact however far out the boxes are: groups are compared, not moved
    far = boxes + 2.0**20
    assert torch.equal(by_kernel(far, scores, groups, 0.5), grouped_nms_mask_reference(far, scores, groups, 0.5))


def test_a_box_without_a_score_is_not_kept_and_drops_nothing() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9]]]).expand(4, -1, -1)
    scores = torch.tensor([[0.0, 0.5, 0.4], [-1.0, 0.0, 0.4], [math.nan, 0.4, 0.5], [0.0, -0.0, -1.0]])
    keep = by_kernel(boxes, scores, torch.zeros(3, dtype=torch.int64), 0.5)
    assert keep.tolist() == [[False, True, False], [False, False, True], [False, False, True], [False] * 3]


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_to_suppress(shape: tuple[int, int]) -> None:
    keep = by_kernel(torch.zeros(*shape, 4), torch.zeros(shape), torch.zeros(shape, dtype=torch.int64), 0.5)
    assert keep.shape == shape
    assert keep.dtype is torch.bool


def test_the_longest_chain() -> None:
    # each box overlaps the one before and the one behind: kept, dropped, kept, ... across the words
    left = torch.arange(70, dtype=torch.float32) * 4
    boxes = torch.stack([left, torch.zeros(70), left + 10, torch.full((70,), 10.0)], dim=1)[None]
    keep = by_kernel(boxes, torch.linspace(1.0, 0.5, 70)[None], torch.zeros(70, dtype=torch.int64), 0.4)
    assert keep[0].tolist() == [index % 2 == 0 for index in range(70)]


def test_strided_and_half_precision_inputs() -> None:
    generator = torch.Generator().manual_seed(6)
    boxes = random_boxes(3, 24, 32.0, generator).half().transpose(0, 1).contiguous().transpose(0, 1)
    scores = torch.rand(3, 48, generator=generator)[:, ::2]
    keep = by_kernel(boxes, scores, torch.zeros(24, dtype=torch.int64), 0.5)
    assert torch.equal(keep, by_torchvision(boxes.float(), scores, 0.5))


def test_proposals_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(7)
    counts = (300, 100)
    anchors = random_boxes(1, 400, 128.0, generator)[0]
    logits, deltas = torch.randn(2, 400, generator=generator), torch.randn(2, 400, 4, generator=generator) * 0.1
    options = DetectorOptions(pre_nms_top_n=80, proposals=60)

    def proposals() -> Tensor:
        return best_proposals(logits, deltas, lambda index: anchors[index.flatten()], counts, (128, 128), options)

    expected = proposals()
    calls = []
    true = kernel.keep
    monkeypatch.setattr(kernel, "keep", lambda *given: calls.append(1) or true(*given))
    with use("triton"):
        found = proposals()
    assert len(calls) == 1
    assert torch.equal(found, expected)
