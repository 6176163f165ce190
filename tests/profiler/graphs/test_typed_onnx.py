"""Half precision in the graph: where it is, where it is not, and that the numbers stay close."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from profiler.errors import UserError
from profiler.graphs.export import ExportError, to_onnx
from profiler.graphs.typed_onnx import HALF_TYPES, dense_nodes, typed_onnx


class Block(nn.Module):
    """An image to a map, through all that a residual block has."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first((images.float() - 120.0) / 60.0)))
        return torch.nn.functional.interpolate(torch.relu(x + self.second(x)), scale_factor=2.0)


class Decode(nn.Module):
    """A map to boxes in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)
        self.register_buffer("centres", torch.arange(16.0).view(1, 16, 1) * 80 + 1001.3)

    def forward(self, x: Tensor) -> Tensor:
        deltas = self.conv(x).flatten(2).transpose(1, 2)
        assert isinstance(self.centres, Tensor)
        return deltas * 0.1 + self.centres


def _export(module: nn.Module, *inputs: Tensor) -> onnx.ModelProto:
    return to_onnx(module, inputs, input_names=[f"input_{index}" for index in range(len(inputs))])


def _run(model: onnx.ModelProto, *inputs: Tensor) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    types = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    feeds = {
        value.name: tensor.numpy().astype(types[value.type])
        for value, tensor in zip(session.get_inputs(), inputs, strict=True)
    }
    output: NDArray[np.float32] = session.run(None, feeds)[0].astype(np.float32)
    return output


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_block_is_half_from_end_to_end(images: Tensor, precision: str) -> None:
    typed = typed_onnx(_export(Block(), images), precision)
    half = HALF_TYPES[precision]
    types = _types(typed)
    assert len(dense_nodes(typed)) == 2
    assert all(types[node.output[0]] == half for node in dense_nodes(typed))
    assert types[typed.graph.output[0].name] == half
    assert TensorProto.FLOAT not in Counter(types[output] for node in typed.graph.node for output in node.output)
    floats = [one.name for one in typed.graph.initializer if one.data_type == TensorProto.FLOAT]
    assert all("scale" in name or "val" in name for name in floats), floats


def test_its_numbers_stay_close(images: Tensor) -> None:
    model = _export(Block(), images)
    typed = typed_onnx(model, "fp16")
    onnx.checker.check_model(typed, full_check=True)
    np.testing.assert_allclose(_run(typed, images), _run(model, images), atol=2e-2)
    bytes_of = sum(len(one.raw_data) for one in typed.graph.initializer)
    assert bytes_of < 0.7 * sum(len(one.raw_data) for one in model.graph.initializer)


def test_boxes_are_decoded_in_float32() -> None:
    x = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    model = _export(Decode(), x)
    typed = typed_onnx(model, "fp16")
    assert _types(typed)["input_0"] == TensorProto.FLOAT16
    assert typed.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    # half a pixel would be lost at 1024 and more
    np.testing.assert_allclose(_run(typed, x), _run(model, x), atol=2e-3)


@pytest.mark.slow
def test_a_named_module_stays_float32(images: Tensor) -> None:
    model = _export(Block(), images)
    typed = typed_onnx(model, "fp16", keep_fp32=("second",))
    onnx.checker.check_model(typed, full_check=True)
    kinds = {node.name.partition("/")[0]: _types(typed)[node.output[0]] for node in dense_nodes(typed)}
    assert kinds == {"first": TensorProto.FLOAT16, "second": TensorProto.FLOAT}
    np.testing.assert_allclose(_run(typed, images), _run(model, images), atol=2e-2)


def test_boxes_that_are_only_moved_stay_float32() -> None:
    class Move(nn.Module):
        def forward(self, boxes: Tensor) -> Tensor:
            return boxes.flatten(0, 1)[:, 2:] - 1.0

    typed = typed_onnx(_export(Move(), torch.rand(1, 5, 4)), "fp16")
    assert set(_types(typed).values()) <= {TensorProto.FLOAT, TensorProto.INT64}


def test_a_vector_that_a_matrix_product_reads_is_half() -> None:
    typed = typed_onnx(_export(nn.Linear(6, 3), torch.rand(2, 6)), "fp16")
    assert [_types(typed)[name] for name in ("input_0", typed.graph.output[0].name)] == [TensorProto.FLOAT16] * 2


def test_inputs_and_outputs_can_stay() -> None:
    x = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    model = _export(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), x)
    kept = typed_onnx(model, "fp16", keep_io=True)
    onnx.checker.check_model(kept, full_check=True)
    assert [value.name for value in kept.graph.output] == [value.name for value in model.graph.output]
    ends = (*kept.graph.input, *kept.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    assert all(_types(kept)[node.output[0]] == TensorProto.FLOAT16 for node in dense_nodes(kept))
    np.testing.assert_allclose(_run(kept, x), _run(model, x), atol=1e-2)


def test_the_model_given_is_left_as_it_was(images: Tensor) -> None:
    model = _export(Block(), images)
    before = model.SerializeToString(deterministic=True)
    assert typed_onnx(model, "fp32").SerializeToString(deterministic=True) == before
    first = typed_onnx(model, "fp16").SerializeToString(deterministic=True)
    assert first == typed_onnx(model, "fp16").SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before


def test_a_weight_that_does_not_fit_is_refused() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = 70000.0
    model = _export(layer, torch.rand(1, 2))
    with pytest.raises(ExportError, match="does not fit into fp16: it reaches 70000"):
        typed_onnx(model, "fp16")
    typed_onnx(model, "bf16")


def test_an_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="fp32, fp16, bf16, but got 'int3'"):
        typed_onnx(_export(nn.Linear(2, 2), torch.rand(1, 2)), "int3")
