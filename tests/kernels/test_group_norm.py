"""GroupNorm with what follows it: the reference against PyTorch, declarations, compiling and exporting."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.group_norm import group_norm_relu, group_norm_relu_reference
from kernels.weight_standardization import weight_standardize_all, weight_standardize_reference

GROUP_NORM = torch.ops.smnas.group_norm_relu.default
STANDARDIZE = torch.ops.smnas.weight_standardize.default


def draw(*, last: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Map, residual, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(2, 12, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = torch.randn(2, 12, generator=generator, dtype=torch.float64).unbind(0)
    layout = torch.channels_last if last else torch.contiguous_format
    drawn = (x.contiguous(memory_format=layout), residual.contiguous(memory_format=layout), weight + 1, bias)
    return tuple(one.to(dtype).requires_grad_() for one in drawn)  # type: ignore[return-value]


def pytorchs(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    out = F.group_norm(x, 3, weight, bias)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_the_reference_is_pytorchs_with_gradients(residual: bool, relu: bool) -> None:
    x, added, weight, bias = draw(dtype=torch.float64)
    more = added if residual else None
    leaves = [x, weight, bias, *([added] if residual else [])]
    expected = pytorchs(x, more, weight, bias, relu)
    upstream = torch.randn_like(expected)
    for function in (group_norm_relu_reference, group_norm_relu):
        found = function(x, 3, weight, bias, 1e-5, more, relu=relu)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(found, leaves, upstream),
            torch.autograd.grad(expected, leaves, upstream, retain_graph=True),
            atol=1e-12,
            rtol=1e-12,
        )


def test_what_is_not_a_number_passes_the_references_relu() -> None:
    x = torch.tensor([[[float("nan"), 1.0], [2.0, 3.0]]])
    found = group_norm_relu_reference(x, 2, torch.ones(2), torch.zeros(2))
    assert found[0, 0].isnan().all()
    assert found[0, 1].tolist() == F.group_norm(x, 2)[0, 1].relu().tolist()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_operator_itself_computes_the_same_on_a_cpu(residual: bool, last: bool) -> None:
    x, added, weight, bias = draw(last=last)
    more = added if residual else None
    leaves = [x, weight, bias, *([added] if residual else [])]
    found = GROUP_NORM(x, more, weight, bias, 3, 1e-5, True)[0]
    assert found.stride() == x.stride()
    expected = pytorchs(x, more, weight, bias, True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_residual_of_another_shape_is_refused() -> None:
    x, _, weight, bias = draw()
    with pytest.raises(ValueError, match=r"the residual must be of shape \(2, 12, 5, 7\)"):
        GROUP_NORM(x, x[:1], weight, bias, 3, 1e-5, True)


# opcheck looks at the gradients of what it has computed itself
_ITS_OWN = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.mark.slow
@_ITS_OWN
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_the_operators_of_group_norm_declare_themselves_correctly(residual: bool, last: bool) -> None:
    x, added, weight, bias = draw(last=last)
    torch.library.opcheck(GROUP_NORM, (x, added if residual else None, weight, bias, 3, 1e-5, True))
    y, mean, rstd = (one.detach() for one in GROUP_NORM(x, added, weight, bias, 3, 1e-5, True))
    detached = [one.detach() for one in (x, x, y, weight, bias)]
    torch.library.opcheck(torch.ops.smnas.group_norm_relu_backward.default, (*detached, mean, rstd, True, residual))


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for shape in ((4, 3, 3, 3), (6, 4, 1, 1))]
    drawn[0] = drawn[0].contiguous(memory_format=torch.channels_last)
    return [weight.requires_grad_() for weight in drawn]


def test_the_operator_of_all_weights_computes_the_same_on_a_cpu() -> None:
    leaves = weights()
    found, _ = STANDARDIZE(leaves, 1e-5)
    upstream = [torch.randn_like(one) for one in found]
    for others in (weight_standardize_all(leaves), [weight_standardize_reference(one) for one in leaves]):
        torch.testing.assert_close(found, others, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            torch.autograd.grad(found, leaves, upstream, retain_graph=True),
            torch.autograd.grad(others, leaves, upstream),
            atol=1e-4,
            rtol=1e-4,
        )


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
    inputs = draw()
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
