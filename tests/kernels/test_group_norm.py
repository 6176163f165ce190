"""GroupNorm with what follows it: the reference against PyTorch, declarations, compiling and exporting."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.group_norm import group_norm_relu, group_norm_relu_reference

GROUP_NORM = torch.ops.smnas.group_norm_relu.default


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


def test_a_residual_of_another_shape_is_refused() -> None:
    x, _, weight, bias = draw()
    with pytest.raises(ValueError, match=r"the residual must be of shape \(2, 12, 5, 7\)"):
        GROUP_NORM(x, x[:1], weight, bias, 3, 1e-5, True)
