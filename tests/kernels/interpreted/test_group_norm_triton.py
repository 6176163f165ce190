"""GroupNorm's kernels in the interpreter against the float64 reference and against PyTorch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kernels.dispatch import use
from kernels.group_norm import group_norm_relu, group_norm_relu_reference
from kernels.triton import group_norm as kernel

# batch, channels, groups, map
SHAPES = {
    "usual": (2, 10, 5, (6, 5)),
    "one group": (2, 6, 1, (4, 4)),
    "a group for each channel": (1, 4, 4, (3, 5)),
    "odd channels": (2, 15, 5, (7, 3)),
    "odd groups": (1, 12, 3, (5, 5)),
    "one pixel": (2, 12, 3, (1, 1)),
    "one row": (1, 8, 2, (1, 9)),
    "one channel": (2, 1, 1, (5, 4)),
    "vectors": (4, 8, 2, ()),
}
# as the table says; tiles far smaller than the map; tiles that no size of the map is a multiple of
LAUNCHES = {
    "the table's": None,
    "whole": kernel.Launch(True, 1, 32, 64, 1),
    "tiles": kernel.Launch(False, 1, 4, 8, 1),
    "few channels a tile": kernel.Launch(False, 1, 2, 16, 1),
}


def draw(name: str, dtype: torch.dtype = torch.float32, *, last: bool = False) -> tuple[Tensor, ...]:
    """Input, weight, bias, residual and upstream gradient, rounded to the type."""
    batch, channels, _, cells = SHAPES[name]
    generator = torch.Generator().manual_seed(len(name))
    shape = (batch, channels, *cells)
    x, residual, upstream = (torch.randn(shape, generator=generator) for _ in range(3))
    weight, bias = torch.randn(2, channels, generator=generator)
    drawn = [tensor.to(dtype) for tensor in (x * 2 + 3, weight + 0.5, bias, residual, upstream)]
    if last and x.dim() == 4:
        drawn = [one.contiguous(memory_format=torch.channels_last) if one.dim() == 4 else one for one in drawn]
    return tuple(drawn)


def value_and_gradients(function, x, groups, weight, bias, residual, relu, upstream):  # type: ignore[no-untyped-def]
    leaves = [one.detach().requires_grad_() for one in (x, weight, bias)]
    added = None if residual is None else residual.detach().requires_grad_()
    out = function(leaves[0], groups, leaves[1], leaves[2], 1e-5, added, relu=relu)
    leaves += [] if added is None else [added]
    return out, torch.autograd.grad(out, leaves, upstream)


def check(name: str, dtype: torch.dtype, *, last: bool, residual: bool, relu: bool, tolerance: float) -> None:
    x, weight, bias, added, upstream = draw(name, dtype, last=last)
    groups = SHAPES[name][2]
    with use("triton"):
        out, gradients = value_and_gradients(
            group_norm_relu, x, groups, weight, bias, added if residual else None, relu, upstream
        )
    wide = [one.double() for one in (x, weight, bias, added, upstream)]
    expected, slow = value_and_gradients(
        group_norm_relu_reference, wide[0], groups, wide[1], wide[2], wide[3] if residual else None, relu, wide[4]
    )
    assert out.dtype == dtype
    assert out.stride() == x.stride()
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    for found, exact in zip(gradients, slow, strict=True):
        scale = max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(found.double() / scale, exact / scale, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_the_references(name: str, launch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LAUNCHES[launch]
    if plan is not None:
        monkeypatch.setattr(kernel, "launch", lambda *_, **__: plan)
    last = len(name) % 2 == 0
    check(name, torch.float32, last=last, residual=False, relu=True, tolerance=2e-5)
    check(name, torch.float32, last=not last, residual=True, relu=True, tolerance=2e-5)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_without_relu(residual: bool, last: bool) -> None:
    check("odd channels", torch.float32, last=last, residual=residual, relu=False, tolerance=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("launch", ["the table's", "tiles"])
def test_half_precision_has_float32_statistics(
    dtype: torch.dtype, launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = LAUNCHES[launch]
    if plan is not None:
        monkeypatch.setattr(kernel, "launch", lambda *_, **__: plan)
    # one rounding of the result, and no more: that of the type
    check("odd channels", dtype, last=True, residual=True, relu=True, tolerance=2 * torch.finfo(dtype).eps)
    # a mean of 3,000 and a deviation of 1 would be lost in sums of halves
    x = (torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) + 3000).to(dtype)
    weight, bias = torch.ones(4), torch.zeros(4)
    with use("triton"):
        out = group_norm_relu(x, 2, weight, bias, relu=False)
    expected = group_norm_relu_reference(x.double(), 2, weight.double(), bias.double(), relu=False)
    torch.testing.assert_close(out.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


@settings(max_examples=12, derandomize=True)
@given(
    batch=st.integers(0, 2),
    group_channels=st.integers(1, 5),
    groups=st.integers(1, 3),
    height=st.integers(0, 6),
    width=st.integers(1, 6),
    last=st.booleans(),
    residual=st.booleans(),
    tiles=st.booleans(),
)
def test_random_shapes(
    batch: int, group_channels: int, groups: int, height: int, width: int, last: bool, residual: bool, tiles: bool
) -> None:
    SHAPES["random"] = (batch, group_channels * groups, groups, (height, width))
    with pytest.MonkeyPatch.context() as patch:
        if tiles:
            patch.setattr(kernel, "launch", lambda *_, **__: kernel.Launch(False, 1, 4, 8, 1))
        if batch * height == 0:
            x, weight, bias, added, _ = draw("random", last=last)
            with use("triton"):
                out, gradients = value_and_gradients(
                    group_norm_relu, x, groups, weight, bias, added if residual else None, True, torch.zeros_like(x)
                )
            assert out.shape == x.shape
            assert [one.shape for one in gradients[:3]] == [x.shape, weight.shape, bias.shape]
            assert all(float(one.abs().sum()) == 0 for one in gradients)
        elif group_channels * height * width > 1:
            check("random", torch.float32, last=last, residual=residual, relu=True, tolerance=1e-4)


@pytest.mark.parametrize("launch", ["the table's", "tiles"])
def test_what_is_not_finite_passes_as_in_pytorch(launch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LAUNCHES[launch]
    if plan is not None:
        monkeypatch.setattr(kernel, "launch", lambda *_, **__: plan)
    x, weight, bias, added, upstream = draw("usual")
    x[0, 0, 0, 0], x[0, 5, 1, 1], added[1, 3, 2, 2] = math.nan, math.inf, -math.inf
    added[1, 4, 0, 0] = math.nan
    with use("triton"):
        found = value_and_gradients(group_norm_relu, x, 5, weight, bias, added, True, upstream)
    expected = value_and_gradients(group_norm_relu, x, 5, weight, bias, added, True, upstream)
    for one, other in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5, equal_nan=True)
    assert found[0][0, 0].isnan().all()  # ReLU keeps what is not a number
    assert found[0][1, 3, 2, 2].item() == 0.0


@pytest.mark.parametrize("cut", ["every second column", "channels of a wider map", "transposed"])
def test_strided_maps(cut: str) -> None:
    generator = torch.Generator().manual_seed(3)
    whole = torch.randn(2, 12, 6, 8, generator=generator)
    x = {
        "every second column": whole[..., ::2],
        "channels of a wider map": whole[:, 2:10],
        "transposed": whole.transpose(2, 3),
    }[cut]
    weight, bias = torch.randn(2, x.shape[1], generator=generator)
    upstream = torch.randn(x.transpose(2, 3).shape, generator=generator).transpose(2, 3)
    with use("triton"):
        found = value_and_gradients(group_norm_relu, x, 4, weight, bias, x, True, upstream)
    expected = value_and_gradients(group_norm_relu, x, 4, weight, bias, x, True, upstream)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_the_same_numbers_give_the_same_bits() -> None:
    x, weight, bias, added, upstream = draw("odd channels")
    with use("triton"):
        first, second = (
            value_and_gradients(group_norm_relu, x, 5, weight, bias, added, True, upstream) for _ in range(2)
        )
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True))


def test_the_kernel_is_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, *_ = draw("usual")
    calls = []
    true = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *arguments: calls.append(1) or true(*arguments))
    group_norm_relu(x, 5, weight, bias)
    assert not calls
    with use("triton"):
        out = group_norm_relu(x, 5, weight, bias)
        group_norm_relu(x.double(), 5, weight.double(), bias.double())  # no kernel computes in float64
    assert len(calls) == 1
    torch.testing.assert_close(out, F.group_norm(x, 5, weight, bias).relu(), atol=1e-5, rtol=1e-5)
