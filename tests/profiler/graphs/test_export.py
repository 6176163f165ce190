"""Export: the graph computes what the module computes, and says nothing about this machine."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from profiler.graphs.export import OPSET, ExportError, in_modules, to_onnx, to_onnx_many

onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (extra cpu or gpu)")


class TwoInTwoOut(nn.Module):
    """A convolution with normalisation beside a gather by indices: floats and integers, dropout that must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, image: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        features = self.dropout(self.norm(self.conv(image)).relu())
        return features, features.flatten(2).mean(2).gather(1, index)


@pytest.fixture(scope="module")
def module() -> TwoInTwoOut:
    torch.manual_seed(0)
    return TwoInTwoOut()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 16, 16), torch.tensor([[0, 3], [7, 1]])


NAMES = {"input_names": ["image", "index"], "output_names": ["features", "picked"]}


@pytest.fixture(scope="module")
def exported(module: TwoInTwoOut, inputs: tuple[Tensor, Tensor]) -> bytes:
    return to_onnx(module, inputs, **NAMES).SerializeToString(deterministic=True)


def run(model: bytes, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


@pytest.mark.slow
def test_the_file_computes_what_the_module_computes(
    module: TwoInTwoOut, inputs: tuple[Tensor, Tensor], exported: bytes
) -> None:
    features, picked = run(exported, image=inputs[0].numpy(), index=inputs[1].numpy())
    assert module.training  # exported in evaluation mode, left as it was
    assert module.dropout.training
    module.eval()
    with torch.inference_mode():
        expected = module(*inputs)
    module.train()
    np.testing.assert_allclose(features, expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(picked, expected[1].numpy(), atol=1e-5)


def test_the_graph_is_named_and_typed(exported: bytes) -> None:
    model = onnx.load_from_string(exported)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["image", "index"]
    assert [value.name for value in model.graph.output] == ["features", "picked"]
    assert [entry.version for entry in model.opset_import if not entry.domain] == [OPSET]


def test_nodes_are_named_after_their_modules(exported: bytes) -> None:
    nodes = onnx.load_from_string(exported).graph.node
    assert len({node.name for node in nodes}) == len(nodes)
    assert [node.name.partition("/")[0] for node in nodes if node.op_type == "Conv"] == ["conv"]
    assert {node.op_type for node in nodes if in_modules(node, ["norm"])} >= {"InstanceNormalization"}
    assert not any(in_modules(node, ["nor", "con"]) for node in nodes)


def test_nothing_about_the_exporting_machine_is_in_the_file(exported: bytes) -> None:
    for trace in (b"stack_trace", b"site-packages", b".py", str(Path.home()).encode()):
        assert trace not in exported


def test_the_same_module_gives_the_same_bytes(
    module: TwoInTwoOut, inputs: tuple[Tensor, Tensor], exported: bytes
) -> None:
    assert to_onnx(module, inputs, **NAMES).SerializeToString(deterministic=True) == exported


def test_exporting_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    to_onnx(nn.ReLU(), (torch.ones(3),), input_names=["x"])
    assert capfd.readouterr() == ("", "")


def test_an_open_batch_runs_at_any_size() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    example = (torch.randn(2, 3, 9, 9),)
    model = to_onnx(module, example, input_names=["x"], output_names=["y"], dynamic_batch=True).SerializeToString()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 9, 9)
        (y,) = run(model, x=x.numpy())
        np.testing.assert_allclose(y, module(x).detach().numpy(), atol=1e-5)


def test_an_open_batch_needs_an_example_of_two() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        to_onnx(nn.ReLU(), (torch.zeros(1, 3),), input_names=["x"], output_names=["y"], dynamic_batch=True)


def test_a_module_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="meta device"):
        to_onnx(nn.Linear(3, 3, device="meta"), (torch.zeros(1, 3),), input_names=["x"], output_names=["y"])


@pytest.mark.slow
def test_a_model_cut_out_of_a_group_is_the_one_exported_alone() -> None:
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Conv2d(c, 8, 3, bias=False), nn.GroupNorm(2, 8), nn.ReLU()).eval() for c in (2, 4)]
    inputs = [(torch.randn(1, 2, 9, 9),), (torch.randn(1, 4, 7, 7),)]
    items = list(zip(modules, inputs, strict=True))
    for model, (module, tensors) in zip(to_onnx_many(items), items, strict=True):
        alone = to_onnx(module, tensors, input_names=["x"])
        onnx.checker.check_model(model, full_check=True)
        assert [node.op_type for node in model.graph.node] == [node.op_type for node in alone.graph.node]
        sizes = [sorted(tuple(value.dims) for value in each.graph.initializer) for each in (model, alone)]
        assert sizes[0] == sizes[1]
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {model.graph.input[0].name: tensors[0].numpy()})
        np.testing.assert_allclose(got, module(*tensors).detach().numpy(), atol=1e-5)


class Reshaped(nn.Module):
    """Filters as a matrix, twice: too many numbers for the exporter to fold by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 48, 3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight.flatten(1) @ x, self.weight.flatten(1) @ (x + 1)


def test_weights_are_kept_in_the_shape_in_which_they_are_used() -> None:
    torch.manual_seed(0)
    module, x = Reshaped().eval(), torch.randn(2, 432, 5)
    model = to_onnx(module, (x,), input_names=["x"])
    assert "Reshape" not in {node.op_type for node in model.graph.node}
    assert [list(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) > 1] == [[64, 432]]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(None, {"x": x.numpy()}), module(x), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-4)


class DataDependent(nn.Module):
    """Branches on a value, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x - 1


def test_a_module_without_an_onnx_form_fails_in_one_line() -> None:
    with pytest.raises(ExportError) as caught:
        to_onnx(DataDependent(), (torch.ones(3),), input_names=["x"], output_names=["y"])
    assert "\n" not in str(caught.value)


def test_a_wrong_number_of_output_names_is_an_error() -> None:
    with pytest.raises(ExportError, match="outputs must be"):
        to_onnx(nn.Identity(), (torch.ones(3),), input_names=["x"], output_names=["y", "z"])
