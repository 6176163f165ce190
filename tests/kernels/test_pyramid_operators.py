"""RoIAlign and NMS by group: the operators' declarations, their PyTorch forms, compiling and exporting."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from kernels.nms import grouped_nms_mask, grouped_nms_mask_reference, nms_mask
from kernels.roi_align import multi_level_roi_align, multi_level_roi_align_reference

POOL = torch.ops.smnas.pyramid_roi_align.default
POOL_BACKWARD = torch.ops.smnas.pyramid_roi_align_backward.default
SUPPRESS = torch.ops.smnas.grouped_nms_mask.default


def random_boxes(batch: int, count: int, side: float, generator: torch.Generator) -> Tensor:
    corner = torch.rand(batch, count, 2, generator=generator) * side
    size = torch.rand(batch, count, 2, generator=generator) ** 2 * side
    return torch.cat([corner, (corner + size).clamp(max=side)], dim=2)


def draw(*, last: bool = False, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Two maps, and boxes on them."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    maps = [torch.randn(2, 3, 16 >> level, 12 >> level, generator=generator).to(dtype) for level in range(2)]
    maps = [one.contiguous(memory_format=layout).requires_grad_() for one in maps]
    return maps, random_boxes(2, 5, 48.0, generator)


# PyTorch's check looks at gradients of the copies that it makes of a list's tensors
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_pooling_declares_itself_correctly(last: bool) -> None:
    maps, boxes = draw(last=last)
    torch.library.opcheck(POOL, (maps, boxes, [4, 8], 3, 30.0))
    sizes = [one.shape[2] for one in maps], [one.shape[3] for one in maps]
    upstream = torch.randn(10, 3, 3, 3)
    torch.library.opcheck(POOL_BACKWARD, (upstream, boxes, *sizes, [4, 8], 30.0, last))


@pytest.mark.parametrize("shape", [(2, 6), (0, 6), (2, 0)])
def test_suppression_declares_itself_correctly(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    boxes, scores = random_boxes(*shape, 20.0, generator), torch.rand(shape, generator=generator)
    groups = torch.randint(0, 2, shape, generator=generator)
    # its sizes are not the concern of a formula for gradients: it has none, and no gradient passes a mask
    torch.library.opcheck(SUPPRESS, (boxes, scores, groups, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_without_a_kernel_pooling_computes_the_same(last: bool, dtype: torch.dtype) -> None:
    maps, boxes = draw(last=last, dtype=dtype)
    found = POOL(maps, boxes, [4, 8], 3, 30.0)
    expected = multi_level_roi_align_reference([one.float() for one in maps], boxes, [4, 8], 3, 30.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))
    upstream = torch.randn_like(found)
    theirs = torch.autograd.grad(expected, maps, upstream.float())
    for one, other, feature in zip(torch.autograd.grad(found, maps, upstream), theirs, maps, strict=True):
        assert one.stride() == feature.stride()
        torch.testing.assert_close(one, other, atol=1e-2 if dtype is torch.bfloat16 else 1e-5, rtol=1e-2)


@pytest.mark.parametrize("boxes", [0, 3])
def test_pooling_of_nothing(boxes: int) -> None:
    maps = [torch.randn(0 if boxes else 2, 3, 8, 8, requires_grad=True)]
    pooled = POOL(maps, torch.zeros(len(maps[0]), boxes, 4), [4], 7, 30.0)
    assert pooled.shape == (0, 3, 7, 7)
    (gradient,) = torch.autograd.grad(pooled.sum(), maps)
    assert torch.equal(gradient, torch.zeros_like(maps[0]))


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
    assert torch.equal(keep, SUPPRESS(boxes, scores, every, 0.5))
    assert not torch.equal(keep, nms_mask(boxes, scores, 0.5))


def test_groups_of_half_precision_boxes_are_moved_apart_beyond_its_range() -> None:
    generator = torch.Generator().manual_seed(3)
    boxes = random_boxes(1, 40, 1000.0, generator).half()
    scores, groups = torch.rand(1, 40, generator=generator), torch.arange(40).div(10, rounding_mode="floor") * 30
    keep = grouped_nms_mask(boxes, scores, groups, 0.3, 1333.0)  # the last group is 120,000 pixels away
    assert torch.equal(keep, grouped_nms_mask_reference(boxes.float(), scores, groups[None], 0.3))


def test_compiled_graphs_hold_one_operator_for_all_levels() -> None:
    targets: set[str] = set()

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.update(str(node.target) for node in graph.graph.nodes)
        return graph

    maps, boxes = draw()
    scores, groups = torch.rand(2, 5), torch.tensor([0, 0, 1, 1, 1]).expand(2, -1)

    def both(maps: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        return POOL(maps, boxes, [4, 8], 3, 30.0), SUPPRESS(boxes, scores, groups, 0.5)

    torch._dynamo.reset()
    found = torch.compile(both, backend=keep, fullgraph=True)(maps, boxes)
    torch._dynamo.reset()
    assert {"smnas.pyramid_roi_align.default", "smnas.grouped_nms_mask.default"} <= targets
    torch.testing.assert_close(found, both(maps, boxes))


def test_exported_graphs_hold_what_backends_know() -> None:
    class Both(torch.nn.Module):
        def forward(self, fine: Tensor, coarse: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            groups = torch.tensor([0, 0, 1, 1, 1])
            keep = grouped_nms_mask(boxes, scores, groups, 0.5, 64.0)
            return keep, multi_level_roi_align([fine, coarse], boxes, [4, 8], 7, 30.0)

    maps, boxes = draw()
    with torch.no_grad():
        program = torch.export.export(Both(), (*[one.detach() for one in maps], boxes, torch.rand(2, 5)))
    ours = {str(node.target) for node in program.graph.nodes if "smnas" in str(node.target)}
    assert ours == {"smnas.nms_mask.default", "smnas.multi_level_roi_align.default"}
