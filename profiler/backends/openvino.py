"""OpenVINO, on a CPU; on Intel's GPUs and NPUs it has not been run yet.

The runtime reads the graphs that ONNX Runtime reads, int8 ones included. A half precision is a hint to the runtime,
which ignores one that the processor lacks; what it uses is read back.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from profiler.backends.exporting import ExportingBackend
from profiler.devices import Device, import_openvino, openvino_core
from profiler.errors import BackendUnavailableError, PrecisionNotMetError, UserError
from profiler.graphs.quantized_onnx import quantized_layers
from profiler.timing.measurement import Timer, WallTimer

__all__ = ["OpenVinoBackend", "OpenVinoSession", "compile_model", "precisions"]

_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""What layers compute in that the graph does not quantise. Without it OpenVINO rounds fp32 wherever that is faster."""
_CAPABILITIES = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "INT8": "int8"}
_RUN_AS = {"fp32": ("f32",), "fp16": ("f16",), "bf16": ("bf16",), "int8": ("u8", "i8")}
_DENSE = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}


class OpenVinoBackend(ExportingBackend):
    """Exports modules to ONNX and runs them in OpenVINO.

    Raises:
        BackendUnavailableError: OpenVINO is not installed, or has no plugin for the device.
    """

    typed_graphs = False

    def __init__(self, device: Device, threads: int) -> None:
        self.runtime = import_openvino()
        if device.kind == "cuda":
            raise BackendUnavailableError(
                f"openvino runs on cpu, and on Intel's gpu and npu, but got {device.name}: --device cpu"
            )
        self.name = "openvino"
        self.version = str(self.runtime.__version__).partition("-")[0]
        self.core = openvino_core()
        self.place = device.place or "CPU"
        self.precisions = precisions(self.core, self.place)
        self.device = device
        self.threads = threads

    def load(self, model: bytes, feeds: Mapping[str, NDArray[Any]], precision: str = "fp32") -> "OpenVinoSession":
        """Compile a model; see :meth:`profiler.backends.exporting.ExportingBackend.load`."""
        return OpenVinoSession(self, model, feeds, precision)


class OpenVinoSession:
    """A compiled model with its inputs bound once."""

    def __init__(
        self, backend: OpenVinoBackend, model: bytes, feeds: Mapping[str, NDArray[Any]], precision: str = "fp32"
    ) -> None:
        self.timer: Timer = WallTimer()
        self._backend = backend
        read = backend.core.read_model(io.BytesIO(model))
        compiled = compile_model(backend.core, read, backend.place, backend.threads, precision)
        self._facts = _facts(compiled)
        if (threads := self._facts.get("inference_num_threads", backend.threads)) < backend.threads:
            raise UserError(f"openvino runs at most {threads} threads here, but got {backend.threads}")
        self._layers = _layers(compiled, model, precision)
        self._request = compiled.create_infer_request()
        for port in compiled.inputs:  # every run reads these arrays
            array = next(feeds[name] for name in port.get_names() if name in feeds)
            self._request.set_tensor(port, backend.runtime.Tensor(array, shared_memory=True))
        self._results = range(len(compiled.outputs))
        self._run = self._request.infer
        self.run()  # an error in a kernel belongs to preparing, not to timing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self) -> None:
        """Run once on the bound inputs; the outputs stay in the runtime's memory."""
        self._run(share_outputs=True)

    def outputs(self) -> tuple[NDArray[Any], ...]:
        """Run once and copy the outputs to the host."""
        self.run()
        arrays = [self._request.get_output_tensor(index).data for index in self._results]
        return tuple(array.astype(np.float32 if array.dtype == np.float16 else array.dtype) for array in arrays)

    def describe(self) -> dict[str, Any]:
        """Return version, device, threads and options, and the layers in the requested precision."""
        return {
            "openvino": self._backend.version,
            "openvino_device": self._backend.place,
            **self._facts,
            **self._layers,
        }


def precisions(core: Any, place: str) -> tuple[str, ...]:
    """Return the precisions that a device computes in."""
    can = core.get_property(place, "OPTIMIZATION_CAPABILITIES")
    return tuple(name for word, name in _CAPABILITIES.items() if word in can)


def compile_model(core: Any, model: Any, place: str, threads: int | None, precision: str = "fp32") -> Any:
    """Compile a model for one request at a time.

    Threads are not pinned to cores: two processes that pin theirs would share the first core.

    Args:
        core: ``openvino.Core``.
        model: that ``core`` has read.
        place: device by OpenVINO's name, such as ``CPU``.
        threads: CPU threads of one run; every core if ``None``.
        precision: of the graph (``fp32``, ``int8``) or to run it in (``fp16``, ``bf16``).

    Raises:
        RuntimeError: the device can not run it.
        PrecisionNotMetError: OpenVINO runs the model in another precision.
    """
    hint = _HINTS[precision] if precision != "int8" or "fp32" in precisions(core, place) else "f16"
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    if place == "CPU":
        # Denormals are a hundred times slower, and random weights make more of them than trained ones.
        options |= {"NUM_STREAMS": "1", "CPU_DENORMALS_OPTIMIZATION": "YES", "ENABLE_CPU_PINNING": "NO"}
        if threads is not None:
            options |= {"INFERENCE_NUM_THREADS": str(threads), "ENABLE_HYPER_THREADING": "YES"}  # or it takes fewer
    compiled = core.compile_model(model, place, options)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != hint:
        raise PrecisionNotMetError(f"{precision} was requested, but OpenVINO computes in {used} on {place}")
    return compiled


def _facts(compiled: Any) -> dict[str, Any]:
    """Read back what the runtime uses, as far as the device has it."""
    known = compiled.get_property("SUPPORTED_PROPERTIES")
    return {name.lower(): read(compiled.get_property(name)) for name, read in _READ_BACK.items() if name in known}


_READ_BACK: dict[str, Callable[[Any], Any]] = {
    "PERFORMANCE_HINT": lambda hint: str(hint).rpartition(".")[2],
    "NUM_STREAMS": int,
    "INFERENCE_NUM_THREADS": int,
    "INFERENCE_PRECISION_HINT": lambda kind: str(kind.to_string()),
    "CPU_DENORMALS_OPTIMIZATION": bool,
    "ENABLE_CPU_PINNING": bool,
}


def _layers(compiled: Any, model: bytes, precision: str) -> dict[str, Any]:
    """Count the convolutions and matmuls in the compiled graph, and those in the requested precision.

    Raises:
        PrecisionNotMetError: fewer integer layers than the graph quantises.
    """
    try:
        infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    except RuntimeError:  # this device does not show it
        if precision == "int8":
            raise PrecisionNotMetError(
                "int8 was requested, but OpenVINO does not say what it computes in integers"
            ) from None
        return {"layers_in_precision": None}
    types = [info["runtimePrecision"].astype(str) for info in infos if info["layerType"].astype(str) in _DENSE]
    matching = sum(kind in _RUN_AS[precision] for kind in types)
    found: dict[str, Any] = {"layers_in_precision": matching / len(types) if types else None}
    if precision == "int8":
        if matching < (wanted := quantized_layers(model)):
            raise PrecisionNotMetError(
                f"int8 was requested for {wanted} layers, but OpenVINO computes {matching} in integers"
            )
        found["integer_layers"] = matching
    return found
