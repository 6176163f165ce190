"""Time by operator inside ONNX Runtime, by its profiler: a whole network against its blocks.

ONNX Runtime writes one event per node that it runs after graph optimization: fused nodes, and the reorder nodes that
convert feature maps to and from its blocked layout, have types of their own. The rest of a run is runtime overhead.
"""

import importlib
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from profiler.backends.onnxruntime import OnnxRuntimeBackend, session_options
from profiler.graphs.export import to_onnx_many
from profiler.graphs.quantized_onnx import quantized_block
from profiler.precision import typed_copy

__all__ = ["OperatorDifference", "OperatorTimes", "Residual", "operator_times", "residual"]

LAYOUT_OPERATORS = frozenset({"ReorderInput", "ReorderOutput", "Transpose", "Cast", "MemcpyFromHost", "MemcpyToHost"})
"""Node types that only change the layout in memory."""
_HOLDS_OTHERS = frozenset({"If", "Loop", "Scan"})
"""Node types whose time is that of the nodes inside, which have their own events."""


@dataclass(frozen=True)
class OperatorTimes:
    """One module's run, by node type.

    Attributes:
        kernel_ms: time in kernels by node type.
        run_ms: median of a run as the runtime measures it, under profiling.
    """

    kernel_ms: Mapping[str, float]
    nodes: Mapping[str, int]
    run_ms: float

    @property
    def overhead_ms(self) -> float:
        """Time of a run outside its kernels."""
        return self.run_ms - sum(self.kernel_ms.values())


@dataclass(frozen=True)
class OperatorDifference:
    """One node type in the whole network and in all of its blocks."""

    operator: str
    whole_ms: float
    parts_ms: float
    whole_nodes: int
    parts_nodes: int

    @property
    def difference_ms(self) -> float:
        """Extra time of the whole network."""
        return self.whole_ms - self.parts_ms


@dataclass(frozen=True)
class Residual:
    """Difference between a network's latency and the sum of its blocks', in four summands.

    Attributes:
        overhead_ms: difference outside kernels: every block starts a session's run. On a busy machine it includes
            waiting for a core, more so in longer runs.
        layout_ms: nodes that only change the layout in memory, which the cuts add or remove.
        fusion_ms: node types of which network and blocks run different numbers.
        kernels_ms: node types of which both run equal numbers: the same kernels on other caches and memory.
        operators: by node type, the largest difference first.
    """

    whole_ms: float
    parts_ms: float
    overhead_ms: float
    layout_ms: float
    fusion_ms: float
    kernels_ms: float
    operators: tuple[OperatorDifference, ...]


def operator_times(
    backend: OnnxRuntimeBackend,
    items: Sequence[tuple[nn.Module, Sequence[Tensor]]],
    precision: str = "fp32",
    runs: int = 30,
) -> list[OperatorTimes]:
    """Run modules under ONNX Runtime's profiler, with the backend's provider and threads.

    Args:
        backend: decides provider and threads.
        items: modules with real weights, each with one CPU tensor per positional argument; exported together, as blocks
            are for measuring.
        precision: of weights and floating-point inputs.
        runs: measured runs, after the same number of warm-up runs; medians resist a busy neighbour.
    """
    typed = [typed_copy(module, inputs, precision, "cpu") for module, inputs in items]
    models = to_onnx_many(typed)
    if precision == "int8":
        models = [quantized_block(model, *item, symmetric=False) for model, item in zip(models, typed, strict=True)]
    return [
        _profiled(backend, model, inputs, precision, runs) for model, (_, inputs) in zip(models, typed, strict=True)
    ]


def _profiled(
    backend: OnnxRuntimeBackend, model: onnx.ModelProto, inputs: Sequence[Tensor], precision: str, runs: int
) -> OperatorTimes:
    runtime: Any = importlib.import_module("onnxruntime")
    with tempfile.TemporaryDirectory(prefix="onnx-profile-") as folder:
        options = session_options(runtime, backend.threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=backend.provider_list(precision)
        )
        wanted = {value.name for value in session.get_inputs()}
        names = [value.name for value in model.graph.input]
        feeds = {name: t.contiguous().numpy() for name, t in zip(names, inputs, strict=True) if name in wanted}
        for _ in range(2 * runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return read_events(events, 2 * runs)


def read_events(events: Sequence[Mapping[str, Any]], runs: int) -> OperatorTimes:
    """Sum up an ONNX Runtime trace of ``runs`` runs by node type.

    Each node counts with the median of its later half, times its occurrences per run.
    """
    nodes: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    whole: list[float] = []
    for event in events:
        facts = event.get("args", {})
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            # Nodes may lack a name; the index distinguishes them.
            nodes[event["name"], int(facts.get("node_index", -1)), facts["op_name"]].append(event["dur"] / 1e3)
        elif event.get("name") == "model_run":
            whole.append(event["dur"] / 1e3)
    kernel_ms: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for (_, _, operator), durations in nodes.items():
        if operator in _HOLDS_OTHERS:
            continue
        times = round(len(durations) / runs)
        kernel_ms[operator] += statistics.median(durations[len(durations) // 2 :]) * times
        counts[operator] += times
    return OperatorTimes(dict(kernel_ms), dict(counts), statistics.median(whole[len(whole) // 2 :]))


def residual(whole: OperatorTimes, parts: Sequence[OperatorTimes]) -> Residual:
    """Compare a network with its blocks, repeated ones given as often as they occur."""
    operators = sorted({*whole.nodes, *(operator for part in parts for operator in part.nodes)})
    rows = [
        OperatorDifference(
            operator,
            whole.kernel_ms.get(operator, 0.0),
            sum(part.kernel_ms.get(operator, 0.0) for part in parts),
            whole.nodes.get(operator, 0),
            sum(part.nodes.get(operator, 0) for part in parts),
        )
        for operator in operators
    ]
    layout = [row for row in rows if row.operator in LAYOUT_OPERATORS]
    rest = [row for row in rows if row.operator not in LAYOUT_OPERATORS]
    return Residual(
        whole_ms=whole.run_ms,
        parts_ms=sum(part.run_ms for part in parts),
        overhead_ms=whole.overhead_ms - sum(part.overhead_ms for part in parts),
        layout_ms=sum(row.difference_ms for row in layout),
        fusion_ms=sum(row.difference_ms for row in rest if row.whole_nodes != row.parts_nodes),
        kernels_ms=sum(row.difference_ms for row in rest if row.whole_nodes == row.parts_nodes),
        operators=tuple(sorted(rows, key=lambda row: -abs(row.difference_ms))),
    )
