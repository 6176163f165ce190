"""Detector files as functions of images: ONNX Runtime, OpenVINO, LiteRT, TensorRT or PyTorch behind one interface.

On a GPU a checkpoint, and an engine that allows it, can run as CUDA graphs. An ONNX file can not: ONNX Runtime records
neither data-dependent sizes, as after NMS, nor loops. Not run yet: any of them on a GPU.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from profiler.backends.engine import Engine
from profiler.engines.store import EngineRefusedError
from profiler.engines.tensorrt import import_tensorrt
from profiler.errors import BackendUnavailableError, UserError
from smnas.evaluation.predict import DetectionArrays, eager_detect, host_arrays
from smnas.inference.cuda_graphs import GraphedDetector
from smnas.inference.engine_file import read_engine
from smnas.inference.metadata import ModelFileError, ModelMetadata
from smnas.inference.runtime_base import RUNTIMES, FixedBatchModel, Model
from smnas.inference.runtime_litert import LiteRtDetector
from smnas.inference.runtime_onnx import OnnxDetector, OpenVinoDetector
from smnas.inference.signature import INPUT_NAME, OUTPUT_NAMES
from smnas.models.build import deployable
from smnas.training.checkpoint import load_detector_checkpoint

__all__ = [
    "RUNTIMES",
    "EagerDetector",
    "EngineDetector",
    "LiteRtDetector",
    "Model",
    "OnnxDetector",
    "OpenVinoDetector",
    "load_model",
]


class EngineDetector(FixedBatchModel):
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
    path: Path,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    device: torch.device | str = "cpu",
    cuda_graph: bool = False,
) -> Model:
    """Load a detector file by its suffix: ``.onnx``, ``.tflite``, ``.engine`` or a checkpoint ``.pt``.

    Args:
        path: The file.
        runtime: One of ``RUNTIMES`` that runs such a file; by default the first.
        threads: CPU threads of an ONNX or LiteRT file; ``None`` takes every core.
        device: Of a checkpoint, or OpenVINO's.
        cuda_graph: Run a checkpoint or an engine as CUDA graphs.

    Raises:
        UserError: Missing, damaged, something else, not for this machine, or an unknown suffix or runtime.
    """
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise UserError(f"threads must be an integer of at least 1, but got {threads!r}")
    if runtime is not None:
        if runtime not in RUNTIMES:
            raise UserError(f"a runtime is one of {', '.join(RUNTIMES)}, but got {runtime!r}")
        if path.suffix.lower() != RUNTIMES[runtime]:
            raise UserError(f"{runtime} runs {RUNTIMES[runtime]} files of `smnas export`, but got {path.name}")
    match path.suffix.lower():
        case ".onnx":
            if cuda_graph:
                raise BackendUnavailableError(
                    f"CUDA graphs are for checkpoints and engines, but got {path.name}: ONNX Runtime records none in "
                    "which a size depends on the data"
                )
            if runtime == "openvino":
                return OpenVinoDetector(path, threads=threads, device=str(device))
            return OnnxDetector(path, threads=threads)
        case ".tflite":
            return LiteRtDetector(path, threads=threads)
        case ".engine":
            return EngineDetector(path, cuda_graph=cuda_graph)
        case ".pt":
            return EagerDetector(path, device=device, cuda_graph=cuda_graph)
        case suffix:
            raise ModelFileError(
                f"a model file is .onnx, .tflite, .engine or .pt, but got {path.name} ({suffix or 'no suffix'})"
            )
