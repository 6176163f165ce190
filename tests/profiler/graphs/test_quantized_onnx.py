"""Eight-bit integers where they were asked for, and numbers that stay close."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from profiler.graphs.export import ExportError, to_onnx
from profiler.graphs.quantized_onnx import quantized_onnx


class Two(nn.Module):
    """A convolution to quantise and one to leave."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.body(x)))  # type: ignore[no-any-return]


def _images(count: int, seed: int) -> list[dict[str, NDArray[np.float32]]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"x": torch.rand(1, 3, 8, 8, generator=generator).numpy()} for _ in range(count)]


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    torch.manual_seed(0)
    model = to_onnx(Two(), [torch.rand(1, 3, 8, 8)], input_names=["x"])
    model.metadata_props.add(key="kept", value="yes")
    assert [node.name for node in model.graph.node] == ["body/Conv_0", "/Relu_1", "last/Conv_2"]
    return model


@pytest.mark.parametrize("symmetric", [False, True])
def test_only_what_was_named_is_quantised_and_stays_close(model: onnx.ModelProto, symmetric: bool) -> None:
    found = quantized_onnx(model, _images(8, 0), ["body/Conv_0"], symmetric=symmetric)
    onnx.checker.check_model(found, full_check=True)
    makers = {name: node for node in found.graph.node for name in node.output}
    readers = {node.name: node for node in found.graph.node if node.op_type == "Conv"}
    body, last = (next(node for name, node in readers.items() if part in name) for part in ("body", "last"))
    assert [makers[name].op_type for name in body.input[:2]] == ["DequantizeLinear"] * 2
    assert last.input[1] not in makers  # its weights are as they were
    counts = Counter(node.op_type for node in found.graph.node)
    assert (counts["QuantizeLinear"] > 1) != symmetric
    point = next(one for one in found.graph.initializer if one.name == makers[body.input[0]].input[2])
    assert point.data_type == (onnx.TensorProto.INT8 if symmetric else onnx.TensorProto.UINT8)
    assert not symmetric or not onnx.numpy_helper.to_array(point).any()
    weights = next(
        one for one in found.graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 4
    )
    assert weights.dims[0] == 8
    scale = next(one for one in found.graph.initializer if one.name == makers[body.input[1]].input[1])
    assert list(scale.dims) == [8]  # one a channel
    assert {one.key: one.value for one in found.metadata_props} == {"kept": "yes"}
    both = [
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        for one in (model, found)
    ]
    for feeds in _images(4, 1):
        exact, rounded = (session.run(None, feeds)[0] for session in both)
        assert 0 < np.abs(exact - rounded).max() < 0.03 * np.abs(exact).max()


def test_the_same_images_give_the_same_bytes(model: onnx.ModelProto) -> None:
    one, other = (
        quantized_onnx(model, _images(3, 0), ["body/Conv_0"], symmetric=False).SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert one == other


def test_what_can_not_be_quantised_is_said(model: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="no convolution"):
        quantized_onnx(model, _images(1, 0), ["nothing"], symmetric=False)
    with pytest.raises(ExportError, match="was not quantised"):
        quantized_onnx(model, [], ["body/Conv_0"], symmetric=False)
