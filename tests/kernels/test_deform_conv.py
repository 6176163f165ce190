"""Deformable convolution against its reference, torchvision, ordinary convolution and ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.deform_conv import deform_conv2d, deform_conv2d_reference
from profiler.graphs.export import to_onnx
from profiler.workload import TensorSpec, count_flops

# batch, channels in and out, map, kernel, stride, padding, dilation, size of the offsets in cells
CASES = {
    "same": (2, 3, 4, (7, 9), (3, 3), 1, 1, 1, 1.5),
    "strided": (1, 2, 5, (9, 8), (3, 3), 2, 1, 1, 1.0),
    "dilated": (2, 4, 2, (8, 8), (3, 3), 1, 2, 2, 2.0),
    "strided and dilated": (1, 3, 3, (11, 10), (3, 3), 2, 3, 3, 1.0),
    "one tap": (3, 4, 4, (5, 4), (1, 1), 1, 0, 1, 3.0),
    "flat filter": (1, 2, 3, (6, 7), (1, 3), 1, 0, 1, 1.0),
    "mostly outside": (1, 3, 2, (4, 4), (3, 3), 1, 1, 1, 6.0),
    "one cell": (2, 3, 2, (1, 1), (3, 3), 1, 1, 1, 0.7),
    "one row": (1, 3, 2, (1, 6), (3, 3), 1, 1, 1, 0.7),
    "no image": (0, 3, 2, (4, 5), (3, 3), 1, 1, 1, 1.0),
}


def draw(name: str, dtype: torch.dtype = torch.float64) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
    batch, channels, out, (height, width), (kh, kw), stride, padding, dilation, reach = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    rows = (height + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    columns = (width + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    shapes = ((batch, channels, height, width), (batch, 2 * kh * kw, rows, columns), (out, channels, kh, kw))
    x, offset, weight = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return (x, offset * reach, weight), (stride, padding, dilation)


def torchvisions(x: Tensor, offset: Tensor, weight: Tensor, settings: tuple[int, int, int]) -> Tensor:
    out: Tensor = torchvision.ops.deform_conv2d(x, offset, weight, None, *settings)
    return out


@pytest.mark.parametrize("name", CASES)
def test_it_equals_torchvisions_and_the_reference_with_gradients(name: str) -> None:
    tensors, settings = draw(name)
    x, offset, weight = leaves = tuple(tensor.requires_grad_() for tensor in tensors)
    ours = deform_conv2d(x, offset, weight, *settings)
    upstream = torch.randn(ours.shape, dtype=ours.dtype)
    mine = torch.autograd.grad(ours, leaves, upstream, retain_graph=True)
    for other in (deform_conv2d_reference(x, offset, weight, *settings), torchvisions(x, offset, weight, settings)):
        torch.testing.assert_close(ours, other, atol=1e-10, rtol=1e-10)
        theirs = torch.autograd.grad(other, leaves, upstream)
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["same", "strided", "dilated", "one cell"])
def test_without_offsets_it_is_a_convolution(name: str) -> None:
    (x, offset, weight), (stride, padding, dilation) = draw(name)
    still = deform_conv2d(x, torch.zeros_like(offset), weight, stride, padding, dilation)
    torch.testing.assert_close(still, F.conv2d(x, weight, None, stride, padding, dilation))


def test_whole_offsets_move_the_image() -> None:
    (x, offset, weight), _ = draw("one tap")
    offset = torch.zeros_like(offset)
    offset[:, 0], offset[:, 1] = 1.0, -2.0
    moved = torch.zeros_like(x)
    moved[:, :, :-1, 2:] = x[:, :, 1:, :-2]
    torch.testing.assert_close(deform_conv2d(x, offset, weight), F.conv2d(moved, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_read_at_full_precision(dtype: torch.dtype) -> None:
    (x, offset, weight), settings = draw("same", torch.float32)
    out = deform_conv2d(x.to(dtype), offset, weight, *settings)
    assert out.dtype is dtype
    torch.testing.assert_close(out, deform_conv2d(x.to(dtype).float(), offset, weight, *settings).to(dtype))


class Deformed(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        return deform_conv2d(x, offset, self.weight, 1, 1, 1)


@pytest.mark.slow
def test_the_exported_graph_is_plain_onnx_and_equals_eager() -> None:
    (x, offset, weight), _ = draw("same", torch.float32)
    model = to_onnx(Deformed(weight), (x, offset), input_names=["x", "offset"])
    assert {node.domain for node in model.graph.node} == {""}
    assert "DeformConv" not in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for scale in (0.0, 1.0, 5.0):
        (found,) = session.run(None, {"x": x.numpy(), "offset": (offset * scale).numpy()})
        np.testing.assert_allclose(found, deform_conv2d(x, offset * scale, weight, 1, 1, 1).numpy(), atol=1e-5)


def test_its_operations_are_counted_as_a_convolutions() -> None:
    inputs = (TensorSpec((2, 3, 7, 9)), TensorSpec((2, 18, 7, 9)))
    assert count_flops(Deformed(torch.zeros(4, 3, 3, 3)), inputs) == 2 * 2 * 9 * 3 * 4 * 7 * 9
