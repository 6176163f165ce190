"""GroupNorm with what follows it: the reference against PyTorch, declarations, compiling and exporting."""

import pytest
import torch
from operator_inputs import norm_inputs
from torch import Tensor
from torch.nn import functional as F

from kernels.group_norm import group_norm_relu, group_norm_relu_reference

GROUP_NORM = torch.ops.smnas.group_norm_relu.default


def pytorchs(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    out = F.group_norm(x, 3, weight, bias)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_the_reference_is_pytorchs_with_gradients(residual: bool, relu: bool) -> None:
    x, added, weight, bias = norm_inputs(dtype=torch.float64)
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
    x, _, weight, bias = norm_inputs()
    with pytest.raises(ValueError, match=r"the residual must be of shape \(2, 12, 5, 7\)"):
        GROUP_NORM(x, x[:1], weight, bias, 3, 1e-5, True)
