"""The plain forms against torchvision, and their graphs: tensor operators, static shapes, the same numbers."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, batched_nms, nms, roi_align

from kernels import litert_ops
from kernels.nms import greedy_keep, nms_mask, nms_mask_plain, nms_mask_reference, suppressors
from kernels.roi_align import multi_level_roi_align, multi_level_roi_align_plain
from profiler.graphs.export import to_onnx, to_onnx_many

SuppressionSets = Callable[[str, int, int, torch.Generator], tuple[Tensor, Tensor]]
SETS = 500
"""Of each of the 20 kinds below: 10,000 in all."""
_LITERT_POOL = litert_ops.decompositions()[torch.ops.smnas.multi_level_roi_align.default]
both_forms = pytest.mark.parametrize("pool", [multi_level_roi_align_plain, _LITERT_POOL], ids=["plain", "litert"])


def _boxes(batch: int, count: int, side: float, generator: torch.Generator) -> Tensor:
    corner = torch.rand(batch, count, 2, generator=generator) * side
    size = torch.rand(batch, count, 2, generator=generator) ** 2 * side
    return torch.cat([corner, (corner + size).clamp(max=side)], dim=2)


@pytest.mark.parametrize("kind", ["random", "ties", "identical", "no area", "classes"])
def test_suppression_equals_torchvisions_on_ten_thousand_sets(kind: str, suppression_sets: SuppressionSets) -> None:
    generator = torch.Generator().manual_seed(len(kind))
    for count, threshold in ((0, 0.5), (1, 0.5), (12, 0.5), (24, 0.7 if kind != "ties" else 1 / 3)):
        boxes, scores = suppression_sets(kind, SETS, count, generator)
        keep = nms_mask_plain(boxes, scores, threshold)
        expected = torch.zeros_like(keep)
        for row in range(SETS):
            expected[row, nms(boxes[row], scores[row], threshold)] = True
        assert torch.equal(keep, expected), (kind, count)
        assert count < 2 or 0 < int(keep.sum()) < keep.numel()  # something was kept and something dropped


def test_boxes_that_are_none_drop_what_torchvisions_drop() -> None:
    inf, nan = float("inf"), float("nan")
    odd = [[0, 0, inf, inf], [-inf, -inf, inf, inf], [nan, 0, 4, 4], [0, 0, 4, nan], [4, 4, 0, 0], [0, 4, 4, 0]]
    boxes = torch.tensor([*odd, *odd, [0, 0, 4, 4], [0, 0, 4, 4]])
    scores = torch.linspace(1.0, 0.1, len(boxes))
    kept = nms_mask_plain(boxes[None], scores[None], 0.5)[0].nonzero().flatten()
    assert kept.tolist() == nms(boxes, scores, 0.5).sort().values.tolist() == list(range(len(boxes) - 1))


def test_classes_are_apart_as_in_torchvisions_batched_form() -> None:
    generator = torch.Generator().manual_seed(5)
    boxes, scores = _boxes(1, 300, 128.0, generator), torch.rand(1, 300, generator=generator) + 0.01
    classes = torch.randint(0, 7, (300,), generator=generator)
    keep = nms_mask_plain(boxes + (classes * 129.0)[None, :, None], scores, 0.5)[0]
    assert torch.equal(keep.nonzero().squeeze(1), batched_nms(boxes[0], scores[0], classes, 0.5).sort().values)


def test_a_box_without_a_score_is_not_kept_and_drops_nothing() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9]]])
    assert nms_mask_plain(boxes, torch.tensor([[0.0, 0.5, 0.4]]), 0.5).tolist() == [[False, True, False]]
    assert nms_mask_plain(boxes, torch.tensor([[-1.0, 0.0, 0.4]]), 0.5).tolist() == [[False, False, True]]


@pytest.mark.parametrize("count", [2, 3, 17, 64])
def test_the_longest_chain_takes_a_round_for_every_box(count: int) -> None:
    # each box overlaps the one before and the one behind: kept, dropped, kept, ... and each known after the one before
    left = torch.arange(count, dtype=torch.float32) * 4
    boxes = torch.stack([left, torch.zeros(count), left + 10, torch.full((count,), 10.0)], dim=1)[None]
    scores = torch.linspace(1.0, 0.5, count)[None]
    expected = nms_mask_reference(boxes, scores, 0.4)
    assert expected[0].tolist() == [index % 2 == 0 for index in range(count)]
    against = suppressors(boxes, scores, 0.4)
    keep = torch.ones(1, count, dtype=torch.bool)
    rounds = 0
    while not torch.equal(keep, expected):
        keep = ~(against & keep[:, None]).any(2)
        rounds += 1
    assert rounds == count - 1
    assert torch.equal(greedy_keep(scores > 0, against), expected)


@both_forms
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_pooling_equals_torchvisions(levels: int, pool: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(levels)
    features = [torch.randn(2, 5, 64 >> level, 48 >> level, generator=generator) for level in range(levels)]
    boxes = _boxes(2, 40, 190.0, generator)
    strides = [4 << level for level in range(levels)]
    found = pool(features, boxes, strides, 7, 224.0)
    names = [str(level) for level in range(levels)]
    theirs = MultiScaleRoIAlign(names, 7, 2)(dict(zip(names, features, strict=True)), list(boxes), [(256, 192)] * 2)
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-4)


@both_forms
def test_pooling_over_the_border_and_without_area_equals_torchvisions(pool: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(1, 3, 9, 13, generator=generator)
    boxes = _boxes(1, 60, 60.0, generator) + torch.randn(1, 60, 1, generator=generator) * 8
    boxes[0, :10, 2:] = boxes[0, :10, :2]
    boxes[0, 10] = 0.0
    boxes[0, 11] = torch.tensor([52.0, 36.0, 52.0, 36.0])
    found = pool([feature], boxes, [4], 7, 112.0)
    torch.testing.assert_close(found, roi_align(feature, [boxes[0]], 7, 0.25, 2), atol=1e-5, rtol=1e-4)


def test_half_precision_maps_are_pooled_in_float32() -> None:
    generator = torch.Generator().manual_seed(1)
    feature, boxes = torch.randn(1, 3, 32, 32, generator=generator).half(), _boxes(1, 9, 120.0, generator)
    found = multi_level_roi_align_plain([feature], boxes, [4], 7, 112.0)
    assert found.dtype is torch.float16
    wide = multi_level_roi_align_plain([feature.float()], boxes, [4], 7, 112.0)
    torch.testing.assert_close(found, wide.half())


def test_the_operator_declares_itself_correctly() -> None:
    torch.library.opcheck(
        greedy_keep,
        (torch.rand(2, 8) > 0.3, torch.rand(2, 8, 8).triu(1).mT > 0.5),
        test_utils=("test_schema", "test_faketensor"),
    )


class Both(nn.Module):
    """Two suppressions and a pooling, so that loops and maps must not be mixed up."""

    def forward(self, fine: Tensor, coarse: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loose, strict = nms_mask(boxes, scores, 0.7), nms_mask(boxes, scores, 0.3)
        return loose, strict, multi_level_roi_align([fine, coarse], boxes, [4, 8], 7, 56.0)


def _inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = (torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 3, 8, 8, generator=generator))
    return *maps, _boxes(2, 40, 64.0, generator), torch.rand(2, 40, generator=generator)


@pytest.fixture(scope="module")
def graph() -> onnxruntime.InferenceSession:
    model = to_onnx(Both(), _inputs(0), input_names=["fine", "coarse", "boxes", "scores"], operators="plain")
    operators = Counter(node.op_type for node in model.graph.node)
    assert not {"NonMaxSuppression", "RoiAlign", "NonZero", "Shape", "Range"} & set(operators)
    assert (operators["Loop"], operators["GridSample"]) == (2, 1)
    sizes = [size for value in model.graph.value_info for size in value.type.tensor_type.shape.dim]
    assert sizes
    assert all(size.HasField("dim_value") for size in sizes)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["random", "ties", "no area", "one level empty", "no candidate", "a chain"])
def test_the_graph_equals_eager(graph: onnxruntime.InferenceSession, case: str) -> None:
    fine, coarse, boxes, scores = _inputs(3)
    if case == "ties":
        boxes, scores = (boxes / 16).round() * 16, (scores * 3).ceil() / 3
    elif case == "no area":
        boxes = torch.zeros_like(boxes)
    elif case == "one level empty":
        boxes = torch.cat([boxes[..., :2], boxes[..., :2] + 1], dim=2)
    elif case == "no candidate":
        scores = torch.zeros_like(scores)
    elif case == "a chain":
        left = torch.arange(40.0)
        boxes = torch.stack([left, torch.zeros(40), left + 10, torch.full((40,), 10.0)], dim=1).expand(2, -1, -1)
        scores = torch.linspace(1.0, 0.5, 40).expand(2, -1)
    feeds = {"fine": fine, "coarse": coarse, "boxes": boxes, "scores": scores}
    loose, strict, pooled = graph.run(None, {name: tensor.contiguous().numpy() for name, tensor in feeds.items()})
    expected = Both()(fine, coarse, boxes, scores)
    assert np.array_equal(loose, expected[0].numpy())
    assert np.array_equal(strict, expected[1].numpy())
    np.testing.assert_allclose(pooled, expected[2].numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_graph_cut_out_of_a_group_keeps_what_its_loop_reads() -> None:
    inputs = [_inputs(1), _inputs(2)]
    models = to_onnx_many([(Both(), one) for one in inputs], operators="plain")
    for model, tensors in zip(models, inputs, strict=True):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
        for one, expected in zip(found, Both()(*tensors), strict=True):
            np.testing.assert_allclose(one, expected.numpy(), atol=1e-4)
