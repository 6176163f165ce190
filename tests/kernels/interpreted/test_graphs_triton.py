"""Graphs of modules while kernels are chosen: compiled they hold our operator, exported PyTorch's."""

from collections.abc import Iterator
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from kernels.dispatch import use
from kernels.group_norm import group_norm_relu
from profiler.graphs.export import to_onnx
from smnas.models.blocks import BasicBlock
from smnas.models.layers import standardized_together


@pytest.fixture
def block() -> BasicBlock:
    torch.manual_seed(0)
    return BasicBlock("gn-ws", 4, 8, 2, 2).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_function_follows_the_choice(x: Tensor) -> None:
    targets: list[set[str]] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.append({str(node.target) for node in graph.graph.nodes})
        return graph

    weight, bias = torch.rand(2, 4)

    def function(x: Tensor) -> Tensor:
        return group_norm_relu(x * 2, 2, weight, bias)

    compiled = torch.compile(function, backend=keep, fullgraph=True)
    expected = function(x)
    with use("triton"):
        torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-5)
    assert any("smnas.group_norm_relu" in target for target in targets[-1])
    with use("torch"):
        torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-5)
    assert not any("smnas.group_norm_relu" in target for target in targets[-1])


def test_an_exported_block_holds_pytorchs_operators_and_plain_onnx(block: BasicBlock, x: Tensor) -> None:
    with use("triton"):
        expected = block(x)
        program = torch.export.export(block, (x,))
        model = to_onnx(block, (x,), input_names=["x"])
    assert not [node for node in program.graph.nodes if "smnas" in str(node.target)]
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)


def test_weights_standardized_together_are_used_once_and_then_forgotten(block: BasicBlock, x: Tensor) -> None:
    expected = block(x)
    with use("triton"):
        with standardized_together(block):
            assert block.conv1.standardized is not None  # type: ignore[union-attr]
            torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=1e-4)
        assert block.conv1.standardized is None
    with standardized_together(block):
        assert block.conv1.standardized is None
