"""Anchors, box coding and the losses over anchors and regions, against their formulas in NumPy and plain loops."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from smnas.models.anchors import level_anchors
from smnas.models.boxes import match_adaptive, pad_targets
from smnas.models.heads.retina import RetinaPostprocess, retina_loss
from smnas.models.heads.roi_heads import RoIPool, RoIStage, box_coder
from smnas.models.heads.rpn import ProposalLayer, rpn_loss
from smnas.models.losses import BoxLoss, LossOptions
from smnas.models.options import DetectorOptions
from smnas.models.target import Target

Box = Sequence[float]
CLASSES = 3
WIDTH, HEIGHT = 64, 48
OBJECTS = [
    Target(
        torch.tensor([[4.0, 6.0, 30.0, 25.0], [20.0, 10.0, 60.0, 40.0], [1.0, 30.0, 9.0, 44.0]]),
        torch.tensor([2, 0, 1]),
    ),
    Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    Target(torch.tensor([[33.0, 3.0, 51.0, 22.0]]), torch.tensor([1])),
]


def overlap(a: Box, b: Box) -> tuple[float, float]:
    """Intersection over union, and the union."""
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union, union


def coded(box: Box, reference: Box, weights: Box = (1, 1, 1, 1)) -> list[float]:
    """Equation 2 of "Faster R-CNN" (arXiv 1506.01497), times the weights."""
    w, h = reference[2] - reference[0], reference[3] - reference[1]
    x = (box[0] + box[2] - reference[0] - reference[2]) / 2 / w
    y = (box[1] + box[3] - reference[1] - reference[3]) / 2 / h
    values = (x, y, math.log((box[2] - box[0]) / w), math.log((box[3] - box[1]) / h))
    return [weight * value for weight, value in zip(weights, values, strict=True)]


def smooth_l1(difference: float, beta: float) -> float:
    size = abs(difference)
    return 0.5 * size**2 / beta if size < beta else size - beta / 2


def labelled(
    candidates: Sequence[Box], objects: Sequence[Box], high: float, low: float, best: bool
) -> list[int | None]:
    """Of each candidate its object, -1 for background, None where it is ignored."""
    found: list[int | None] = []
    largest = [max(overlap(candidate, box)[0] for candidate in candidates) for box in objects]
    for candidate in candidates:
        overlaps = [overlap(candidate, box)[0] for box in objects]
        value = max(overlaps, default=0.0)
        rescued = best and any(
            o > 0 and math.isclose(o, m, rel_tol=1e-6) for o, m in zip(overlaps, largest, strict=True)
        )
        if value >= high or rescued:
            found.append(overlaps.index(value))
        else:
            found.append(-1 if value < low else None)
    return found


def random_predictions(count: int, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(len(OBJECTS), count, outputs, generator=generator) * 2
    return logits, torch.randn(len(OBJECTS), count, 4, generator=generator) * 0.3


@pytest.mark.parametrize(
    ("level", "width", "height", "sizes"), [(3, 64, 48, (20.0, 30.0)), (5, 70, 50, (128.0, 161.3))]
)
def test_anchors_are_a_formula_of_the_cell(level: int, width: int, height: int, sizes: tuple[float, ...]) -> None:
    stride = 2**level
    expected = []
    for row in range(-(-height // stride)):
        for column in range(-(-width // stride)):
            for ratio in (0.5, 1.0, 2.0):  # of height to width
                for size in sizes:
                    half_w, half_h = round(size / math.sqrt(ratio) / 2), round(size * math.sqrt(ratio) / 2)
                    x, y = column * stride, row * stride
                    expected.append([x - half_w, y - half_h, x + half_w, y + half_h])
    assert level_anchors(level, width, height, sizes).tolist() == expected


@pytest.mark.parametrize("stage", range(4))
def test_boxes_are_coded_by_the_papers_equations(stage: int) -> None:
    scale = 10.0 * (stage + 1)
    rng = np.random.default_rng(stage)
    corner = rng.uniform(0, 40, (2, 50, 2))
    boxes, references = np.concatenate([corner, corner + rng.uniform(2, 30, corner.shape)], axis=2)
    wanted = [coded(a, b, (scale, scale, scale / 2, scale / 2)) for a, b in zip(boxes, references, strict=True)]
    coder = box_coder(stage)
    deltas = coder.encode_single(torch.from_numpy(boxes), torch.from_numpy(references))
    np.testing.assert_allclose(deltas.numpy(), wanted, atol=1e-9)
    back = coder.decode_single(deltas, torch.from_numpy(references))
    np.testing.assert_allclose(back.numpy(), boxes, atol=1e-9)


def test_a_box_grows_by_62_times_at_most() -> None:
    huge = box_coder(0).decode_single(torch.full((1, 4), 1e6), torch.tensor([[0.0, 0.0, 16.0, 8.0]]))[0]
    np.testing.assert_allclose((huge[2] - huge[0], huge[3] - huge[1]), (1000.0, 500.0), rtol=1e-2)


def focal(logits: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equation 5 of "Focal Loss" (arXiv 1708.02002) with alpha 0.25 and gamma 2."""
    p = 1 / (1 + np.exp(-logits))
    p_t, alpha_t = np.where(wanted == 1, p, 1 - p), np.where(wanted == 1, 0.25, 0.75)
    loss: NDArray[np.float64] = -alpha_t * (1 - p_t) ** 2 * np.log(p_t)
    return loss


def test_the_focal_loss_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    logits, wanted = rng.normal(0, 4, 500), rng.integers(0, 2, 500).astype(np.float64)
    found = sigmoid_focal_loss(torch.from_numpy(logits), torch.from_numpy(wanted), alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(found.numpy(), focal(logits, wanted), rtol=1e-6)


def test_the_generalized_overlap_is_the_papers() -> None:
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 40, (2, 200, 2))
    first, second = np.concatenate([corner, corner + rng.uniform(1, 30, corner.shape)], axis=2)
    found = generalized_box_iou_loss(torch.from_numpy(first), torch.from_numpy(second))
    apart = 0
    for a, b, loss in zip(first, second, found.tolist(), strict=True):
        iou, union = overlap(a, b)
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        assert loss == pytest.approx(1 - (iou - (hull - union) / hull), abs=1e-6)
        apart += iou == 0
    assert 20 < apart < 180


def test_retinanets_losses_equal_the_formulas_anchor_by_anchor() -> None:
    layer = RetinaPostprocess((3, 4), WIDTH, HEIGHT, DetectorOptions())
    anchors = layer.anchors.tolist()
    logits, deltas = random_predictions(len(anchors), CLASSES)
    losses = retina_loss(layer, logits, deltas, pad_targets(OBJECTS, torch.device("cpu")))
    score = regression = 0.0
    positives = ignored = 0
    for row, target in enumerate(OBJECTS):
        boxes = target.boxes.tolist()
        for anchor, owner in enumerate(labelled(anchors, boxes, 0.5, 0.4, best=True)):
            ignored += owner is None
            if owner is None:
                continue
            wanted = np.zeros(CLASSES)
            if owner >= 0:
                positives += 1
                wanted[int(target.labels[owner])] = 1
                offsets = coded(boxes[owner], anchors[anchor])
                regression += sum(abs(d - o) for d, o in zip(deltas[row, anchor].tolist(), offsets, strict=True))
            score += focal(logits[row, anchor].double().numpy(), wanted).sum()
    assert positives > 10
    assert ignored > 10
    assert float(losses["retina_class"]) == pytest.approx(score / positives, rel=1e-4)
    assert float(losses["retina_box"]) == pytest.approx(regression / positives, rel=1e-4)


def test_the_rpns_losses_equal_the_formulas_anchor_by_anchor() -> None:
    # so many samples that all anchors are drawn, and no more than half of them are positive
    options = DetectorOptions(rpn_samples=10**6)
    layer = ProposalLayer((3, 4), [(16.0,), (32.0,)], WIDTH, HEIGHT, options)
    anchors = layer.anchors.tolist()
    logits, deltas = random_predictions(len(anchors), 1)
    losses = rpn_loss(layer, logits[..., 0], deltas, pad_targets(OBJECTS, torch.device("cpu")))
    score = regression = 0.0
    drawn = positives = 0
    for row, target in enumerate(OBJECTS):
        boxes = target.boxes.tolist()
        for anchor, owner in enumerate(labelled(anchors, boxes, options.rpn_overlap, 0.3, best=True)):
            if owner is None:
                continue
            drawn += 1
            p = 1 / (1 + math.exp(-float(logits[row, anchor, 0])))
            score -= math.log(p if owner >= 0 else 1 - p)
            if owner >= 0:
                positives += 1
                offsets = coded(boxes[owner], anchors[anchor])
                regression += sum(
                    smooth_l1(d - o, 1 / 9) for d, o in zip(deltas[row, anchor].tolist(), offsets, strict=True)
                )
    assert positives >= 4
    assert drawn < len(OBJECTS) * len(anchors)
    assert float(losses["rpn_objectness"]) == pytest.approx(score / drawn, rel=1e-4)
    assert float(losses["rpn_box"]) == pytest.approx(5.0 * regression / drawn, rel=1e-4)


class Sides(RoIPool):
    """Instead of a pooled map the box itself, so that predictions are a function of it."""

    def forward(self, boxes: Tensor, *features: Tensor) -> Tensor:
        return boxes.reshape(-1, 4) / WIDTH


class Linear(nn.Module):
    def __init__(self, boxes: int) -> None:
        super().__init__()
        self.logits = nn.Linear(4, CLASSES + 1)
        self.deltas = nn.Linear(4, 4 * boxes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(x), self.deltas(x)


def decoded(deltas: Box, reference: Box) -> list[float]:
    """The inverse of :func:`coded`."""
    w, h = reference[2] - reference[0], reference[3] - reference[1]
    x, y = (reference[0] + reference[2]) / 2 + deltas[0] * w, (reference[1] + reference[3]) / 2 + deltas[1] * h
    w, h = w * math.exp(deltas[2]), h * math.exp(deltas[3])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def giou(a: Box, b: Box) -> float:
    iou, union = overlap(a, b)
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return iou - (hull - union) / hull


def ciou(a: Box, b: Box) -> float:
    """Equations 9 to 11 of arXiv 1911.08287."""
    iou, _ = overlap(a, b)
    apart = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    shape = math.atan((b[2] - b[0]) / (b[3] - b[1])) - math.atan((a[2] - a[0]) / (a[3] - a[1]))
    v = 4 / math.pi**2 * shape**2
    return iou - apart / diagonal - v * v / (1 - iou + v)


@pytest.mark.parametrize(("kind", "measure"), [("giou", giou), ("ciou", ciou)])
def test_losses_of_overlap_are_twice_the_mean_over_positive_anchors(kind: BoxLoss, measure: Any) -> None:
    losses = LossOptions(box=kind)
    retina = RetinaPostprocess((3, 4), WIDTH, HEIGHT, DetectorOptions())
    options = DetectorOptions(rpn_samples=10**6)
    rpn = ProposalLayer((3, 4), [(16.0,), (32.0,)], WIDTH, HEIGHT, options)
    targets = pad_targets(OBJECTS, torch.device("cpu"))
    for layer, high, name in ((retina, 0.5, "retina_box"), (rpn, options.rpn_overlap, "rpn_box")):
        anchors = layer.anchors.tolist()
        logits, deltas = random_predictions(len(anchors), CLASSES)
        if isinstance(layer, RetinaPostprocess):
            found = retina_loss(layer, logits, deltas, targets, losses)[name]
        else:
            found = rpn_loss(layer, logits[..., 0], deltas, targets, losses)[name]
        missing = [
            1 - measure(decoded(deltas[row, anchor].tolist(), anchors[anchor]), target.boxes[owner].tolist())
            for row, target in enumerate(OBJECTS)
            for anchor, owner in enumerate(labelled(anchors, target.boxes.tolist(), high, 0.3, best=True))
            if owner is not None and owner >= 0
        ]
        assert len(missing) > 3
        assert float(found) == pytest.approx(2 * np.mean(missing), rel=1e-4)


def test_adaptive_assignment_reaches_both_heads() -> None:
    """What is positive: the anchors that :func:`match_adaptive` names, nine cells of each level to an object."""
    targets = pad_targets(OBJECTS, torch.device("cpu"))
    losses = LossOptions(assignment="atss")
    rpn = ProposalLayer((3, 4), [(16.0, 20.0)] * 2, WIDTH, HEIGHT, DetectorOptions(rpn_samples=10**6))
    retina = RetinaPostprocess((3, 4), WIDTH, HEIGHT, DetectorOptions())
    for layer, per_cell in ((rpn, 6), (retina, 9)):
        anchors = layer.anchors
        matches = match_adaptive(anchors[None], [48 * per_cell, 12 * per_cell], targets, 9 * per_cell)
        logits = torch.full((len(OBJECTS), len(anchors), CLASSES), -6.0)
        positive = matches.positive.nonzero()
        for row, anchor in positive.tolist():
            logits[row, anchor, targets.labels[row, matches.object_index[row, anchor]]] = 6.0
        deltas = torch.zeros(*logits.shape[:2], 4)
        if isinstance(layer, RetinaPostprocess):
            right = retina_loss(layer, logits, deltas, targets, losses)["retina_class"]
            wrong = retina_loss(layer, logits, deltas, targets)["retina_class"]
        else:
            right = rpn_loss(layer, logits.amax(dim=2), deltas, targets, losses)["rpn_objectness"]
            wrong = rpn_loss(layer, logits.amax(dim=2), deltas, targets)["rpn_objectness"]
        assert len(positive) > 5
        assert right < 0.01
        assert wrong > 10 * right


@pytest.mark.parametrize(("stage", "agnostic", "high", "weight"), [(0, False, 0.5, 1.0), (1, True, 0.6, 0.5)])
def test_a_stages_losses_equal_the_formulas_region_by_region(
    stage: int, agnostic: bool, high: float, weight: float
) -> None:
    torch.manual_seed(stage)
    options = DetectorOptions(roi_samples=10**6)
    head = Linear(1 if agnostic else CLASSES)
    roi_stage = RoIStage(stage, Sides((3,), 7, options), nn.Sequential(), head)  # type: ignore[arg-type]
    corner = torch.rand(3, 80, 2) * torch.tensor([WIDTH, HEIGHT]) * 0.7
    candidates = torch.cat([corner, corner + 4 + torch.rand(3, 80, 2) * 20], dim=2)
    near = OBJECTS[0].boxes.repeat(4, 1) + torch.randn(12, 4)  # some overlap with an object, not exactly
    candidates[0, :12] = near
    candidates[1, 5:9] = 0.0  # without area, and so of no account
    head.requires_grad_(False)
    losses, _ = roi_stage.loss(candidates, (), pad_targets(OBJECTS, torch.device("cpu")), options)
    scale = 10.0 * (stage + 1)
    score = regression = missing = 0.0
    drawn = positives = 0
    for row, target in enumerate(OBJECTS):
        boxes = target.boxes.tolist()
        regions = [box for box in [*candidates[row].tolist(), *boxes] if box[2] > box[0]]
        for region, owner in zip(regions, labelled(regions, boxes, high, high, best=False), strict=True):
            assert owner is not None
            drawn += 1
            logits, deltas = head(torch.tensor(region) / WIDTH)
            label = int(target.labels[owner]) if owner >= 0 else CLASSES
            score -= float(logits[label] - logits.exp().sum().log())
            if owner >= 0:
                positives += 1
                moved = deltas.view(-1, 4)[0 if agnostic else label].tolist()
                weights = (scale, scale, scale / 2, scale / 2)
                offsets = coded(boxes[owner], region, weights)
                moved_box = decoded([value / unit for value, unit in zip(moved, weights, strict=True)], region)
                missing += 1 - giou(moved_box, boxes[owner])
                regression += sum(smooth_l1(d - o, 1 / 9) for d, o in zip(moved, offsets, strict=True))
    assert positives > 10
    assert float(losses[f"roi{stage + 1}_class"]) == pytest.approx(weight * score / drawn, rel=1e-4)
    assert float(losses[f"roi{stage + 1}_box"]) == pytest.approx(weight * regression / drawn, rel=1e-4)
    # the sample holds all regions, so a second look at another loss draws the same ones
    overlaps, _ = roi_stage.loss(
        candidates, (), pad_targets(OBJECTS, torch.device("cpu")), options, LossOptions(box="giou")
    )
    assert float(overlaps[f"roi{stage + 1}_class"]) == pytest.approx(float(losses[f"roi{stage + 1}_class"]), rel=1e-5)
    assert float(overlaps[f"roi{stage + 1}_box"]) == pytest.approx(weight * 2 * missing / positives, rel=1e-4)
