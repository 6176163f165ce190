"""Detector files as functions of images: ONNX Runtime, TensorRT or PyTorch behind one interface.

On a GPU a checkpoint, and an engine that allows it, can run as CUDA graphs. An ONNX file can not: ONNX Runtime records
neither data-dependent sizes, as after NMS, nor loops. Not run yet: any of them on a GPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from profiler.backends.engine import Engine
from profiler.backends.onnxruntime import session_options
from profiler.engines.store import EngineRefusedError
from profiler.engines.tensorrt import import_tensorrt
from profiler.errors import BackendUnavailableError
from smnas.data.letterbox import PAD_VALUE
from smnas.evaluation.predict import DetectionArrays, eager_detect, host_arrays
from smnas.inference.cuda_graphs import GraphedDetector
from smnas.inference.engine_file import read_engine
from smnas.inference.metadata import ModelFileError, ModelMetadata
from smnas.inference.signature import INPUT_NAME, OUTPUT_NAMES
from smnas.models.build import deployable
from smnas.training.checkpoint import load_detector_checkpoint

__all__ = ["EagerDetector", "EngineDetector", "Model", "OnnxDetector", "load_model"]


class Model(ABC):
    """A detector that is ready to run, callable as a :data:`~smnas.evaluation.predict.DetectFunction`.

    Attributes:
        metadata: Description of the detector.
        classes: Names, in the order of the labels.
        category_ids: The data set's id of each class.
        input_size: Canvas ``(width, height)`` in pixels.
        on_gpu: Whether canvases are copied to a GPU, which is faster from pinned memory.
    """

    on_gpu: bool

    def __init__(self, metadata: ModelMetadata) -> None:
        self.metadata = metadata
        self.classes, self.category_ids = metadata.classes, metadata.category_ids
        self.input_size = metadata.input_width, metadata.input_height

    def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
        """Detect objects on ``(B, 3, H, W)`` ``uint8`` RGB canvases of the input size, any B."""
        width, height = self.input_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise ValueError(f"images must be uint8 (B, 3, {height}, {width}), but got {images.dtype} {images.shape}")
        return self._detect(images)

    @abstractmethod
    def _detect(self, images: NDArray[np.uint8]) -> DetectionArrays: ...


class _OfFixedBatch(Model):
    """An exported file, whose runs have the graph's batch size.

    The last batch is filled up with gray canvases, whose detections are dropped.
    """

    def _detect(self, images: NDArray[np.uint8]) -> DetectionArrays:
        if not len(images):
            raise ValueError("at least one image is needed, but got none")
        batch = self.metadata.batch
        runs = [self._run(_filled(images[start : start + batch], batch)) for start in range(0, len(images), batch)]
        return DetectionArrays(*(np.concatenate(arrays)[: len(images)] for arrays in zip(*runs, strict=True)))

    @abstractmethod
    def _run(self, images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        """Run exactly one batch; returns arrays in the order of ``OUTPUT_NAMES``."""


def _filled(images: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    missing = batch - len(images)
    if missing == 0:
        return images
    return np.concatenate([images, np.full((missing, *images.shape[1:]), PAD_VALUE, dtype=np.uint8)])


class OnnxDetector(_OfFixedBatch):
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
        rule = "a detector file is one that `smnas export` wrote"
        if not path.is_file():
            raise ModelFileError(f"{rule}, but there is no file {path}")
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
            self._session: Any = onnxruntime.InferenceSession(path.read_bytes(), options, providers=wanted)
        except OSError as error:
            raise ModelFileError(f"{rule}, but {path} can not be read ({error.strerror})") from None
        except _session_errors() as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{rule}, but {path} is damaged, cut off or no ONNX file ({reason})") from None
        if self.providers[0] != wanted[0]:
            raise BackendUnavailableError(
                f"{path.name} was to run on ONNX Runtime's {wanted[0]}, but it fell back to {self.providers[0]}: the "
                "libraries of CUDA and cuDNN must be those that this ONNX Runtime needs"
            )
        properties = self._session.get_modelmeta().custom_metadata_map
        super().__init__(ModelMetadata.from_properties(properties, str(path)))
        self.path = path
        self.on_gpu = "CUDAExecutionProvider" in self.providers
        self._require_signature()

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers, best first."""
        return tuple(self._session.get_providers())

    def _run(self, images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        arrays: Sequence[NDArray[Any]] = self._session.run(OUTPUT_NAMES, {INPUT_NAME: images})
        return arrays

    def _require_signature(self) -> None:
        width, height = self.input_size
        batch = self.metadata.batch
        inputs = [(value.name, value.type, value.shape) for value in self._session.get_inputs()]
        outputs = tuple(value.name for value in self._session.get_outputs())
        if inputs != [(INPUT_NAME, "tensor(uint8)", [batch, 3, height, width])] or outputs != OUTPUT_NAMES:
            raise ModelFileError(
                f"a detector file takes {INPUT_NAME} uint8 ({batch}, 3, {height}, {width}) and gives "
                f"{', '.join(OUTPUT_NAMES)}, but {self.path} takes {inputs} and gives {', '.join(outputs)}"
            )


class EngineDetector(_OfFixedBatch):
    """A detector's engine on its GPU. Not run yet: on a GPU; see :class:`profiler.backends.engine.Engine`.

    Raises:
        ModelFileError: Missing, damaged, or built by another version or for another GPU.
        BackendUnavailableError: Its module is not installed, or there is no GPU here.
    """

    on_gpu = True

    def __init__(self, path: Path, *, cuda_graph: bool = False) -> None:
        content, manifest = read_engine(path)
        super().__init__(manifest.detector)
        self.path = path
        trt = import_tensorrt(manifest.backend)
        if (version := str(trt.__version__)) != manifest.backend_version:
            raise ModelFileError(
                f"an engine runs in the version that built it, {manifest.backend} {manifest.backend_version}, "
                f"but {version} is installed: export {path.name} again"
            )
        wanted = " or ".join(manifest.compute_capabilities)
        if not torch.cuda.is_available():
            raise BackendUnavailableError(
                f"{path.name} needs a GPU of compute capability {wanted}, but PyTorch finds no GPU here: "
                "a checkpoint or an ONNX file runs without one"
            )
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        if found not in manifest.compute_capabilities:
            raise ModelFileError(
                f"{path.name} was built for compute capability {wanted}, but {torch.cuda.get_device_name()} has {found}"
            )
        try:
            self._engine = Engine(trt, content, cuda_graph=cuda_graph)
        except EngineRefusedError as error:
            raise ModelFileError(f"an engine is one that its module loads, but for {path.name}: {error}") from error

    def _run(self, images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        found = self._engine({INPUT_NAME: torch.from_numpy(images)})
        return host_arrays([found[name] for name in OUTPUT_NAMES])


class EagerDetector(Model):
    """A trained checkpoint, run by PyTorch; for CUDA graphs see :mod:`smnas.inference.cuda_graphs`.

    Raises:
        CheckpointError: Missing, damaged or not a checkpoint.
        BackendUnavailableError: CUDA graphs on another device.
    """

    def __init__(self, path: Path, *, device: torch.device | str = "cpu", cuda_graph: bool = False) -> None:
        detector, info = load_detector_checkpoint(path)
        super().__init__(ModelMetadata.of_checkpoint(info, detector.input_size))
        self.path = path
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        if cuda_graph and not self.on_gpu:
            raise BackendUnavailableError(f"a CUDA graph needs a CUDA device, but {path.name} runs on {self.device}")
        folded = deployable(detector)
        self._eager = eager_detect(GraphedDetector(folded) if cuda_graph else folded, self.device)

    def _detect(self, images: NDArray[np.uint8]) -> DetectionArrays:
        return self._eager(images)


def load_model(
    path: Path, *, threads: int | None = None, device: torch.device | str = "cpu", cuda_graph: bool = False
) -> Model:
    """Load a detector file by its suffix: ``.onnx`` (with CPU ``threads``), ``.engine`` or a checkpoint ``.pt``.

    Raises:
        UserError: Missing, damaged, something else, not for this machine, or an unknown suffix.
    """
    match path.suffix.lower():
        case ".onnx":
            if cuda_graph:
                raise BackendUnavailableError(
                    f"CUDA graphs are for checkpoints and engines, but got {path.name}: ONNX Runtime records none in "
                    "which a size depends on the data"
                )
            return OnnxDetector(path, threads=threads)
        case ".engine":
            return EngineDetector(path, cuda_graph=cuda_graph)
        case ".pt":
            return EagerDetector(path, device=device, cuda_graph=cuda_graph)
        case suffix:
            raise ModelFileError(
                f"a model file is .onnx, .engine or .pt, but got {path.name} ({suffix or 'no suffix'})"
            )


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
