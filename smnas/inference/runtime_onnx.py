"""ONNX files as functions of images, in ONNX Runtime or OpenVINO."""

import io
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from profiler.backends.onnxruntime import session_options
from profiler.backends.openvino import compile_model, precisions
from profiler.devices import openvino_core
from profiler.errors import BackendUnavailableError, UserError, one_line
from smnas.inference.metadata import ModelFileError, ModelMetadata
from smnas.inference.runtime_base import FixedBatchModel
from smnas.inference.signature import INPUT_NAME, OUTPUT_NAMES

__all__ = ["OnnxDetector", "OpenVinoDetector"]

_RULE = "a detector file is one that `smnas export` wrote"


class OnnxDetector(FixedBatchModel):
    """An exported detector, run by ONNX Runtime.

    Args:
        path: The ONNX file.
        threads: CPU threads of one run; ``None`` takes every core.
        providers: Best first; by default CUDA if installed and present, then the CPU.

    Raises:
        ModelFileError: Missing, truncated, not ONNX, or another kind of ONNX file.
        BackendUnavailableError: ONNX Runtime is not installed, lacks a requested provider, or falls back from one that
            should be there.
    """

    def __init__(self, path: Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        content = _content(path)
        try:
            import onnxruntime
        except ImportError:
            raise BackendUnavailableError(
                "running an ONNX file needs ONNX Runtime, which is not installed: pip install 'smnas[cpu]'"
            ) from None
        # The options of latency measurements; for ONNX Runtime 0 threads means one per core.
        options = session_options(onnxruntime, 0 if threads is None else threads)
        wanted = _providers(onnxruntime.get_available_providers(), providers)
        try:
            self._session: Any = onnxruntime.InferenceSession(content, options, providers=wanted)
        except _session_errors() as error:
            raise _damaged(path, error) from None
        if self.providers[0] != wanted[0]:
            raise BackendUnavailableError(
                f"{path.name} was to run on ONNX Runtime's {wanted[0]}, but it fell back to {self.providers[0]}: the "
                "libraries of CUDA and cuDNN must be those that this ONNX Runtime needs"
            )
        properties = self._session.get_modelmeta().custom_metadata_map
        super().__init__(ModelMetadata.from_properties(properties, str(path)))
        self.path = path
        self.on_gpu = "CUDAExecutionProvider" in self.providers
        inputs = [(value.name, value.type[len("tensor(") : -1], value.shape) for value in self._session.get_inputs()]
        _require_signature(path, self.metadata, inputs, [value.name for value in self._session.get_outputs()])

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers, best first."""
        return tuple(self._session.get_providers())

    def _run(self, images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        arrays: Sequence[NDArray[Any]] = self._session.run(OUTPUT_NAMES, {INPUT_NAME: images})
        return arrays


class OpenVinoDetector(FixedBatchModel):
    """An exported detector, run by OpenVINO on one of its devices.

    Args:
        path: The ONNX file.
        threads: CPU threads of one run; ``None`` takes every core.
        device: By OpenVINO's name, in any case: ``cpu``, ``gpu``, ``npu``.

    Raises:
        ModelFileError: Missing, truncated, not ONNX, or another kind of ONNX file.
        BackendUnavailableError: OpenVINO is not installed.
        UserError: OpenVINO finds no such device.
    """

    on_gpu = False

    def __init__(self, path: Path, *, threads: int | None = None, device: str = "cpu") -> None:
        content = _content(path)
        core = openvino_core()
        if (place := device.upper()) not in (known := core.available_devices):
            raise UserError(f"OpenVINO runs on {', '.join(known).lower()} here, but got {device!r}")
        try:
            read = core.read_model(io.BytesIO(content))
        except RuntimeError as error:
            raise _damaged(path, error) from None
        properties = read.get_rt_info(["framework"]).value if read.has_rt_info(["framework"]) else {}
        super().__init__(ModelMetadata.from_properties(properties, str(path)))
        self.path = path
        inputs = [
            (port.any_name, port.element_type.to_dtype().name, list(port.partial_shape.get_max_shape()))
            for port in read.inputs
        ]
        _require_signature(path, self.metadata, inputs, [port.any_name for port in read.outputs])
        try:
            precision = precisions(core, place)[0]  # fp32, where the device has it
            self._request: Any = compile_model(core, read, place, threads, precision).create_infer_request()
        except RuntimeError as error:
            raise BackendUnavailableError(f"OpenVINO's {place} can not run {path.name}: {one_line(error)}") from error
        self._free = Lock()

    def _run(self, images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        with self._free:  # a request takes one call at a time
            found = self._request.infer({INPUT_NAME: images}, share_inputs=True)
            return [found[name] for name in OUTPUT_NAMES]


def _require_signature(
    path: Path, metadata: ModelMetadata, inputs: Sequence[tuple[str, str, Sequence[int]]], outputs: Sequence[str]
) -> None:
    """Refuse an ONNX file whose inputs (name, type, shape) and outputs are not a detector's."""
    shape = [metadata.batch, 3, metadata.input_height, metadata.input_width]
    if inputs != [(INPUT_NAME, "uint8", shape)] or tuple(outputs) != OUTPUT_NAMES:
        raise ModelFileError(
            f"a detector file takes {INPUT_NAME} uint8 {tuple(shape)} and gives {', '.join(OUTPUT_NAMES)}, but "
            f"{path} takes {inputs} and gives {', '.join(outputs)}"
        )


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise ModelFileError(f"{_RULE}, but there is no file {path}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{_RULE}, but {path} can not be read ({error.strerror})") from None


def _damaged(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{_RULE}, but {path} is damaged, cut off or no ONNX file ({one_line(error)[:200]})")


def _providers(available: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Return the providers to request from ONNX Runtime.

    It silently drops those it can not load and runs many times as slowly. So requested ones must be loaded, and CUDA is
    a default only where there is a GPU.

    Raises:
        BackendUnavailableError: a requested one is not in this installation.
    """
    if asked is None:
        gpu = torch.cuda.is_available() and "CUDAExecutionProvider" in available
        return [*(["CUDAExecutionProvider"] if gpu else []), "CPUExecutionProvider"]
    if missing := [name for name in asked if name not in available]:
        raise BackendUnavailableError(
            f"this ONNX Runtime has the providers {', '.join(available)}, but got {', '.join(missing)}"
        )
    return list(asked)


def _session_errors() -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's loading errors: a dozen classes without a common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = (getattr(state, name) for name in dir(state))
    return (RuntimeError, *(one for one in found if isinstance(one, type) and issubclass(one, Exception)))
