"""ONNX Runtime's own profile: real traces of a whole and its parts, and a residual that adds up."""

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (extra cpu or gpu)")

from profiler.backends.onnxruntime import OnnxRuntimeBackend
from profiler.devices import cpu_device
from profiler.measuring.onnx_profile import OperatorTimes, operator_times, read_events, residual


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def test_a_whole_converts_its_layout_less_often_than_its_parts() -> None:
    """Each part enters and leaves the blocked layout; the whole does it once. And a ReLU is fused in both."""
    backend = OnnxRuntimeBackend(cpu_device(), 1)
    block, image = _Block(), torch.randn(1, 16, 24, 24)
    together = nn.Sequential(block, _Block(), _Block())
    part, whole = operator_times(backend, [(block, [image]), (together, [image])], runs=4)
    assert "Relu" not in {**part.nodes, **whole.nodes}
    assert sum(count for kind, count in whole.nodes.items() if "Conv" in kind) == 3
    assert 0 < sum(whole.kernel_ms.values()) < whole.run_ms
    found = residual(whole, [part] * 3)
    by_type = {row.operator: row for row in found.operators}
    reorders = [row for kind, row in by_type.items() if kind.startswith("Reorder")]
    assert sum(row.whole_nodes for row in reorders) <= sum(row.parts_nodes for row in reorders)
    shares = found.overhead_ms + found.layout_ms + found.fusion_ms + found.kernels_ms
    assert shares == pytest.approx(found.whole_ms - found.parts_ms)


def test_a_trace_is_summed_up_by_hand() -> None:
    def node(name: str, index: int, kind: str, microseconds: int) -> dict[str, object]:
        facts = {"op_name": kind, "node_index": str(index)}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": facts}

    events = [
        event
        for run in range(4)
        for event in (
            node("", 0, "Conv", 100 if run else 9000),  # slow at first
            node("", 1, "Conv", 50),
            node("", 2, "Loop", 500),  # what is inside it has events of its own
            node("body", 0, "Add", 7),
            node("body", 0, "Add", 7),
            {"cat": "Session", "name": "model_run", "dur": 300},
        )
    ]
    found = read_events(events, 4)
    assert found.kernel_ms == pytest.approx({"Conv": 0.15, "Add": 0.014})
    assert found.nodes == {"Conv": 2, "Add": 2}
    assert found.overhead_ms == pytest.approx(0.3 - 0.164)


def test_the_four_shares_are_told_apart() -> None:
    whole = OperatorTimes(
        {"Conv": 1.0, "ReorderInput": 0.1, "FusedAdd": 0.2}, {"Conv": 2, "ReorderInput": 1, "FusedAdd": 1}, 1.5
    )
    part = OperatorTimes({"Conv": 0.4, "ReorderInput": 0.1, "Add": 0.2}, {"Conv": 1, "ReorderInput": 1, "Add": 1}, 0.9)
    found = residual(whole, [part, part])
    assert found.overhead_ms == pytest.approx(0.2 - 0.4)
    assert found.layout_ms == pytest.approx(0.1 - 0.2)
    assert found.fusion_ms == pytest.approx(0.2 - 0.4)
    assert found.kernels_ms == pytest.approx(1.0 - 0.8)
    assert found.operators[0].operator == "Add"
