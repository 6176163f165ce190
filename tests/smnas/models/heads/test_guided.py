"""Guided Anchoring: targets and losses against slow references, and whole detectors on tiny batches."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, sigmoid_focal_loss

from profiler.graphs.export import to_onnx
from smnas.models.boxes import PaddedTargets, pad_targets
from smnas.models.build import build_detector, deployable
from smnas.models.detector import TwoStageDetector
from smnas.models.heads.guided import (
    GuidedProposalLayer,
    GuidedRPNHead,
    best_overlap,
    bounded_iou_loss,
    guided_rpn_loss,
    guided_targets,
)
from smnas.models.options import DetectorOptions
from smnas.models.target import Target
from smnas.space.architecture import Architecture

FPN = Architecture.parse("basicblock_8_1-2-2+fpn_2-4_32+garpn+rcnn_64+96x64")
C4 = Architecture.parse("basicblock_8_1-2-2-1+c4+garpn+cascade_2_64+96x64")


def layer_of(width: int, height: int, levels: tuple[int, ...] = (2, 3, 4)) -> GuidedProposalLayer:
    sizes = [(2.0 * 2**level, 4.0 * 2**level) for level in levels]
    return GuidedProposalLayer(levels, sizes, width, height, DetectorOptions(pre_nms_top_n=50, proposals=20))


def random_targets(width: int, height: int, counts: tuple[int, ...], seed: int) -> PaddedTargets:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        middle = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
        half = torch.exp(torch.rand(count, 2, generator=generator) * 4.0) * 0.7  # 0.7 to 38 pixels
        boxes = torch.cat([middle - half, middle + half], dim=1).clamp(min=0)
        boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]).float())
        targets.append(Target(boxes, torch.zeros(count, dtype=torch.int64)))
    return pad_targets(targets, torch.device("cpu"))


def brute_force_overlap(x: float, y: float) -> float:
    """Largest IoU with the box (-1, -1, 1, 1) of boxes centred at (x, y), over a fine grid of shapes."""
    sides = torch.exp(torch.linspace(-3, 2, 600))
    w, h = (side.flatten() for side in torch.meshgrid(sides, sides, indexing="ij"))
    boxes = torch.stack([x - w, y - h, x + w, y + h], dim=1)
    return float(box_iou(boxes, torch.tensor([[-1.0, -1.0, 1.0, 1.0]])).max())


@pytest.mark.parametrize("x", [0.0, 0.1, 0.4, 0.7, 0.95, 1.0, 1.3])
@pytest.mark.parametrize("y", [0.0, 0.2, 0.5, 0.99, 2.0])
def test_the_best_overlap_is_that_of_the_best_of_many_shapes(x: float, y: float) -> None:
    found = float(best_overlap(torch.tensor(x), torch.tensor(y)))
    slow = brute_force_overlap(x, y)
    assert slow <= found + 1e-5
    assert found == pytest.approx(slow, rel=0.02)  # the grid's step is 0.8 percent a side


def slow_targets(layer: GuidedProposalLayer, objects: list[list[float]]) -> tuple[list[str], list[int]]:
    """Cell by cell and object by object: ``centre``, ``ignored`` or ``background``, and the object that shapes it."""
    bases = [math.sqrt(2 * 4) * stride for stride in layer.strides]
    places: list[str] = []
    shaped: list[int] = []
    own_levels, nearest = [], []
    for x1, y1, x2, y2 in objects:
        size = math.sqrt((x2 - x1) * (y2 - y1))
        own = min(range(len(bases)), key=lambda level: max(size / bases[level], bases[level] / size))
        rows, columns = layer.grids[own]
        middle = ((x1 + x2) / 2 / layer.strides[own], (y1 + y2) / 2 / layer.strides[own])
        cells = [(row, column) for row in range(rows) for column in range(columns)]
        nearest.append(min(cells, key=lambda c: math.hypot(c[0] - middle[1], c[1] - middle[0])))
        own_levels.append(own)
    for level, (rows, columns) in enumerate(layer.grids):
        for row in range(rows):
            for column in range(columns):
                x, y = column * layer.strides[level], row * layer.strides[level]
                place, best, shape = "background", 0.0, -1
                for index, (x1, y1, x2, y2) in enumerate(objects):
                    far_x, far_y = abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)
                    inside = {
                        share: far_x <= share * (x2 - x1) / 2 and far_y <= share * (y2 - y1) / 2 for share in (0.2, 0.5)
                    }
                    is_nearest = own_levels[index] == level and nearest[index] == (row, column)
                    if (own_levels[index] == level and inside[0.2]) or is_nearest:
                        place = "centre"
                    elif abs(own_levels[index] - level) <= 1 and inside[0.5] and place == "background":
                        place = "ignored"
                    overlap = four_shapes_overlap(far_x, far_y, (x2 - x1) / 2, (y2 - y1) / 2)
                    if own_levels[index] == level and (overlap >= 0.5 or is_nearest) and overlap > best:
                        best, shape = overlap, index
                places.append(place)
                shaped.append(shape)
    return places, shaped


def four_shapes_overlap(far_x: float, far_y: float, half_w: float, half_h: float) -> float:
    """Best IoU over the four boxes that end at a nearer or farther side of the object on each axis."""
    best = 0.0
    for p in (half_w + far_x, half_w - far_x):
        for q in (half_h + far_y, half_h - far_y):
            if p > 0 and q > 0:
                box = torch.tensor([[far_x - p, far_y - q, far_x + p, far_y + q]], dtype=torch.float64)
                own = torch.tensor([[-half_w, -half_h, half_w, half_h]], dtype=torch.float64)
                best = max(best, float(box_iou(box, own)))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("width", "height", "levels"), [(40, 32, (2, 3, 4)), (90, 70, (3, 4, 5)), (52, 34, (4,))])
def test_targets_equal_a_slow_reference(seed: int, width: int, height: int, levels: tuple[int, ...]) -> None:
    layer = layer_of(width, height, levels)
    targets = random_targets(width, height, (3, 0, 1, 5), seed)
    found = guided_targets(layer, targets)
    seen = set()
    for image in range(4):
        objects = targets.boxes[image][targets.valid[image]].tolist()
        places, shaped = slow_targets(layer, objects)
        assert found.location[image].tolist() == [place == "centre" for place in places]
        assert found.background[image].tolist() == [place == "background" for place in places]
        assert found.shaped[image].tolist() == [index >= 0 for index in shaped]
        mine = found.shaped[image]
        assert found.object_index[image][mine].tolist() == [index for index in shaped if index >= 0]
        seen |= set(places)
    assert seen == {"centre", "ignored", "background"} or levels[0] > 2  # coarse cells may miss every ring


def test_every_object_has_a_centre_on_the_level_of_its_size() -> None:
    layer = layer_of(128, 96)
    for side, level in ((3.0, 0), (11.0, 0), (15.0, 0), (17.0, 1), (23.0, 1), (45.0, 2), (90.0, 2)):  # bases 11, 23, 45
        box = torch.tensor([[20.3, 30.3, 20.3 + side, 30.3 + side]])
        found = guided_targets(
            layer, pad_targets([Target(box, torch.zeros(1, dtype=torch.int64))], torch.device("cpu"))
        )
        assert set(layer.cell_levels[found.location[0]].tolist()) == {level}
        assert set(layer.cell_levels[found.shaped[0]].tolist()) == {level}


def test_an_anchor_is_the_base_side_times_the_exponential_around_its_cell() -> None:
    layer = layer_of(40, 32)
    shapes = torch.zeros(2, sum(layer.counts), 2)
    cell = layer.counts[0] + 1 * 5 + 3  # level 3, second row, fourth column: centre (24, 8), base 2 sqrt(2) * 8
    shapes[1, cell] = torch.tensor([math.log(2.0), math.log(0.5)])
    anchors = layer.anchors(shapes)
    base = math.sqrt(8) * 8
    expected = [
        [24 - base / 2, 8 - base / 2, 24 + base / 2, 8 + base / 2],
        [24 - base, 8 - base / 4, 24 + base, 8 + base / 4],
    ]
    torch.testing.assert_close(anchors[:, cell], torch.tensor(expected))


def test_base_sides_are_eight_cells_on_large_inputs() -> None:
    text = "basicblock_64_11-21-21-21+{}+garpn+rcnn_1024+800x600"
    for neck, levels in (("fpn_2-6_256", range(2, 7)), ("c4", (4,))):
        detector = build_detector(Architecture.parse(text.format(neck)), 3, device="meta")
        assert isinstance(detector, TwoStageDetector)
        assert isinstance(detector.proposals, GuidedProposalLayer)
        assert detector.proposals.level_bases == pytest.approx([8 * 2**level for level in levels])


def test_the_shape_loss_is_the_bounded_iou_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    sides, wanted = (torch.exp(torch.randn(200, 2, generator=generator, dtype=torch.float64)) * 20 for _ in range(2))
    found = bounded_iou_loss(sides.log(), wanted.log())
    for (w, h), (w_star, h_star), losses in zip(sides.tolist(), wanted.tolist(), found.tolist(), strict=True):
        for side, goal, loss in ((w, w_star, losses[0]), (h, h_star, losses[1])):
            missing = 1 - min(side / goal, goal / side)
            assert loss == pytest.approx(missing**2 / (2 * 0.2) if missing < 0.2 else missing - 0.1)


def outputs_of(layer: GuidedProposalLayer, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cells = sum(layer.counts)
    logits, locations = (torch.randn(batch, cells, generator=generator) for _ in range(2))
    return (
        logits,
        torch.randn(batch, cells, 4, generator=generator) * 0.1,
        locations,
        torch.randn(batch, cells, 2) * 0.3,
    )


def test_location_and_shape_losses_by_hand() -> None:
    layer, targets = layer_of(40, 32), random_targets(40, 32, (2, 3), 1)
    logits, deltas, locations, shapes = outputs_of(layer, 2, 1)
    losses = guided_rpn_loss(layer, logits, deltas, locations, shapes, targets)
    assert losses.keys() == {"rpn_location", "rpn_shape", "rpn_objectness", "rpn_box"}
    focal, centres, shape, shaped = 0.0, 0, 0.0, 0
    for image in range(2):
        objects = targets.boxes[image][targets.valid[image]].tolist()
        for cell, (place, index) in enumerate(zip(*slow_targets(layer, objects), strict=True)):
            if place != "ignored":
                wanted = torch.tensor(float(place == "centre"))
                focal += float(sigmoid_focal_loss(locations[image, cell], wanted, 0.25, 2.0))
                centres += place == "centre"
            if index >= 0:
                x1, y1, x2, y2 = objects[index]
                sides = torch.tensor([[x2 - x1, y2 - y1]])
                shape += float(bounded_iou_loss(shapes[image, cell][None], (sides / layer.bases[cell]).log()).sum())
                shaped += 1
    assert float(losses["rpn_location"]) == pytest.approx(focal / centres, rel=1e-4)
    assert float(losses["rpn_shape"]) == pytest.approx(shape / shaped, rel=1e-4)


def test_only_likely_cells_propose() -> None:
    layer = layer_of(40, 32)
    logits, deltas, locations, shapes = outputs_of(layer, 2, 3)
    locations = torch.where(torch.rand(locations.shape) < 0.2, locations, torch.tensor(math.log(0.0099 / 0.9901)))
    likely = locations.sigmoid() >= 0.01
    assert 0 < likely.sum() < likely.numel() / 2
    boxes = layer(logits, deltas * 0, locations, shapes)
    assert boxes.shape == (2, 20, 4)
    limit = torch.tensor([40.0, 32.0, 40.0, 32.0])
    for image in range(2):
        real = boxes[image][(boxes[image] != 0).any(dim=1)]
        assert 0 < len(real) <= int(likely[image].sum())
        allowed = torch.minimum(layer.anchors(shapes)[image][likely[image]].clamp(min=0), limit)
        nearest = (real[:, None] - allowed).abs().amax(dim=2).amin(dim=1)
        assert (nearest < 1e-3).all()
    nowhere = layer(logits, deltas, torch.full_like(locations, -9.0), shapes)
    assert (nowhere == 0).all()
    everywhere = layer(logits, deltas, torch.full_like(locations, 9.0), shapes)
    assert torch.equal(everywhere, layer.propose(logits, deltas, shapes))


def test_the_shape_is_learned_from_shapes_alone() -> None:
    detector = build_detector(FPN, 3)
    assert isinstance(detector, TwoStageDetector)
    assert isinstance(detector.rpn, GuidedRPNHead)
    losses = detector.loss(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), [an_image(1)[1]])
    others = torch.stack([loss for name, loss in losses.items() if name != "rpn_shape"]).sum()
    others.backward()  # type: ignore[no-untyped-call]
    assert detector.rpn.conv[0].weight.grad is not None
    assert detector.rpn.shape.weight.grad is None


def an_image(objects: int) -> tuple[Tensor, Target]:
    """Bright rectangles on noise, one class a colour."""
    generator = torch.Generator().manual_seed(objects)
    image = torch.randint(0, 60, (3, 64, 96), generator=generator).to(torch.uint8)
    boxes, labels = [], []
    for index in range(objects):
        left, top = 4 + 22 * (index % 4), 4 + 30 * (index // 4)
        width, height = (18, 26) if index % 3 else (20, 12)
        image[index % 3, top : top + height, left : left + width] = 255
        boxes.append([left, top, left + width, top + height])
        labels.append(index % 3)
    return image, Target(torch.tensor(boxes).float().view(-1, 4), torch.tensor(labels, dtype=torch.int64))


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "steps"), [(FPN, 100), (C4, 200)], ids=["fpn", "c4"])
def test_it_overfits_a_batch_of_none_one_and_many_objects(architecture: Architecture, steps: int) -> None:
    torch.manual_seed(0)
    detector = build_detector(architecture, 3)
    images, targets = zip(*(an_image(count) for count in (0, 1, 8)), strict=True)
    batch = torch.stack(images)
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(detector.loss(batch, targets).values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
    ready = deployable(detector)
    found = ready(batch)
    for image, target in enumerate(targets):
        sure = found.scores[image] > 0.5
        assert int(sure.sum()) == len(target.labels)
        if len(target.labels):
            overlap, which = box_iou(target.boxes, found.boxes[image][sure]).max(dim=1)
            assert (overlap > 0.6).all()
            assert torch.equal(found.labels[image][sure][which], target.labels)

    # what a trained one exports finds the same, where cells are masked too
    model = to_onnx(ready, (batch[:1],), input_names=["images"], output_names=list(found._fields))
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for image in range(3):
        alone = ready(batch[image : image + 1])
        values = session.run(None, {"images": batch[image : image + 1].numpy()})
        num, boxes, scores, labels = values
        assert num == alone.num.numpy()
        np.testing.assert_allclose(scores, alone.scores.numpy(), atol=1e-4)
        clear = alone.scores.numpy() > 0.05  # of lower ones near ties may swap places
        np.testing.assert_allclose(boxes[clear], alone.boxes.numpy()[clear], atol=0.02)
        assert np.array_equal(labels[clear], alone.labels.numpy()[clear])
