"""The registered operators behind the kernels: their declarations, and graphs that hold them."""

from typing import Any

import pytest
import torch
from operator_inputs import norm_inputs, pyramid_inputs, random_boxes
from torch import Tensor, nn

from kernels import group_norm, nms, roi_align, weight_standardization

# importing the modules registers the operators
_ = (group_norm, nms, roi_align, weight_standardization)

GROUP_NORM = torch.ops.smnas.group_norm_relu.default
STANDARDIZE = torch.ops.smnas.weight_standardize.default
POOL = torch.ops.smnas.pyramid_roi_align.default
POOL_BACKWARD = torch.ops.smnas.pyramid_roi_align_backward.default
SUPPRESS = torch.ops.smnas.grouped_nms_mask.default


# opcheck looks at the gradients of what it has computed itself
_ITS_OWN = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@_ITS_OWN
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_the_operators_of_group_norm_declare_themselves_correctly(residual: bool, last: bool) -> None:
    x, added, weight, bias = norm_inputs(last=last)
    torch.library.opcheck(GROUP_NORM, (x, added if residual else None, weight, bias, 3, 1e-5, True))
    y, mean, rstd = (one.detach() for one in GROUP_NORM(x, added, weight, bias, 3, 1e-5, True))
    detached = [one.detach() for one in (x, x, y, weight, bias)]
    torch.library.opcheck(torch.ops.smnas.group_norm_relu_backward.default, (*detached, mean, rstd, True, residual))


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for shape in ((4, 3, 3, 3), (6, 4, 1, 1))]
    drawn[0] = drawn[0].contiguous(memory_format=torch.channels_last)
    return [weight.requires_grad_() for weight in drawn]


@_ITS_OWN
def test_the_operators_of_standardization_declare_themselves_correctly() -> None:
    torch.library.opcheck(STANDARDIZE, (weights(), 1e-5))
    out, rstd = STANDARDIZE([weight.detach() for weight in weights()], 1e-5)
    upstream = [torch.randn_like(one) for one in out]
    torch.library.opcheck(torch.ops.smnas.weight_standardize_backward.default, (upstream, out, rstd))


class Operator(nn.Module):
    def forward(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = GROUP_NORM(x * 2, residual, weight, bias, 3, 1e-5, True)[0]
        return out + 1


def test_the_operator_is_compiled_and_exported_as_one() -> None:
    inputs = norm_inputs()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    module = Operator()
    compiled = torch.compile(module, backend=keep, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), module(*inputs))
    program = torch.export.export(module, inputs)
    torch.testing.assert_close(program.module()(*inputs), module(*inputs))
    for graph in (graphs[0].graph, program.graph):
        assert [node.target for node in graph.nodes].count(GROUP_NORM) == 1


# PyTorch's check looks at gradients of the copies that it makes of a list's tensors
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_pooling_declares_itself_correctly(last: bool) -> None:
    maps, boxes = pyramid_inputs(last=last)
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


def test_compiled_graphs_hold_one_operator_for_all_levels() -> None:
    targets: set[str] = set()

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.update(str(node.target) for node in graph.graph.nodes)
        return graph

    maps, boxes = pyramid_inputs()
    scores, groups = torch.rand(2, 5), torch.tensor([0, 0, 1, 1, 1]).expand(2, -1)

    def both(maps: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        return POOL(maps, boxes, [4, 8], 3, 30.0), SUPPRESS(boxes, scores, groups, 0.5)

    torch._dynamo.reset()
    found = torch.compile(both, backend=keep, fullgraph=True)(maps, boxes)
    torch._dynamo.reset()
    assert {"smnas.pyramid_roi_align.default", "smnas.grouped_nms_mask.default"} <= targets
    torch.testing.assert_close(found, both(maps, boxes))


@pytest.mark.parametrize("boxes", [0, 3])
def test_pooling_of_nothing(boxes: int) -> None:
    maps = [torch.randn(0 if boxes else 2, 3, 8, 8, requires_grad=True)]
    pooled = POOL(maps, torch.zeros(len(maps[0]), boxes, 4), [4], 7, 30.0)
    assert pooled.shape == (0, 3, 7, 7)
    (gradient,) = torch.autograd.grad(pooled.sum(), maps)
    assert torch.equal(gradient, torch.zeros_like(maps[0]))
