"""RoIAlign and NMS by group: the operators' declarations, their PyTorch forms, compiling and exporting."""

import pytest
import torch
from operator_inputs import pyramid_inputs, random_boxes
from torch import Tensor
from torchvision.ops import batched_nms

from kernels.nms import grouped_nms_mask, grouped_nms_mask_reference, nms_mask
from kernels.roi_align import multi_level_roi_align


@pytest.mark.parametrize("shared", [False, True])
def test_groups_do_not_drop_each_other(shared: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    boxes, scores = random_boxes(2, 80, 64.0, generator), torch.rand(2, 80, generator=generator) + 0.01
    groups = torch.randint(0, 5, (80,) if shared else (2, 80), generator=generator)
    every = groups.expand(2, -1)
    keep = grouped_nms_mask(boxes, scores, groups, 0.5, 64.0)
    for row in range(2):
        expected = batched_nms(boxes[row], scores[row], every[row], 0.5)
        assert torch.equal(keep[row].nonzero().squeeze(1), expected.sort().values)
    assert torch.equal(keep, grouped_nms_mask_reference(boxes, scores, every, 0.5))
    assert not torch.equal(keep, nms_mask(boxes, scores, 0.5))


def test_groups_of_half_precision_boxes_are_moved_apart_beyond_its_range() -> None:
    generator = torch.Generator().manual_seed(3)
    boxes = random_boxes(1, 40, 1000.0, generator).half()
    scores, groups = torch.rand(1, 40, generator=generator), torch.arange(40).div(10, rounding_mode="floor") * 30
    keep = grouped_nms_mask(boxes, scores, groups, 0.3, 1333.0)  # the last group is 120,000 pixels away
    assert torch.equal(keep, grouped_nms_mask_reference(boxes.float(), scores, groups[None], 0.3))


def test_exported_graphs_hold_what_backends_know() -> None:
    class Both(torch.nn.Module):
        def forward(self, fine: Tensor, coarse: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            groups = torch.tensor([0, 0, 1, 1, 1])
            keep = grouped_nms_mask(boxes, scores, groups, 0.5, 64.0)
            return keep, multi_level_roi_align([fine, coarse], boxes, [4, 8], 7, 30.0)

    maps, boxes = pyramid_inputs()
    with torch.no_grad():
        program = torch.export.export(Both(), (*[one.detach() for one in maps], boxes, torch.rand(2, 5)))
    ours = {str(node.target) for node in program.graph.nodes if "smnas" in str(node.target)}
    assert ours == {"smnas.nms_mask.default", "smnas.multi_level_roi_align.default"}
