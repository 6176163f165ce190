"""ONNX Runtime, with its CPU, CUDA or TensorRT execution provider."""

import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from profiler.backends.exporting import ExportingBackend
from profiler.devices import Device
from profiler.errors import BackendUnavailableError, PrecisionNotMetError
from profiler.graphs.quantized_onnx import quantized_layers
from profiler.graphs.typed_onnx import dense_nodes
from profiler.timing.measurement import Timer, WallTimer

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeSession", "session_options"]

_SESSION_CONFIG = {
    # Denormals are a hundred times slower, and random weights make more of them than trained ones.
    "session.set_denormal_as_zero": "1",
    # Workers may spin during a run but not after it: another session may be timed next.
    "session.force_spinning_stop": "1",
}


_INTEGER = {"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "onnxruntime": {"cpu": (_CPU,), "cuda": (_CUDA, _CPU)},
    "onnxruntime-cuda": {"cuda": (_CUDA, _CPU)},
    "onnxruntime-tensorrt": {"cuda": (_TENSORRT, _CUDA, _CPU)},
}
"""Execution providers by backend name and kind of device; each runs what those before it can not."""


class OnnxRuntimeBackend(ExportingBackend):
    """Exports modules to ONNX and runs them in ONNX Runtime.

    Args:
        device: where workloads run.
        threads: CPU threads of a workload.
        name: ``onnxruntime`` (the device's own provider), ``onnxruntime-cuda`` or ``onnxruntime-tensorrt``. A list of
            more than the CPU's provider is part of ``version``: other providers, other latencies.

    Raises:
        BackendUnavailableError: the installed ONNX Runtime lacks the provider, or it is not for this device.
    """

    def __init__(self, device: Device, threads: int, name: str = "onnxruntime") -> None:
        self._runtime = _import_runtime()
        if device.kind not in _PROVIDERS[name]:
            raise BackendUnavailableError(f"{name} needs a CUDA device, but got {device.name}: --device NAME picks one")
        self._providers = _PROVIDERS[name][device.kind]
        self._provider = self._providers[0]
        available = self._runtime.get_available_providers()
        if self._provider not in available:
            raise BackendUnavailableError(
                f"onnxruntime needs its {self._provider} for {device.name}, but this installation has only "
                f"{', '.join(available)}: pip uninstall onnxruntime, then pip install 'smnas[gpu]'"
            )
        self.name = name
        self.runtime_version = str(self._runtime.__version__)
        only_cpu = self._providers == (_CPU,)
        self.version = self.runtime_version if only_cpu else f"{self.runtime_version} {','.join(self._providers)}"
        self.precisions = ("fp32", "int8") if device.kind == "cpu" else ("fp32", "fp16")
        self.device = device
        self.threads = threads

    def load(self, model: bytes, feeds: Mapping[str, NDArray[Any]], precision: str = "fp32") -> "OnnxRuntimeSession":
        """Create a session; see :meth:`profiler.backends.exporting.ExportingBackend.load`."""
        return OnnxRuntimeSession(self._runtime, model, feeds, self, precision)

    @property
    def provider(self) -> str:
        """Name of the first execution provider."""
        return self._provider

    def provider_list(self, precision: str = "fp32") -> list[Any]:
        """Return the providers in order with their options, for a session."""
        device_id = str(self.device.index)
        options = {
            _CPU: {},
            _CUDA: {"device_id": device_id},
            _TENSORRT: {"device_id": device_id, "trt_fp16_enable": str(int(precision == "fp16"))},
        }
        return [(provider, options[provider]) for provider in self._providers]


class OnnxRuntimeSession:
    """An ONNX model with its inputs bound once."""

    def __init__(
        self,
        runtime: Any,
        model: bytes,
        feeds: Mapping[str, NDArray[Any]],
        backend: OnnxRuntimeBackend,
        precision: str = "fp32",
    ) -> None:
        self.timer: Timer = WallTimer()  # a run returns when its outputs are there, on a GPU too
        self._backend = backend
        cuda = backend.device.kind == "cuda"
        options = session_options(runtime, backend.threads)
        with tempfile.TemporaryDirectory(prefix="onnxruntime-") as folder:
            if precision == "int8":
                options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            self._session = runtime.InferenceSession(
                model, sess_options=options, providers=backend.provider_list(precision)
            )
            self._layers = _integer_layers(model, options.optimized_model_filepath) if precision == "int8" else None
        if self._session.get_providers()[0] != backend.provider:
            raise BackendUnavailableError(
                f"onnxruntime was to run on {backend.provider}, but it fell back to {self._session.get_providers()[0]}"
            )
        place, index = ("cuda", backend.device.index) if cuda else ("cpu", 0)
        self._binding = self._session.io_binding()
        wanted = {value.name for value in self._session.get_inputs()}
        # every run reads these buffers
        self._values = {
            name: runtime.OrtValue.ortvalue_from_numpy(array, place, index)
            for name, array in feeds.items()
            if name in wanted
        }
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, place, index)
        self._run = self._session.run_with_iobinding
        self.run()  # an error in a kernel belongs to preparing, not to timing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self) -> None:
        """Run once on the bound inputs."""
        self._run(self._binding)

    def outputs(self) -> tuple[NDArray[Any], ...]:
        """Run once and copy the outputs to the host."""
        self.run()
        arrays = self._binding.copy_outputs_to_cpu()
        return tuple(array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays)

    def describe(self) -> dict[str, Any]:
        """Return provider, version, threads and options."""
        return {
            "onnxruntime": self._backend.runtime_version,
            "provider": self._backend.provider,
            "providers": self._session.get_providers(),
            "intra_op_threads": self._backend.threads,
            "inter_op_threads": 1,
            "execution": "sequential",
            "graph_optimization": "all",
            **_SESSION_CONFIG,
            **(self._layers or {}),
        }


def _integer_layers(requested: bytes, optimized: str) -> dict[str, Any]:
    """Count the convolutions and matmuls that run in integers in ONNX Runtime's optimized graph.

    Raises:
        PrecisionNotMetError: fewer than the graph quantises.
    """
    wanted = quantized_layers(requested)
    run = onnx.load(optimized)
    integer = sum(node.op_type in _INTEGER for node in run.graph.node)
    if integer < wanted:
        raise PrecisionNotMetError(
            f"int8 was requested for {wanted} layers, but ONNX Runtime computes {integer} in integers"
        )
    fused = sum(node.op_type.startswith("Fused") for node in run.graph.node)  # with the next operator, in float
    layers = integer + fused + len(dense_nodes(run))
    return {"integer_layers": integer, "layers_in_precision": integer / layers if layers else None}


def session_options(runtime: Any, threads: int) -> Any:
    """Return the options under which latencies are measured, for any session of ``runtime``, the ONNX Runtime module.

    ``threads`` work on one operator; operators run one after another.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Errors only, which are raised as well: a CUDA session also warns about its providers, through the global log.
    # Whether it runs on the right provider is checked afterwards.
    options.log_severity_level = 3
    runtime.set_default_logger_severity(3)
    for key, value in _SESSION_CONFIG.items():
        options.add_session_config_entry(key, value)
    return options


def _import_runtime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendUnavailableError(
            f"onnxruntime is not installed ({error}): pip install 'smnas[cpu]', or 'smnas[gpu]' for a CUDA device"
        ) from error
