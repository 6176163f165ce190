"""Backends: each computes what the module computes, on the terms it describes, or says plainly why it can not."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from profiler.backends import get_backend
from profiler.devices import Device, openvino_devices, resolve_device
from profiler.errors import BackendUnavailableError, PrecisionNotMetError, UserError
from profiler.timing.measurement import TimingSettings, measure
from profiler.workload import TensorSpec, random_inputs

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (extra cpu or gpu)")

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs OpenVINO (extra openvino)"
)
needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is None, reason="needs LiteRT and its converter (extra litert)"
)
RUNNABLE = [
    "eager",
    "onnxruntime",
    pytest.param("openvino", marks=needs_openvino),
    pytest.param("litert", marks=[needs_litert, pytest.mark.slow]),
]
FAKE_GPU = Device("NVIDIA Pretend", "cuda")


class Pair(nn.Module):
    """Floats and integers in, a nested structure out, and a dropout that must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        y = self.dropout(self.linear(x)).sigmoid()
        return {"all": y, "some": (y.gather(1, index), index + 1)}


@pytest.fixture(scope="module")
def module() -> Pair:
    torch.manual_seed(0)
    return Pair()


INPUTS = random_inputs((TensorSpec((4, 6)), TensorSpec((4, 2), "int64", 0, 5)), seed=0)


def expected(module: Pair) -> list[np.ndarray]:
    weight, bias = module.linear.weight.detach().numpy(), module.linear.bias.detach().numpy()
    y = 1 / (1 + np.exp(-(INPUTS[0].numpy() @ weight.T + bias)))
    index = INPUTS[1].numpy()
    return [y, np.take_along_axis(y, index, 1), index + 1]


@pytest.mark.parametrize("name", RUNNABLE)
def test_outputs_are_the_modules(name: str, module: Pair) -> None:
    backend = get_backend(name)
    session = backend.prepare(module, INPUTS)
    with session:
        outputs = session.outputs()
    for got, wanted in zip(outputs, expected(module), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    # The caller's module is as it was.
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_half_precision_is_computed_in_half_precision(module: Pair) -> None:
    with get_backend("eager").prepare(module, INPUTS, "bf16") as session:
        got = session.outputs()[0]
    wanted = expected(module)[0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=2e-2)
    assert not np.allclose(got, wanted, atol=1e-6)
    assert module.linear.weight.dtype == torch.float32


class Rounded(nn.Module):
    """A convolution for integers, then one that stays float32."""

    FLOAT_IN_INT8 = ("last",)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.body(x)))  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE[1:])
def test_eight_bits_are_computed_in_integers_where_the_module_lets_them(name: str, module: Pair) -> None:
    torch.manual_seed(2)
    rounded, image = Rounded(), torch.randn(1, 8, 12, 12)
    backend = get_backend(name)
    (exact,) = backend.prepare(rounded, [image]).outputs()
    session = backend.prepare(rounded, [image], "int8")
    (got,) = session.outputs()
    step = np.abs(exact).max() / 128
    assert 0 < np.abs(got - exact).max() < 8 * step
    facts = session.describe()
    assert facts["integer_layers"] == 1
    assert facts["layers_in_precision"] == pytest.approx(1 / 2)
    together = [open_session() for open_session in backend.prepare_many([(rounded, [image]), (module, INPUTS)], "int8")]
    np.testing.assert_array_equal(together[0].outputs()[0], got)
    assert together[1].describe()["layers_in_precision"] == 1.0
    # what has nothing to multiply stays as it is, and says so
    facts = backend.prepare(nn.ReLU(), [image], "int8").describe()
    assert (facts["integer_layers"], facts["layers_in_precision"]) == (0, None)
    assert "integer_layers" not in backend.prepare(rounded, [image]).describe()


@pytest.mark.parametrize(
    ("name", "table"),
    [("onnxruntime", "_INTEGER"), pytest.param("openvino", "_DENSE", marks=needs_openvino)],
)
def test_fewer_integers_than_asked_for_are_an_error(name: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module(f"profiler.backends.{name}"), table, {"ConvInteger"})
    with pytest.raises(PrecisionNotMetError, match=r"int8 was requested for 1 .* computes 0 in integers"):
        get_backend(name).prepare(Rounded(), [torch.randn(1, 8, 12, 12)], "int8")


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_session_can_be_timed_and_describes_itself(name: str, module: Pair) -> None:
    backend = get_backend(name, threads=2)
    session = backend.prepare(module, INPUTS)
    with session:
        measurement = measure(session.run, timer=session.timer, settings=TimingSettings(time_limit_s=0.05))
    assert 0 < measurement.low_ms <= measurement.median_ms <= measurement.high_ms < 50
    facts = session.describe()
    assert backend.version in facts.values()
    assert 2 in facts.values()


@pytest.mark.parametrize("name", RUNNABLE)
def test_modules_prepared_together_compute_the_same(name: str, module: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU())
    image = torch.randn(1, 3, 8, 8)
    items = [(module, INPUTS), (conv, (image,)), (conv, (image * 2,)), (module, INPUTS)]
    backend = get_backend(name)
    if name != "eager":
        # None of them falls back to being exported alone.
        monkeypatch.setattr(backend, "prepare", lambda *_: pytest.fail("exported alone"))
    together = [open_session().outputs() for open_session in backend.prepare_many(items)]
    assert [len(outputs) for outputs in together] == [3, 1, 1, 3]
    for outputs in (together[0], together[3]):
        for got, wanted in zip(outputs, expected(module), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)
    for outputs, scale in ((together[1], 1), (together[2], 2)):
        np.testing.assert_allclose(outputs[0], conv(image * scale).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", RUNNABLE)
def test_one_broken_module_leaves_those_beside_it_alone(name: str) -> None:
    x = torch.zeros(2, 4)
    good, broken = get_backend(name).prepare_many([(nn.Linear(4, 5), (x,)), (nn.Linear(3, 3), (x,))])
    assert good().outputs()[0].shape == (2, 5)
    with pytest.raises((RuntimeError, ValueError)):
        broken()


def test_onnxruntime_says_on_what_terms_it_runs(module: Pair) -> None:
    facts = get_backend("onnxruntime").prepare(module, INPUTS).describe()
    assert facts["provider"] == "CPUExecutionProvider"
    assert facts["intra_op_threads"] == facts["inter_op_threads"] == 1
    assert facts["session.set_denormal_as_zero"] == "1"


@pytest.mark.parametrize("name", RUNNABLE)
def test_an_unused_input_does_not_matter(name: str) -> None:
    class Second(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return second * 2

    inputs = random_inputs((TensorSpec((3,)), TensorSpec((2,))), seed=0)
    (got,) = get_backend(name).prepare(Second(), inputs).outputs()
    np.testing.assert_allclose(got, inputs[1].numpy() * 2)


def test_eager_sets_the_thread_count_only_while_it_runs() -> None:
    outside = torch.get_num_threads()

    class Threads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.get_num_threads()

    for threads in (1, 3):
        session = get_backend("eager", threads=threads).prepare(Threads(), (torch.zeros(1),))
        with session, session:
            assert session.outputs()[0].item() == threads
        assert torch.get_num_threads() == outside


@pytest.mark.parametrize("name", RUNNABLE)
def test_an_error_in_forward_comes_up_while_preparing(name: str) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        get_backend(name).prepare(nn.Linear(3, 3), (torch.zeros(2, 4),))


@pytest.mark.parametrize(("name", "precision"), [("onnxruntime", "fp16"), ("eager", "int3"), ("onnxruntime", "bf16")])
def test_a_precision_that_does_not_run_here_is_refused(name: str, precision: str, module: Pair) -> None:
    with pytest.raises(UserError, match=f"runs fp32.*got '{precision}'"):
        get_backend(name).prepare(module, INPUTS, precision)


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(
        UserError,
        match=r"eager, compile, onnxruntime, .*-tensorrt, openvino, litert, tensorrt, tensorrt-rtx, but got 'abacus'",
    ):
        get_backend("abacus")
    with pytest.raises(UserError, match="threads >= 1"):
        get_backend("eager", threads=0)


@pytest.mark.parametrize("typed", ["tensorrt", "tensorrt_rtx", "tensorrt-rtx"])
def test_tensorrt_says_what_it_needs(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = typed.replace("-", "_")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=rf"{name} is not installed .*pip install 'smnas\[tensorrt"):
        get_backend(typed)
    installed = ModuleType(name)
    installed.__version__ = "10.9"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, installed)
    with pytest.raises(BackendUnavailableError, match=r"runs on a CUDA device, but got .*onnxruntime"):
        get_backend(typed)


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "cpu"), ("openvino", "openvino"), ("litert", "litert")])
def test_a_runtime_without_its_package_names_the_command(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=rf"{name} is not installed .*pip install 'smnas\[{extra}\]'"):
        get_backend(name)


@needs_openvino
def test_openvino_says_on_what_terms_it_runs(module: Pair) -> None:
    facts = get_backend("openvino", threads=2).prepare(module, INPUTS).describe()
    assert facts["inference_num_threads"] == 2
    assert facts["num_streams"] == 1
    assert facts["performance_hint"] == "LATENCY"
    assert facts["inference_precision_hint"] == "f32"
    assert facts["layers_in_precision"] == 1.0
    assert not facts["enable_cpu_pinning"]


@needs_openvino
def test_openvino_takes_no_hint_that_the_processor_can_not_follow(
    module: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = get_backend("openvino")
    if "fp16" in backend.precisions:
        pytest.skip("needs a processor without half-precision arithmetic")
    with pytest.raises(UserError, match=r"openvino on .* runs fp32, .*but got 'fp16'"):
        backend.prepare(module, INPUTS, "fp16")
    monkeypatch.setattr(backend, "precisions", ("fp32", "fp16"))  # as a plugin that promises too much
    with pytest.raises(PrecisionNotMetError, match="fp16 was requested, but OpenVINO computes in f32 on CPU"):
        backend.prepare(module, INPUTS, "fp16")


@needs_openvino
def test_openvino_runs_on_its_own_devices_only() -> None:
    with pytest.raises(BackendUnavailableError, match=r"openvino runs on cpu, .* but got NVIDIA Pretend: --device cpu"):
        get_backend("openvino", FAKE_GPU)


def test_a_device_of_openvino_is_found_by_its_name_and_is_no_other_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"CPU": "a processor", "GPU.0": "Intel Pretend Graphics", "NPU": "Intel Pretend NPU"}
    capabilities = {"NPU": ["FP16", "INT8", "EXPORT_IMPORT"]}

    class Core:
        available_devices = tuple(names)

        def get_property(self, place: str, name: str) -> Any:
            return names[place] if name == "FULL_DEVICE_NAME" else capabilities[place]

    stub: Any = ModuleType("openvino")
    stub.Core, stub.__version__ = Core, "2026.1.0-1-ab"
    monkeypatch.setitem(sys.modules, "openvino", stub)
    npu = resolve_device("NPU")
    assert (npu.name, npu.kind, npu.place) == ("Intel Pretend NPU", "openvino", "NPU")
    assert resolve_device("gpu.0").place == "GPU.0"
    assert [device.place for device in openvino_devices()] == ["GPU.0", "NPU"]
    with pytest.raises(UserError, match=r"OpenVINO's devices here are cpu, gpu\.0, npu, but got 'gpu\.1'"):
        resolve_device("gpu.1")
    backend = get_backend("openvino", npu)
    assert (backend.version, backend.precisions) == ("2026.1.0", ("fp16", "int8"))
    with pytest.raises(
        UserError, match=r"Intel Pretend NPU \(npu\) runs --backend openvino alone, but got 'onnxruntime'"
    ):
        get_backend("onnxruntime", npu)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert openvino_devices() == ()
    with pytest.raises(BackendUnavailableError, match=r"pip install 'smnas\[openvino\]'"):
        resolve_device("npu")


@needs_openvino
@pytest.mark.slow
def test_openvino_sends_no_usage_statistics(tmp_path: Path) -> None:
    code = (
        "import sys; from profiler.backends import get_backend; get_backend('openvino'); "
        "sys.exit(any(name.startswith('openvino_telemetry.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}).returncode == 0
    assert list(tmp_path.iterdir()) == []  # it would keep the user's number there


@needs_openvino
@pytest.mark.slow
def test_a_keyboard_interrupt_is_one_whoever_forgets_openvino() -> None:
    """Its processor plugin would take the stack for signals of the thread that loaded it with it."""
    code = """
import os, signal, sys, threading
import torch
from profiler.backends import get_backend

held = [get_backend("openvino").prepare(torch.nn.Linear(2, 2).eval(), [torch.zeros(1, 2)])]
with held[0]:
    held[0].outputs()
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 7


def test_onnxruntime_without_the_provider_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match=r"CUDAExecutionProvider.*smnas\[gpu\]"):
        get_backend("onnxruntime", FAKE_GPU)


@pytest.mark.slow
def test_the_names_are_known_without_loading_a_runtime() -> None:
    code = "import sys; from profiler.backends import BACKENDS; sys.exit('onnxruntime' in sys.modules or not BACKENDS)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_eager_on_a_gpu_computes_and_times(precision: str, module: Pair) -> None:
    from profiler.devices import local_gpus

    session = get_backend("eager", local_gpus()[0]).prepare(module, INPUTS, precision)
    with session:
        np.testing.assert_allclose(session.outputs()[0], expected(module)[0], atol=1e-2)
        measurement = measure(session.run, timer=session.timer, settings=TimingSettings(time_limit_s=0.2))
    assert 0 < measurement.median_ms < 5


@pytest.mark.slow
def test_compiled_modules_compute_what_they_are(module: Pair) -> None:
    """Two modules of one class and other shapes: neither falls back to the other's code, or to none."""
    backend = get_backend("compile")
    wide = nn.Sequential(nn.Linear(6, 9), nn.ReLU())
    narrow = nn.Sequential(nn.Linear(6, 2), nn.ReLU())
    sessions = [backend.prepare(one, INPUTS[:1]) for one in (wide, narrow)]
    for one, session in zip((wide, narrow), sessions, strict=True):
        with session:
            np.testing.assert_allclose(session.outputs()[0], one(INPUTS[0]).detach().numpy(), atol=1e-5)
        assert session.describe()["graphs"] == 1
    assert backend.version.endswith("inductor")
    assert backend.version != get_backend("eager").version


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.backends.compiled.shutil.which", lambda _: None)
    with pytest.raises(BackendUnavailableError, match=r"needs a C\+\+ compiler .* apt-get install"):
        get_backend("compile")


@pytest.mark.parametrize(
    ("name", "providers"),
    [
        ("onnxruntime", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("onnxruntime-cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("onnxruntime-tensorrt", ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]),
    ],
)
def test_the_list_of_providers_is_part_of_the_version(
    name: str, providers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime: Any = ModuleType("onnxruntime")
    runtime.__version__ = "9.9"
    runtime.get_available_providers = lambda: providers
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    backend = get_backend(name, FAKE_GPU)
    assert backend.version == f"9.9 {','.join(providers)}"
    assert [provider for provider, _ in backend.provider_list("fp16")] == providers  # type: ignore[attr-defined]
    assert get_backend("onnxruntime", FAKE_GPU).version == get_backend("onnxruntime-cuda", FAKE_GPU).version


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_gpus_provider_is_not_for_a_cpu(name: str) -> None:
    with pytest.raises(BackendUnavailableError, match=f"{name} needs a CUDA device"):
        get_backend(name)
