"""How a workload runs: one small protocol, one file a backend, found by name."""

from collections.abc import Callable
from functools import partial

from profiler.backends.base import Backend, Session
from profiler.devices import Device, cpu_device
from profiler.errors import UserError

__all__ = ["BACKENDS", "Backend", "Session", "get_backend"]


def get_backend(name: str, device: Device | None = None, *, threads: int = 1) -> Backend:
    """The backend of a name, ready for a device.

    Args:
        name: one of :data:`BACKENDS`.
        device: where workloads run; this machine's CPU when not given.
        threads: CPU threads that a workload may use.

    Raises:
        UserError: nobody knows the name, or ``threads`` is less than 1.
        BackendUnavailableError: it is known but can not run here; the message says what to do.
    """
    if threads < 1:
        raise UserError(f"threads >= 1 must hold, but got {threads}")
    if name not in BACKENDS:
        raise UserError(f"a backend is one of {', '.join(BACKENDS)}, but got {name!r}")
    return BACKENDS[name](device or cpu_device(), threads)


def _eager(device: Device, threads: int) -> Backend:
    from profiler.backends.eager import EagerBackend

    return EagerBackend(device, threads)


def _compile(device: Device, threads: int) -> Backend:
    from profiler.backends.compiled import CompiledBackend

    return CompiledBackend(device, threads)


def _onnxruntime(device: Device, threads: int, name: str = "onnxruntime") -> Backend:
    from profiler.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(device, threads, name)


def _engine(device: Device, threads: int, name: str) -> Backend:
    from profiler.backends.engine_backend import EngineBackend

    return EngineBackend(device, threads, name)


BACKENDS: dict[str, Callable[[Device, int], Backend]] = {
    "eager": _eager,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": partial(_onnxruntime, name="onnxruntime-cuda"),
    "onnxruntime-tensorrt": partial(_onnxruntime, name="onnxruntime-tensorrt"),
    "tensorrt": partial(_engine, name="tensorrt"),
    "tensorrt_rtx": partial(_engine, name="tensorrt_rtx"),
}
"""Where names meet backends. Each is imported when it is asked for: a backend's packages are optional."""
