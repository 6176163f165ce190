"""Engines as a backend of latency tables: built once, found again, and timed on what they are given."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from profiler.backends.engine_backend import EngineBackend
from profiler.devices import Device, gpu_sheets
from profiler.engines.ahead_of_time import build_ahead
from profiler.engines.store import EngineStore
from profiler.engines.tensorrt import EngineBuildError
from profiler.errors import BackendUnavailableError
from profiler.measuring.profile import ProfileSettings, measurement_target, profile_workloads
from profiler.table.latency_table import LatencyTable
from profiler.timing.measurement import TimingSettings
from profiler.workload import TensorSpec, Workload

STAND_INS = next(folder for folder in Path(__file__).parents if folder.name == "tests") / "stand_ins"

L4 = Device("NVIDIA L4", "cuda", sheet=gpu_sheets()["l4"])
FAST = TimingSettings(min_samples=3, max_samples=3, warmup_runs=1, warmup_s=0)
Make = Callable[[Device], EngineBackend]


class Block(nn.Module):
    """A product, and something after it that some builder may refuse."""

    def __init__(self, after: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.fc = nn.Linear(8, 4)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.fc(x))


def workload(name: str, module: nn.Module) -> Workload:
    return Workload(name, f"{name}|2x8", module, (TensorSpec((2, 8)),))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(STAND_INS))
    module = importlib.import_module("tensorrt_stub")
    monkeypatch.setattr(module, "compiled", [])
    return module


@pytest.fixture
def make(stub: Any, tmp_path: Path) -> Make:
    def make_backend(device: Device) -> EngineBackend:
        return EngineBackend(device, 1, "tensorrt_stub", store=EngineStore(tmp_path), place=torch.device("cpu"))

    return make_backend


@pytest.mark.slow
def test_an_engine_computes_what_the_module_does_and_is_built_once(make: Make, stub: Any, tmp_path: Path) -> None:
    module, x = Block().train(), torch.randn(2, 8)
    session = make(L4).prepare(module, [x])
    assert module.training
    with session:
        session.run()
    np.testing.assert_allclose(session.outputs()[0], module(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    (engine,) = tmp_path.glob("*.engine")
    written = engine.stat().st_mtime_ns
    again = make(L4).prepare(module, [x])
    assert engine.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.outputs()[0], session.outputs()[0])
    # its kernels were compiled by the first process and read by the second
    assert len(stub.compiled) == 1


@pytest.mark.slow
def test_an_engine_tells_what_it_is(make: Make) -> None:
    facts = make(L4).prepare(Block(), [torch.randn(2, 8)]).describe()
    assert facts["tensorrt_stub"] == "9.8.7"
    assert facts["compute_capability"] == "8.9"
    assert facts["dense_layers"] == 1
    assert facts["layer_types"] == {"fp32": 1}
    assert facts["layers_in_precision"] == 1
    assert len(facts["engine_sha256"]) == 64


@pytest.mark.slow
def test_half_precision_reaches_the_layers_or_is_an_error(
    make: Make, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = Block(), torch.randn(2, 8)
    session = make(L4).prepare(module, [x], "fp16")
    assert session.describe()["layers_in_precision"] == 1
    np.testing.assert_allclose(session.outputs()[0], module(x).detach().numpy(), rtol=2e-3, atol=2e-3)
    monkeypatch.setattr(stub._Engine, "get_tensor_dtype", lambda *_: stub.SimpleNamespace(name="FLOAT"))
    inspected = {"Layers": [{"Outputs": [{"Format/Datatype": "Row major linear FP32"}]}]}
    monkeypatch.setattr(
        stub._Engine,
        "create_engine_inspector",
        lambda _: stub.SimpleNamespace(get_engine_information=lambda _: stub.json.dumps(inspected)),
    )
    monkeypatch.setattr(stub._Context, "execute_async_v3", lambda *_: True)
    with pytest.raises(EngineBuildError, match=r"fp16 was requested, but the engine's layers give \{'fp32': 1\}"):
        make(L4).prepare(module, [x], "fp16")


@pytest.mark.slow
def test_engines_that_were_built_ahead_are_found(make: Make, tmp_path: Path) -> None:
    build_ahead([workload("block", Block())], EngineStore(tmp_path), ["8.9"], backend="tensorrt_stub")
    (engine,) = tmp_path.glob("*.engine")
    make(L4).prepare(Block(), [torch.randn(2, 8)])
    assert list(tmp_path.glob("*.engine")) == [engine]


@pytest.mark.slow
def test_a_table_is_filled_and_what_can_not_be_built_is_a_row_with_its_reason(make: Make, tmp_path: Path) -> None:
    backend = make(L4)
    blocks = [workload("good", Block()), workload("unread", Block(torch.sin)), workload("unbuilt", Block(torch.tanh))]
    with LatencyTable(tmp_path / "latency.db") as table:
        report = profile_workloads(
            blocks, table, backend, rng=np.random.default_rng(0), settings=ProfileSettings(timing=FAST)
        )
        rows = {row.name: row for row in table.current(measurement_target(backend)).values()}
    assert report.measured == 3
    assert {name for name, row in rows.items() if row.status == "failed"} == {"unread", "unbuilt"}
    assert "Sin is unknown" in rows["unread"].reason
    assert "no kernel for this" in rows["unbuilt"].reason
    assert rows["good"].target.device == "NVIDIA L4"
    assert rows["good"].conditions["session"]["layer_types"] == {"fp32": 1}


def test_another_capability_is_refused_with_the_ways_out(make: Make) -> None:
    h100 = Device("NVIDIA H100", "cuda", sheet=gpu_sheets()["h100"])
    with pytest.raises(BackendUnavailableError, match=r"builds for .* 8\.9, 12\.0, but NVIDIA H100 has 9\.0"):
        make(h100)
