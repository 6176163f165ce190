"""The anchor-free head against torchvision's FCOS parts, a slow assignment in plain loops, and one batch learned."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, generalized_box_iou

from smnas.models.boxes import pad_targets
from smnas.models.build import build_detector
from smnas.models.detector import OneStageDetector
from smnas.models.heads.fcos import (
    FCOSPostprocess,
    assign_centres,
    decode_distances,
    fcos_loss,
    level_cells,
)
from smnas.models.options import DetectorOptions
from smnas.models.target import Target
from smnas.space.architecture import Architecture

CPU = torch.device("cpu")
CLASSES = 3
WIDTH, HEIGHT = 64, 48
LEVELS = (2, 3, 4)


def layer() -> FCOSPostprocess:
    return FCOSPostprocess(LEVELS, WIDTH, HEIGHT, DetectorOptions())


def random_objects(count: int, seed: int, smallest: float = 1.0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) * 0.6
    side = smallest + torch.rand(count, 2, generator=generator) ** 2 * torch.tensor([WIDTH, HEIGHT]) * 0.4
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Target(torch.cat([corner, corner + side], dim=1), labels)


def random_predictions(batch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    count = len(layer().cells)
    logits = torch.randn(batch, count, CLASSES, generator=generator)
    return logits, torch.randn(batch, count, 4, generator=generator) * 0.5


@pytest.mark.parametrize(("width", "height"), [(64, 48), (70, 50)])
def test_cells_are_centred_where_torchvisions_fcos_has_its_anchors(width, height):
    cells = level_cells(3, width, height)
    rows, columns = math.ceil(height / 8), math.ceil(width / 8)
    generator = AnchorGenerator(((8,),), ((1.0,),))  # FCOS's: one square anchor, a stride wide, at each cell's corner
    images = ImageList(torch.zeros(1, 3, rows * 8, columns * 8), [(rows * 8, columns * 8)])
    anchors = generator(images, [torch.zeros(1, 1, rows, columns)])[0]
    corners = (anchors[:, :2] + anchors[:, 2:]) / 2
    torch.testing.assert_close(cells[:, :2], corners + 4.0)
    assert (cells[:, 2] == 8).all()


def test_distances_decode_as_torchvisions_linear_coder_does():
    cells = layer().cells
    distances = torch.randn(len(cells), 4)
    # a box of one stride around the cell's centre is the anchor to which the linear coder's distances are relative
    anchors = torch.cat([cells[:, :2] - cells[:, 2:] / 2, cells[:, :2] + cells[:, 2:] / 2], dim=1)
    expected = BoxLinearCoder(normalize_by_size=True).decode(distances.exp(), anchors)
    torch.testing.assert_close(decode_distances(distances, cells), expected)


def test_boxes_stay_finite():
    cells = layer().cells
    assert torch.isfinite(decode_distances(torch.full((len(cells), 4), 1e4), cells)).all()


def slow_assignment(target: Target) -> dict[int, int]:
    """The rule an object and a cell at a time: {cell: object}."""
    cells = layer().cells.tolist()
    boxes = target.boxes.tolist()
    wishes: list[tuple[bool, float, int, int]] = []
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        longer = max(x2 - x1, y2 - y1)
        stride = 4.0 if longer < 8 * 4 else 8.0 if longer < 8 * 8 else 16.0
        level = [cell for cell, (_, _, cell_stride) in enumerate(cells) if cell_stride == stride]
        x, y, area = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * (y2 - y1)
        away = {cell: max(abs(cells[cell][0] - x), abs(cells[cell][1] - y)) / stride for cell in level}
        nearest = min(level, key=lambda cell: away[cell])
        for cell in level:
            inside = x1 < cells[cell][0] < x2 and y1 < cells[cell][1] < y2
            if cell == nearest or (inside and away[cell] < 1.5):
                wishes.append((cell != nearest, area, index, cell))
    found: dict[int, int] = {}
    for _, _, index, cell in sorted(wishes):
        found.setdefault(cell, index)
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("smallest", [0.5, 6.0])
def test_assignment_equals_the_rule_in_plain_loops(seed, smallest):
    objects = [random_objects(count, seed + 100 * row, smallest) for row, count in enumerate((7, 0, 1, 20))]
    found = assign_centres(layer().cells, pad_targets(objects, CPU))
    for row, target in enumerate(objects):
        expected = slow_assignment(target)
        assert found.positive[row].nonzero().squeeze(1).tolist() == sorted(expected)
        assert {cell: int(found.object_index[row, cell]) for cell in expected} == expected


def test_an_object_on_the_border_of_two_levels_is_the_coarser_ones():
    # 32 pixels are 8 strides of the finest level and 4 of the next one
    cells = layer().cells
    target = Target(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.zeros(1, dtype=torch.int64))
    found = assign_centres(cells, pad_targets([target], CPU))
    assert set(cells[found.positive[0], 2].tolist()) == {8.0}


def test_every_object_has_a_cell_however_small():
    # 40 objects of half a pixel to 3 pixels, few with a cell's centre inside, each in a finest cell of its own
    corners = torch.tensor([[4.0 * (2 * i % 16) + 0.3, 8.0 * (2 * i // 16) + 0.4] for i in range(40)])
    boxes = torch.cat([corners, corners + torch.linspace(0.5, 3.0, 40)[:, None]], dim=1)
    found = assign_centres(layer().cells, pad_targets([Target(boxes, torch.zeros(40, dtype=torch.int64))], CPU))
    assert sorted(found.object_index[0][found.positive[0]].tolist()) == list(range(40))


def test_losses_equal_the_formulas_cell_by_cell():
    objects = [random_objects(5, 2, 4.0), random_objects(2, 3, 4.0)]
    postprocess = layer()
    logits, distances = random_predictions(2, 7)
    losses = fcos_loss(postprocess, logits, distances, pad_targets(objects, CPU))
    boxes = decode_distances(distances, postprocess.cells)
    score_loss = box_loss = asked = 0.0
    positives = 0
    for row, target in enumerate(objects):
        owner = slow_assignment(target)
        positives += len(owner)
        for cell in range(len(postprocess.cells)):
            wanted = [0.0] * CLASSES
            if cell in owner:
                box, truth = boxes[row, cell][None], target.boxes[owner[cell]][None]
                wanted[int(target.labels[owner[cell]])] = float(box_iou(box, truth))
                box_loss += 1 - float(generalized_box_iou(box, truth))
            asked += sum(wanted)
            for quality, logit in zip(wanted, logits[row, cell].tolist(), strict=True):
                p = 1 / (1 + math.exp(-logit))
                score_loss -= (quality * math.log(p) + (1 - quality) * math.log(1 - p)) * (quality - p) ** 2
    assert float(losses["fcos_class"]) == pytest.approx(score_loss / max(1.0, asked), rel=1e-4)
    assert float(losses["fcos_box"]) == pytest.approx(2.0 * box_loss / positives, rel=1e-4)


def test_postprocessing_finds_the_boxes_that_cells_were_told():
    postprocess = layer()
    wanted = torch.tensor([[3.0, 5.0, 21.0, 17.0], [30.0, 10.0, 63.0, 47.0], [40.0, 2.0, 45.0, 6.0]])
    logits = torch.full((1, len(postprocess.cells), CLASSES), -9.0)
    distances = torch.zeros(1, len(postprocess.cells), 4)
    for row, (box, label) in enumerate(zip(wanted, (2, 0, 1), strict=True)):
        centre = (box[:2] + box[2:]) / 2
        cell = int((postprocess.cells[:, :2] - centre).abs().amax(dim=1).argmin())
        x, y, stride = postprocess.cells[cell].tolist()
        left, top, right, bottom = box.tolist()
        distances[0, cell] = (torch.tensor([x - left, y - top, right - x, bottom - y]) / stride).log()
        logits[0, cell, label] = 3.0 - row
    found = postprocess(logits, distances)
    assert int(found.num) == 3
    torch.testing.assert_close(found.boxes[0, :3], wanted, atol=1e-3, rtol=0)
    assert found.labels[0, :3].tolist() == [2, 0, 1]
    torch.testing.assert_close(found.scores[0, :3], torch.tensor([3.0, 2.0, 1.0]).sigmoid())


def test_a_fresh_head_scores_everything_low_and_boxes_are_two_cells_wide():
    torch.manual_seed(0)
    architecture = Architecture.parse("basicblock_8_1-2-2+fpn_2-4_32+norpn+fcos_32_1+64x64")
    detector = build_detector(architecture, CLASSES)
    assert isinstance(detector, OneStageDetector)
    assert isinstance(detector.postprocess, FCOSPostprocess)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    logits, distances = detector.head(*detector.features(images))
    torch.testing.assert_close(logits.sigmoid().mean(), torch.tensor(0.01), atol=0.005, rtol=0)
    boxes = decode_distances(distances, detector.postprocess.cells)
    cells_wide = (boxes[..., 2:] - boxes[..., :2]) / detector.postprocess.cells[:, 2:]
    torch.testing.assert_close(cells_wide, torch.full_like(cells_wide, 2.0), atol=1.0, rtol=0)


@pytest.mark.slow
def test_one_batch_is_learned_by_heart():
    torch.manual_seed(0)
    architecture = Architecture.parse("basicblock_8_1-2-2+fpn_2-4_32+norpn+fcos_32_1+64x64")
    detector = build_detector(architecture, CLASSES)
    images = torch.full((2, 3, 64, 64), 114, dtype=torch.uint8)
    targets = []
    for row, places in enumerate(([(4, 6, 12, 14), (30, 20, 58, 52)], [(10, 34, 16, 40), (20, 4, 52, 20)])):
        labels = torch.tensor([row, 2])
        for (x1, y1, x2, y2), label in zip(places, labels.tolist(), strict=True):
            images[row, label, y1:y2, x1:x2] = 255
        targets.append(Target(torch.tensor(places, dtype=torch.float32), labels))
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.05, momentum=0.9)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 120)
        optimizer.zero_grad()
        torch.stack(list(detector.loss(images, targets).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
    with torch.inference_mode():
        found = detector.eval()(images)
    for row, target in enumerate(targets):
        first = found.boxes[row, :2]
        overlap = box_iou(target.boxes, first)
        assert (overlap.amax(dim=1) > 0.75).all(), overlap
        assert sorted(found.labels[row, :2].tolist()) == sorted(target.labels.tolist())
        assert F.pad(found.scores[row], (0, 1))[2] < 0.5 * found.scores[row, 1], "nothing else is found"
