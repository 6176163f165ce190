"""RoIAlign's kernels in the interpreter against torchvision in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_inputs import random_boxes
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from kernels.dispatch import use
from kernels.roi_align import multi_level_roi_align, multi_level_roi_align_reference, roi_levels
from kernels.triton import roi_align as kernel

SMALL = kernel.Launch(4, 8, 8, 2, 1)
"""Several programs for every box and map, and several blocks of boxes."""


def pyramid(levels: int, channels: int, generator: torch.Generator, *, last: bool = False) -> list[Tensor]:
    layout = torch.channels_last if last else torch.contiguous_format
    return [
        torch.randn(2, channels, 16 >> level, 24 >> level, generator=generator).contiguous(memory_format=layout)
        for level in range(levels)
    ]


def by_kernel(
    features: list[Tensor], boxes: Tensor, strides: list[int], size: int, canonical: float, upstream: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [feature.detach().requires_grad_() for feature in features]
    with use("triton"):
        pooled = multi_level_roi_align(leaves, boxes, strides, size, canonical)
    return pooled, torch.autograd.grad(pooled, leaves, upstream)


def by_torchvision(
    features: list[Tensor], boxes: Tensor, strides: list[int], size: int, canonical: float, upstream: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """In float64, by torchvision's operator and its gradient, each box on its level."""
    leaves = [feature.detach().double().requires_grad_() for feature in features]
    level = roi_levels(boxes, strides, canonical)
    rows = []
    for image, of_image in enumerate(boxes.double()):
        for box, own in zip(of_image, level[image].tolist(), strict=True):
            one = leaves[own][image : image + 1]
            rows.append(roi_align(one, [box[None]], size, 1 / strides[own], 2))
    channels = features[0].shape[1]
    pooled = torch.cat(rows) if rows else leaves[0].new_zeros(0, channels, size, size) + 0 * leaves[0].sum()
    gradients = torch.autograd.grad(pooled, leaves, upstream.double(), allow_unused=True)
    return pooled, tuple(
        torch.zeros_like(leaf) if one is None else one for one, leaf in zip(gradients, leaves, strict=True)
    )


def check(features: list[Tensor], boxes: Tensor, strides: list[int], size: int, canonical: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rows, channels, dtype = boxes.shape[0] * boxes.shape[1], features[0].shape[1], features[0].dtype
    upstream = torch.randn(rows, channels, size, size, generator=generator).to(dtype)
    pooled, gradients = by_kernel(features, boxes, strides, size, canonical, upstream)
    expected, exact = by_torchvision(features, boxes, strides, size, canonical, upstream)
    tolerance = max(1e-4, torch.finfo(dtype).eps)
    assert pooled.dtype == dtype
    assert pooled.is_contiguous()
    torch.testing.assert_close(pooled.double(), expected, atol=tolerance, rtol=tolerance)
    for one, other, feature in zip(gradients, exact, features, strict=True):
        assert one.dtype == dtype
        assert one.shape == feature.shape
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("levels", "small"), [(1, False), (4, False), (2, True)])
def test_values_and_gradients_are_torchvisions(levels: int, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:
        monkeypatch.setattr(kernel, "launch", lambda *_: SMALL)
    generator = torch.Generator().manual_seed(levels)
    features = pyramid(levels, 5, generator, last=small)
    boxes = random_boxes(2, 3, 64.0, generator)
    strides = [4 << level for level in range(levels)]
    check(features, boxes, strides, 2 if small else 7, 30.0)
    names = [str(level) for level in range(levels)]
    theirs = MultiScaleRoIAlign(names, 7, 2, canonical_scale=30)
    expected = theirs(dict(zip(names, features, strict=True)), list(boxes), [(64, 96)] * 2)
    with use("triton"):
        torch.testing.assert_close(multi_level_roi_align(features, boxes, strides, 7, 30.0), expected)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_pooled_in_float32(dtype: torch.dtype, last: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    features = [feature.to(dtype) for feature in pyramid(2, 3, generator, last=last)]
    check(features, random_boxes(2, 4, 64.0, generator), [4, 8], 3, 30.0)


@settings(max_examples=10, derandomize=True)
@given(
    batch=st.integers(0, 2),
    count=st.integers(0, 4),
    channels=st.integers(1, 9),
    levels=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.sampled_from([1, 2, 3, 5]),
    last=st.booleans(),
    seed=st.integers(0, 999),
)
def test_random_shapes(
    batch: int, count: int, channels: int, levels: int, height: int, width: int, size: int, last: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if last else torch.contiguous_format
    # no halvings: whatever the maps are, one pixel among them
    shapes = [(batch, channels, max(1, height - 3 * level), max(1, width - level)) for level in range(levels)]
    features = [torch.randn(shape, generator=generator).contiguous(memory_format=layout) for shape in shapes]
    boxes = random_boxes(batch, count, 8.0 * max(height, width), generator)
    boxes += torch.randn(batch, count, 1, generator=generator) * 6  # over the border
    check(features, boxes, [4 << level for level in range(levels)], size, 16.0)


def test_boxes_without_area_and_outside_the_map() -> None:
    generator = torch.Generator().manual_seed(3)
    features = pyramid(2, 3, generator)
    boxes = torch.tensor(
        [
            [[0.0, 0, 0, 0], [20, 20, 20, 20], [10, 40, 30, 40], [96, 64, 96, 64]],
            [[-50, -50, -20, -20], [200, 10, 260, 60], [-30, -30, 200, 200], [30, 30, 10, 10]],
        ]
    )
    check(features, boxes, [4, 8], 3, 30.0)
    with use("triton"):
        pooled = multi_level_roi_align(features, boxes, [4, 8], 3, 30.0)
    assert float(pooled[4:6].abs().max()) == 0.0


@pytest.mark.parametrize("cut", ["every second column", "channels of a wider map", "layouts of both kinds"])
def test_strided_maps(cut: str) -> None:
    generator = torch.Generator().manual_seed(4)
    fine, coarse = torch.randn(2, 6, 16, 48, generator=generator), torch.randn(2, 6, 8, 24, generator=generator)
    features = {
        "every second column": [fine[..., ::2], coarse[..., ::2]],
        "channels of a wider map": [fine[:, 1:4], coarse[:, 1:4]],
        "layouts of both kinds": [fine, coarse.contiguous(memory_format=torch.channels_last)],
    }[cut]
    boxes = random_boxes(2, 4, 64.0, generator)
    check(features, boxes.transpose(0, 1).contiguous().transpose(0, 1), [4, 8], 2, 30.0)


def test_the_level_of_a_box_is_the_references_to_the_last_bit() -> None:
    features = [torch.full((1, 1, 4, 4), float(level)) for level in range(4)]
    strides = [4, 8, 16, 32]
    sides = []
    for power in range(-2, 2):
        side = torch.tensor(112.0 * 2.0**power)
        for _ in range(3):
            side = torch.nextafter(side, torch.tensor(0.0))
        for _ in range(6):
            sides.append(side)
            side = torch.nextafter(side, torch.tensor(math.inf))
    corner = torch.stack(sides)[None, :, None].expand(-1, -1, 2)
    boxes = torch.cat([torch.zeros_like(corner), corner], dim=2)
    expected = roi_levels(boxes, strides, 112.0).flatten()
    assert set(expected.tolist()) == {0, 1, 2, 3}
    with use("triton"):
        pooled = multi_level_roi_align(features, boxes, strides, 1, 112.0)
    # the first of a bin's two samples an axis is inside the map whatever the box's size is
    inside = multi_level_roi_align([torch.ones_like(one) for one in features], boxes, strides, 1, 112.0).flatten()
    read = pooled.flatten() / inside.where(inside > 0, torch.nan)
    assert torch.equal(read[inside > 0].round().to(torch.int64), expected[inside > 0])
    assert int((inside > 0).sum()) == len(sides)


def test_what_is_not_finite_in_maps_and_gradients_passes_as_in_torchvision() -> None:
    generator = torch.Generator().manual_seed(5)
    features = pyramid(2, 3, generator)
    features[0][0, 1, ::4, ::4], features[0][1, 0, 8], features[1][:, 2, 2:4] = math.nan, math.inf, -math.inf
    boxes = random_boxes(2, 5, 60.0, generator)
    upstream = torch.randn(10, 3, 2, 2, generator=generator)
    upstream[1, 0, 1, 1], upstream[8, 2, 0, 1] = math.nan, math.inf
    pooled, gradients = by_kernel(features, boxes, [4, 8], 2, 30.0, upstream)
    expected, exact = by_torchvision(features, boxes, [4, 8], 2, 30.0, upstream)
    assert not expected.isfinite().all()
    torch.testing.assert_close(pooled.double(), expected, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert not all(one.isfinite().all() for one in exact)
    for one, other in zip(gradients, exact, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_a_box_that_is_not_a_number_is_pooled_to_what_is_not_one() -> None:
    generator = torch.Generator().manual_seed(6)
    features = pyramid(2, 2, generator)
    boxes = random_boxes(2, 4, 60.0, generator)
    upstream = torch.randn(8, 2, 3, 3, generator=generator)
    expected, _ = by_torchvision(features, boxes, [4, 8], 3, 30.0, upstream)
    boxes[0, 1], boxes[1, 2, 3] = math.nan, math.inf
    pooled, gradients = by_kernel(features, boxes, [4, 8], 3, 30.0, upstream)
    assert pooled[1].isnan().all()
    others = [0, 2, 3, 4, 5, 7]
    torch.testing.assert_close(pooled[others].double(), expected[others], atol=1e-4, rtol=1e-4)
    assert gradients[0][0].isnan().all()  # a box of no size is one of the finest level


def test_the_same_numbers_give_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(7)
    features = pyramid(2, 3, generator)
    boxes = random_boxes(2, 4, 30.0, generator)  # many on the same cells
    upstream = torch.randn(8, 3, 2, 2, generator=generator)
    first, second = (by_kernel(features, boxes, [4, 8], 2, 30.0, upstream) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True))


def test_the_kernel_is_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(8)
    features, boxes = pyramid(2, 3, generator), random_boxes(2, 3, 60.0, generator)
    calls = []
    true = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *given, **named: calls.append(1) or true(*given, **named))
    expected = multi_level_roi_align(features, boxes, [4, 8], 7, 30.0)
    assert not calls
    with use("triton"):
        pooled = multi_level_roi_align(features, boxes, [4, 8], 7, 30.0)
        wide = multi_level_roi_align([one.double() for one in features], boxes.double(), [4, 8], 7, 30.0)
    assert len(calls) == 1
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(wide.float(), multi_level_roi_align_reference(features, boxes, [4, 8], 7, 30.0))
