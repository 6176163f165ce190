"""Workloads: inputs are drawn as specified, operations are counted from shapes alone."""

import pytest
import torch
from torch import nn

from profiler.workload import TensorSpec, Workload, count_flops, random_inputs


def drawn(spec: TensorSpec, seed: int = 0) -> torch.Tensor:
    return random_inputs((spec,), seed)[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8", "bool"])
def test_an_input_has_the_shape_and_type_of_its_spec(dtype: str) -> None:
    tensor = drawn(TensorSpec((2, 3, 5), dtype))
    assert tensor.shape == (2, 3, 5)
    assert tensor.dtype == getattr(torch, dtype)
    meta = TensorSpec((2, 3, 5), dtype).meta()
    assert meta.is_meta
    assert (meta.shape, meta.dtype) == (tensor.shape, tensor.dtype)


def test_unbounded_floats_are_standard_normal() -> None:
    tensor = drawn(TensorSpec((100, 100)))
    assert abs(tensor.mean().item()) < 0.05
    assert tensor.std().item() == pytest.approx(1.0, abs=0.05)


def test_bounds_are_kept_and_reached() -> None:
    integers = drawn(TensorSpec((1000,), "int64", 2, 5))
    assert set(integers.tolist()) == {2, 3, 4}
    floats = drawn(TensorSpec((1000,), "float32", -3.0, 7.0))
    assert floats.min() >= -3
    assert floats.max() < 7
    assert floats.mean().item() == pytest.approx(2.0, abs=0.5)
    assert set(drawn(TensorSpec((20000,), "uint8")).tolist()) == set(range(256))


def test_boxes_have_ordered_corners_inside_the_bounds() -> None:
    boxes = drawn(TensorSpec((2, 50, 4), low=0, high=640, draw="boxes"))
    assert boxes.shape == (2, 50, 4)
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 640
    # Two uniform corners lie a third of the range apart on average.
    assert (boxes[..., 2] - boxes[..., 0]).mean().item() == pytest.approx(640 / 3, rel=0.2)


def test_one_seed_one_input() -> None:
    specs = (TensorSpec((4, 4)), TensorSpec((3,), "int32", 0, 9))
    first, again, other = (random_inputs(specs, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2,), "float8"), "dtype must be one of"),
        (((0, 3),), "at least 1"),
        (((3,), "float32", 1.0), "come together"),
        (((3,), "float32", 2.0, 2.0), "low < high"),
        (((3,), "int64"), "needs low and high"),
        (((3, 5), "float32", 0.0, 1.0, "boxes"), "last axis of 4"),
        (((3, 4), "float32", None, None, "boxes"), "need bounds"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorSpec(*arguments)  # type: ignore[arg-type]


def test_convolution_flops_follow_the_closed_form() -> None:
    conv = nn.Conv2d(12, 20, (3, 5), stride=2, padding=(1, 2), groups=4, bias=False)
    out_height, out_width = 9, 11
    expected = 2 * (12 // 4) * 3 * 5 * 20 * out_height * out_width * 2  # multiply-add, batch of 2
    assert count_flops(conv, (TensorSpec((2, 12, 17, 21)),)) == expected


class _Attention(nn.Module):
    """Two inputs, a buffer, and a tensor made inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.5))
        self.project = nn.Linear(16, 32)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        offset = torch.arange(query.shape[1], device=query.device, dtype=query.dtype)
        return (self.project(query) * self.scale) @ self.project(key).transpose(1, 2) + offset[:, None]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counting_needs_no_weights_and_several_inputs_work(device: str) -> None:
    with torch.device(device):
        module = _Attention()
    workload = Workload("attention", "attention|2x7x16", module, (TensorSpec((2, 7, 16)), TensorSpec((2, 9, 16))))
    expected = 2 * 2 * (7 + 9) * 16 * 32 + 2 * 2 * 7 * 9 * 32
    assert workload.flops == expected
    assert workload.parameters == 16 * 32 + 32
    assert workload.is_meta == (device == "meta")
    # Counting leaves the module as it was.
    assert all(parameter.device.type == device for parameter in module.parameters())


def test_shared_parameters_count_once() -> None:
    linear = nn.Linear(4, 4, bias=False)
    assert Workload("twice", "twice", nn.Sequential(linear, linear), (TensorSpec((1, 4)),)).parameters == 16
