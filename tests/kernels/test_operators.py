"""The operators against their references, torchvision and ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign, batched_nms, roi_align

import kernels
from kernels.nms import nms_mask, nms_mask_reference
from kernels.onnx_ops import translation_table
from kernels.roi_align import multi_level_roi_align, multi_level_roi_align_reference, roi_levels
from kernels.weight_standardization import weight_standardize, weight_standardize_reference


def random_boxes(batch: int, count: int, side: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * side
    size = torch.rand(batch, count, 2, generator=generator) ** 3 * side
    return torch.cat([corner, (corner + size).clamp(max=side)], dim=2)


def test_the_package_is_ours():
    assert Path(kernels.__file__).resolve().parent == Path(__file__).resolve().parents[2] / "kernels"


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (1, 1, 1, 2), (32, 16, 1, 1), (5, 3, 7, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_standardization_equals_its_reference_with_gradients(shape, dtype):
    weight = torch.randn(shape, dtype=dtype, requires_grad=True)
    fast, slow = weight_standardize(weight), weight_standardize_reference(weight)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    torch.testing.assert_close(fast, slow, atol=tolerance, rtol=tolerance)
    upstream = torch.randn_like(fast)
    torch.testing.assert_close(
        torch.autograd.grad(fast, weight, upstream)[0],
        torch.autograd.grad(slow, weight, upstream)[0],
        atol=1e-4,
        rtol=1e-3,
    )


def test_standardized_filters_have_no_mean_and_unit_variance():
    flat = weight_standardize(torch.randn(16, 8, 3, 3, dtype=torch.float64) * 3 + 5).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(16, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(flat.var(1, unbiased=False), torch.ones(16, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.slow
@settings(max_examples=40)
@given(count=st.integers(0, 40), seed=st.integers(0, 10_000), threshold=st.sampled_from([0.3, 0.5, 0.7]))
def test_nms_mask_equals_the_greedy_reference(count, seed, threshold):
    boxes = random_boxes(2, count, 100.0, seed)
    scores = torch.rand(2, count, generator=torch.Generator().manual_seed(seed + 1)) - 0.2
    assert torch.equal(nms_mask(boxes, scores, threshold), nms_mask_reference(boxes, scores, threshold))


def test_moving_classes_apart_equals_torchvisions_class_aware_nms():
    boxes = random_boxes(1, 200, 128.0, 3)
    scores = torch.rand(1, 200) + 0.01
    classes = torch.randint(0, 5, (200,))
    apart = boxes + (classes * 129.0)[None, :, None]
    keep = nms_mask(apart, scores, 0.5)[0].nonzero().squeeze(1)
    expected = batched_nms(boxes[0], scores[0], classes, 0.5).sort().values
    assert torch.equal(keep, expected)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_multi_level_roi_align_equals_torchvisions(levels):
    features = [torch.randn(2, 5, 64 >> level, 48 >> level) for level in range(levels)]
    boxes = random_boxes(2, 30, 190.0, levels)
    strides = [4 << level for level in range(levels)]
    ours = multi_level_roi_align(features, boxes, strides, 7, 224.0)
    names = [str(level) for level in range(levels)]
    pool = MultiScaleRoIAlign(names, 7, 2)
    theirs = pool(dict(zip(names, features, strict=True)), list(boxes), [(256, 192)] * 2)
    if levels > 1:  # with one level torchvision infers a scale and pools alike
        assert pool.map_levels is not None
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours, multi_level_roi_align_reference(features, boxes, strides, 7, 224.0))


def test_roi_align_gradient_equals_the_references():
    features = [torch.randn(1, 3, 16 >> level, 16 >> level, requires_grad=True) for level in range(2)]
    boxes = random_boxes(1, 12, 64.0, 0)
    fast = multi_level_roi_align(features, boxes, [4, 8], 7, 40.0)
    slow = multi_level_roi_align_reference(features, boxes, [4, 8], 7, 40.0)
    upstream = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad(fast, features, upstream), torch.autograd.grad(slow, features, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1, 9, 70])
def test_roi_align_equals_torchvisions_with_gradients(side, dtype, last):
    layout = torch.channels_last if last else torch.contiguous_format
    # 1 and 9: a bin is a bag of cells; 70: too few boxes for so large maps
    feature = torch.randn(3, 4, side, side, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    boxes = random_boxes(3, 12, side * 4.0, side) + torch.randn(3, 12, 1) * 3  # some reach over the border
    boxes[1] = 0.0  # boxes without area
    boxes = boxes.to(dtype)
    ours = multi_level_roi_align([feature], boxes, [4], 7, 112.0)
    theirs = roi_align(feature, list(boxes), 7, 0.25, 2)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    (a,) = torch.autograd.grad(ours, feature, upstream)
    (b,) = torch.autograd.grad(theirs, feature, upstream)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert a.stride() == feature.stride() or side != 9


def test_a_box_that_is_not_a_number_is_pooled_to_what_is_not_one():
    feature = torch.randn(1, 2, 8, 8, requires_grad=True)
    boxes = random_boxes(1, 6, 32.0, 0)
    expected = multi_level_roi_align([feature], boxes, [4], 7, 112.0)
    boxes[0, 2] = torch.nan
    pooled = multi_level_roi_align([feature], boxes, [4], 7, 112.0)
    assert pooled[2].isnan().all()
    torch.testing.assert_close(pooled[[0, 1, 3, 4, 5]], expected[[0, 1, 3, 4, 5]])


def test_the_gradient_of_roi_align_has_the_same_bits_every_time():
    feature, boxes = torch.randn(2, 8, 16, 16, requires_grad=True), random_boxes(2, 40, 64.0, 3)
    pooled = multi_level_roi_align([feature], boxes, [4], 7, 112.0)
    upstream = torch.randn_like(pooled)
    first, second = (torch.autograd.grad(pooled, feature, upstream, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_pooled_in_float32(dtype):
    feature, boxes = torch.randn(1, 3, 32, 32).to(dtype), random_boxes(1, 9, 120.0, 5)
    pooled = multi_level_roi_align([feature], boxes, [4], 7, 112.0)
    assert pooled.dtype is dtype
    torch.testing.assert_close(pooled, multi_level_roi_align([feature.float()], boxes, [4], 7, 112.0).to(dtype))


def test_a_box_reads_the_level_of_its_size():
    sides = torch.tensor([10.0, 111.9, 112.0, 223.9, 224.0, 448.0, 5000.0])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    assert roi_levels(boxes, [4, 8, 16, 32], 224.0).tolist() == [0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("operator", ["nms", "roi"])
def test_operators_declare_themselves_correctly(operator):
    boxes, scores = random_boxes(2, 8, 60.0, 1), torch.rand(2, 8)
    utilities = ("test_schema", "test_faketensor")
    if operator == "nms":
        torch.library.opcheck(nms_mask, (boxes, scores, 0.5), test_utils=utilities)
    else:
        features = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)]
        overload = torch.ops.smnas.multi_level_roi_align.default
        torch.library.opcheck(overload, (features, boxes, [4, 8], 7, 56.0), test_utils=utilities)


class BothOperators(torch.nn.Module):
    def forward(self, fine, coarse, boxes, scores):
        return nms_mask(boxes, scores, 0.5), multi_level_roi_align([fine, coarse], boxes, [4, 8], 7, 56.0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["random", "no area", "one level empty", "no candidate"])
def test_onnx_forms_equal_eager(tmp_path, case):
    fine, coarse = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)
    boxes, scores = random_boxes(2, 20, 64.0, 7), torch.rand(2, 20)
    module = BothOperators().eval()
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (fine, coarse, boxes, scores),
            dynamo=True,
            opset_version=18,
            custom_translation_table=translation_table(),
            verbose=False,
        )
    program.save(tmp_path / "both.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "both.onnx", providers=["CPUExecutionProvider"])
    if case == "no area":
        boxes = torch.zeros_like(boxes)
    elif case == "one level empty":
        boxes = torch.cat([boxes[..., :2], boxes[..., :2] + 1], dim=2)
    elif case == "no candidate":
        scores = torch.zeros_like(scores)
    inputs = {i.name: t.numpy() for i, t in zip(session.get_inputs(), (fine, coarse, boxes, scores), strict=True)}
    keep, pooled = session.run(None, inputs)
    eager_keep, eager_pooled = module(fine, coarse, boxes, scores)
    assert np.array_equal(keep, eager_keep.numpy())
    np.testing.assert_allclose(pooled, eager_pooled.numpy(), atol=1e-5)
