"""Products with weights as convolutions: the same numbers, and no product left that has weights."""

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from profiler.graphs.export import to_onnx
from profiler.graphs.matmuls import matmuls_as_convolutions


class Products(nn.Module):
    """Rows times weights with and without a bias, weights times columns, and a product of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 4, bias=False)
        self.matrix = nn.Parameter(torch.randn(3, 6))

    def forward(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.second(torch.relu(self.first(rows)))
        mixed = self.matrix @ columns
        return out, mixed, mixed @ columns.transpose(1, 2)


def _run(model: onnx.ModelProto, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found: list[np.ndarray] = session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
    return found


def test_the_numbers_stay_and_the_products_go() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(7, 6), torch.randn(2, 6, 9)
    model = to_onnx(Products(), inputs, input_names=["rows", "columns"])
    before = model.SerializeToString(deterministic=True)
    rewritten = matmuls_as_convolutions(model)
    onnx.checker.check_model(rewritten, full_check=True)
    kinds = [node.op_type for node in rewritten.graph.node]
    assert kinds.count("Conv") == 3
    assert [kind for kind in kinds if kind in ("Gemm", "MatMul")] == ["MatMul"]  # of two maps
    for found, expected in zip(_run(rewritten, *inputs), _run(model, *inputs), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.SerializeToString(deterministic=True) == before
