"""Backends: one protocol, one file per backend, lookup by name."""

from collections.abc import Callable
from functools import partial

from profiler.backends.base import Backend, Session
from profiler.devices import Device, cpu_device
from profiler.errors import UserError

__all__ = ["BACKENDS", "Backend", "Session", "get_backend"]


def get_backend(name: str, device: Device | None = None, *, threads: int = 1) -> Backend:
    """Create a backend for a device.

    Args:
        name: one of :data:`BACKENDS`; ``_`` is accepted for ``-``.
        device: this machine's CPU if ``None``.
        threads: CPU threads of a workload.

    Raises:
        UserError: unknown name, or ``threads`` is less than 1.
        BackendUnavailableError: the backend can not run here; the message says what to do.
    """
    if threads < 1:
        raise UserError(f"threads >= 1 must hold, but got {threads}")
    make = BACKENDS.get(name.replace("_", "-"))
    if make is None:
        raise UserError(f"a backend is one of {', '.join(BACKENDS)}, but got {name!r}")
    if device is not None and device.kind == "openvino" and name != "openvino":
        raise UserError(f"{device.name} ({device.place.lower()}) runs --backend openvino alone, but got {name!r}")
    return make(device or cpu_device(), threads)


def _eager(device: Device, threads: int) -> Backend:
    from profiler.backends.eager import EagerBackend

    return EagerBackend(device, threads)


def _compile(device: Device, threads: int) -> Backend:
    from profiler.backends.compiled import CompiledBackend

    return CompiledBackend(device, threads)


def _onnxruntime(device: Device, threads: int, name: str = "onnxruntime") -> Backend:
    from profiler.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(device, threads, name)


def _openvino(device: Device, threads: int) -> Backend:
    from profiler.backends.openvino import OpenVinoBackend

    return OpenVinoBackend(device, threads)


def _litert(device: Device, threads: int) -> Backend:
    from profiler.backends.litert import LiteRtBackend

    return LiteRtBackend(device, threads)


def _engine(device: Device, threads: int, name: str) -> Backend:
    from profiler.backends.engine_backend import EngineBackend

    return EngineBackend(device, threads, name)


BACKENDS: dict[str, Callable[[Device, int], Backend]] = {
    "eager": _eager,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": partial(_onnxruntime, name="onnxruntime-cuda"),
    "onnxruntime-tensorrt": partial(_onnxruntime, name="onnxruntime-tensorrt"),
    "openvino": _openvino,
    "litert": _litert,
    "tensorrt": partial(_engine, name="tensorrt"),
    "tensorrt-rtx": partial(_engine, name="tensorrt_rtx"),
}
"""Backends by name, imported on use since their packages are optional.

Tables and manifests store TensorRT-RTX under its module's name, ``tensorrt_rtx``.
"""
