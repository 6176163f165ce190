"""Engines ahead of time: built once, resumed, failures kept; and the true TensorRT-RTX where it is installed."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from installed import installed_version
from torch import Tensor, nn

from kernels.nms import nms_mask
from profiler.engines import tensorrt
from profiler.engines.ahead_of_time import build_ahead
from profiler.engines.store import EngineStore, Manifest
from profiler.engines.tensorrt import EngineBuildError, build_engine, compute_capabilities
from profiler.errors import BackendUnavailableError, UserError
from profiler.graphs.export import to_onnx
from profiler.graphs.typed_onnx import typed_onnx
from profiler.workload import TensorSpec, Workload

NEEDS_RTX = pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install 'smnas[tensorrt-rtx]'"
)

STAND_INS = next(folder for folder in Path(__file__).parents if folder.name == "tests") / "stand_ins"


class Then(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


class Suppress(nn.Module):
    def forward(self, boxes: Tensor) -> Tensor:
        return nms_mask(boxes, boxes[..., 0].abs() + 1, 0.5)


def _workload(name: str, module: nn.Module, *shape: int) -> Workload:
    return Workload(name, f"{name}|{shape}", module, (TensorSpec(shape),))


def _workloads() -> list[Workload]:
    torch.manual_seed(0)
    functions = {"relu": torch.relu, "unread": torch.sin, "unbuilt": torch.tanh, "deadly": torch.cos}
    return [_workload(name, Then(function), 2, 4) for name, function in functions.items()]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(STAND_INS))  # the builders' processes take over the path
    return importlib.import_module("tensorrt_stub")


@pytest.mark.slow
@pytest.mark.usefixtures("stub")
def test_engines_are_built_once_and_failures_kept(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    seen: list[Manifest] = []
    report = build_ahead(
        _workloads(), store, ["8.9"], backend="tensorrt_stub", precision="fp16", workers=2, on_done=seen.append
    )
    assert (report.built, report.cached) == (1, 0)
    assert {one.name: one.reason for one in report.failed} == {
        "unread": "EngineBuildError: the graph can not be read: error 0: Sin is unknown",
        "unbuilt": "EngineBuildError: no engine was built: no kernel for this",
        "deadly": "the process that built it died",
    }
    (good,) = (one for one in seen if one.status == "built")
    assert (good.request.backend, good.request.version, good.request.device) == ("tensorrt_stub", "9.8.7", "8.9")
    assert good.facts["dense_layers"] == 1
    assert store.read(good.request).startswith(b"SM89")
    # interrupted: one engine lost, one damaged in another capability; only these are built
    store.engine_path(good.request).unlink()
    again = build_ahead(_workloads(), store, ["8.9"], backend="tensorrt_stub", precision="fp16")
    assert (again.built, again.cached, len(again.failed)) == (1, 3, 3)
    last = build_ahead(_workloads(), store, ["8.9"], backend="tensorrt_stub", precision="fp16")
    assert (last.built, last.cached, len(last.failed)) == (0, 4, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("stub")
def test_an_engine_is_found_again_whatever_was_exported_beside_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    mine = _workload("mine", block, 1, 4, 8, 8)
    beside = [_workload(f"other{width}", Then(torch.relu, width), 2, width) for width in (3, 5)]
    suppress = _workload("suppress", Suppress(), 1, 6, 4)  # with a loop, whose inside has names too
    store = EngineStore(tmp_path)
    group = [*beside, mine, suppress]
    assert build_ahead(group, store, ["8.9"], backend="tensorrt_stub").built == 4
    for one in (mine, suppress):
        alone = build_ahead([one], store, ["8.9"], backend="tensorrt_stub")
        assert (alone.built, alone.cached) == (0, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("stub")
def test_other_weights_and_capabilities_are_other_engines(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    workload = _workload("fc", nn.Linear(4, 4), 2, 4)
    assert build_ahead([workload], store, ["8.9", "12.0"], backend="tensorrt_stub").built == 2
    with torch.no_grad():
        workload.module.weight.add_(1.0)  # type: ignore[operator, union-attr]
    assert build_ahead([workload], store, ["8.9"], backend="tensorrt_stub").built == 1
    assert len(list(store.manifests())) == 3


def test_what_can_not_be_exported_is_a_failure_too(tmp_path: Path, stub: Any) -> None:
    broken = _workload("broken", nn.Linear(3, 3), 2, 4)
    report = build_ahead([broken], EngineStore(tmp_path), ["8.9"], backend=stub.__name__)
    assert [one.name for one in report.failed] == ["broken"]
    assert report.failed[0].reason


def test_mistakes_are_said_before_anything_is_built(tmp_path: Path, stub: Any) -> None:
    store = EngineStore(tmp_path)
    with pytest.raises(UserError, match=r"capabilities 8\.9, 12\.0, but got 7\.0"):
        build_ahead([], store, ["7.0"], backend=stub.__name__)
    with pytest.raises(UserError, match="fp32, fp16, bf16, int8, but got 'int3'"):
        build_ahead([], store, ["8.9"], backend=stub.__name__, precision="int3")
    assert compute_capabilities(stub) == {"8.9": stub.ComputeCapability.SM89, "12.0": stub.ComputeCapability.SM120}


def test_an_engine_in_another_precision_than_asked_is_an_error(stub: Any) -> None:
    model = to_onnx(nn.Linear(4, 4), [torch.rand(2, 4)], input_names=["x"]).SerializeToString()
    assert build_engine(stub, model, "fp32", ["8.9"]).dense_layers == 1
    with pytest.raises(EngineBuildError, match="fp16 was requested, but fc computes in FLOAT"):
        build_engine(stub, model, "fp16", ["8.9"])
    with pytest.raises(UserError, match=r"got compute capability '9\.9'"):
        build_engine(stub, model, "fp32", ["9.9"])


def test_without_the_package_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'smnas\[tensorrt-rtx\]'"):
        build_ahead([], EngineStore(tmp_path), ["8.9"])


def _rtx_model(precision: str) -> bytes:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(2, 16), nn.ReLU(), nn.Conv2d(16, 16, 1))
    model: onnx.ModelProto = to_onnx(block, [torch.rand(1, 8, 16, 16)], input_names=["x"])
    return typed_onnx(model, precision).SerializeToString()


@pytest.mark.slow
@NEEDS_RTX
@pytest.mark.parametrize(("precision", "logged"), [("fp32", "Float"), ("fp16", "Half"), ("bf16", "BFloat16")])
def test_tensorrt_rtx_builds_in_the_precision_without_a_gpu(precision: str, logged: str) -> None:
    trt = tensorrt.import_tensorrt("tensorrt_rtx")
    built = build_engine(trt, _rtx_model(precision), precision, ["8.9"])
    assert len(built.content) > 10_000
    assert built.dense_layers == 2
    assert built.tensor_types[logged] > 0
    assert not {"Half", "BFloat16"} - {logged} & set(built.tensor_types)


class Stem(nn.Module):
    """A first layer that stays float32."""

    FLOAT_IN_INT8 = ("0",)

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


@pytest.mark.slow
@NEEDS_RTX
def test_tensorrt_rtx_builds_blocks_of_eight_bits_for_old_and_new_gpus(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = [
        _workload("stem", Stem(nn.Conv2d(3, 16, 3)), 1, 3, 16, 16),
        _workload("mixed", Stem(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3)), 1, 3, 16, 16),
        _workload("product", nn.Linear(64, 64), 16, 64),
    ]
    store = EngineStore(tmp_path)
    made: list[Manifest] = []
    report = build_ahead(blocks, store, ["7.5", "8.9"], precision="int8", on_done=made.append)
    assert (report.built, report.failed) == (6, ())
    for manifest in made:
        # 7.5 has no products in float32: what can not be multiplied there is a convolution before it is quantised
        dense = {"stem": 0, "mixed": 2, "product": 1}[manifest.name]
        assert manifest.facts["dense_layers"] == dense, manifest
        assert bool(manifest.facts["tensor_types"].get("Int8")) == (dense > 0), manifest
    hashes = {(one.name, one.request.device): one.request.onnx_sha256 for one in made}
    assert hashes["product", "7.5"] != hashes["product", "8.9"]
    assert hashes["mixed", "7.5"] == hashes["mixed", "8.9"]


@pytest.mark.slow
@NEEDS_RTX
def test_tensorrt_rtx_refuses_a_graph_of_another_precision() -> None:
    trt = tensorrt.import_tensorrt("tensorrt_rtx")
    with pytest.raises(EngineBuildError, match=r"fp16 was requested, but .* computes in FLOAT"):
        build_engine(trt, _rtx_model("fp32"), "fp16", ["8.9"])
    with pytest.raises(EngineBuildError, match="can not be read"):
        build_engine(trt, b"no graph", "fp32", ["8.9"])


@pytest.mark.slow
@NEEDS_RTX
def test_tensorrt_rtx_builds_for_every_capability_that_it_names() -> None:
    trt = tensorrt.import_tensorrt("tensorrt_rtx")
    known = compute_capabilities(trt)
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(known)
    engines = {name: build_engine(trt, _rtx_model("fp16"), "fp16", [name]).content for name in known}
    assert len(set(engines.values())) == len(known)
