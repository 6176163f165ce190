"""Weight standardization's kernels in the interpreter: many weights in one launch, against the float64 reference."""

import math

import pytest
import torch
from torch import Tensor

from kernels.dispatch import use
from kernels.triton import weight_standardization as kernel
from kernels.weight_standardization import weight_standardize, weight_standardize_all, weight_standardize_reference

SHAPES = [(8, 4, 3, 3), (1, 1, 1, 2), (32, 16, 1, 1), (5, 3, 7, 7), (3, 70, 3, 3), (7, 1, 1, 1)]


def draw(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [(torch.randn(shape, generator=generator) * 2 + 1).to(dtype) for shape in SHAPES]
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    weights[3] = weights[3].transpose(2, 3)  # a filter's elements are in another order
    weights[4] = torch.cat([weights[4], weights[4]], dim=1)[:, ::2]  # and here not together
    return weights


@pytest.mark.parametrize("launch", [None, kernel.Launch(2, 16, 1), kernel.Launch(8, 64, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_weights_are_the_references_with_gradients(
    dtype: torch.dtype, launch: kernel.Launch | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launch is not None:
        monkeypatch.setattr(kernel, "launch", lambda: launch)
    weights = [weight.requires_grad_() for weight in draw(dtype)]
    launched = []
    true = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *arguments: launched.append(1) or true(*arguments))
    with use("triton"):
        found = weight_standardize_all(weights)
    assert launched == [1]
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(weight.shape, generator=generator).to(dtype) for weight in weights]
    gradients = torch.autograd.grad(found, weights, upstream)
    eps = torch.finfo(dtype).eps
    for weight, one, gradient, up in zip(weights, found, gradients, upstream, strict=True):
        wide = weight.detach().double().requires_grad_()
        expected = weight_standardize_reference(wide)
        (exact,) = torch.autograd.grad(expected, wide, up.double())
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), expected, atol=8 * eps, rtol=4 * eps)
        if weight[0].numel() > 2:
            # where two numbers are normalized nothing is left of the gradient but rounding
            scale = float(exact.abs().max()) + 1
            torch.testing.assert_close(gradient.double() / scale, exact / scale, atol=16 * eps, rtol=16 * eps)


def test_one_weight_and_one_that_is_not_finite() -> None:
    weight = draw()[0]
    weight[2, 0, 0, 0], weight[4, 1, 1, 1] = math.nan, math.inf
    with use("triton"):
        found = weight_standardize(weight)
    expected = weight_standardize_reference(weight)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert found[[2, 4]].isnan().all()
    assert found[[0, 1, 3, 5, 6, 7]].isfinite().all()


def test_no_weight() -> None:
    with use("triton"):
        assert weight_standardize_all([]) == []
