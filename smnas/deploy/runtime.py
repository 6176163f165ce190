"""Detector files as functions of pictures: ONNX Runtime, TensorRT or PyTorch behind one interface."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from profiler.backends.engine import Engine
from profiler.backends.onnxruntime import session_options
from profiler.backends.tensorrt import import_tensorrt
from profiler.engines import EngineRefusedError
from profiler.errors import BackendUnavailableError
from smnas.deploy.engine_file import read_engine
from smnas.deploy.graph import INPUT_NAME, OUTPUT_NAMES
from smnas.deploy.metadata import ModelFileError, ModelMetadata
from smnas.evaluation.predict import DetectionArrays, eager_detect
from smnas.models.build import deployable
from smnas.training.checkpoint import load_detector_checkpoint

__all__ = ["INPUT_NAME", "OUTPUT_NAMES", "EagerDetector", "EngineDetector", "Model", "OnnxDetector", "load_model"]


class Model(Protocol):
    """A detector that is ready to run. Calling it is a :data:`~smnas.evaluation.predict.DetectFunction`."""

    @property
    def metadata(self) -> ModelMetadata:
        """What the detector is."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's id of each class."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Canvas ``(width, height)`` in pixels."""

    def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
        """Detect objects on ``(B, 3, H, W)`` ``uint8`` RGB canvases of the input size, any B."""


class _Described:
    """What every kind of model tells from its metadata."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self._metadata = metadata

    @property
    def metadata(self) -> ModelMetadata:
        return self._metadata

    @property
    def classes(self) -> tuple[str, ...]:
        return self._metadata.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        return self._metadata.category_ids

    @property
    def input_size(self) -> tuple[int, int]:
        return self._metadata.input_width, self._metadata.input_height

    def _check(self, images: NDArray[np.uint8]) -> None:
        width, height = self.input_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise ValueError(f"images must be uint8 (B, 3, {height}, {width}), but got {images.dtype} {images.shape}")


class OnnxDetector(_Described):
    """An exported detector, run by ONNX Runtime.

    Args:
        path: The ONNX file.
        threads: CPU threads of one run; ``None`` lets ONNX Runtime take every core.
        providers: Where it runs, best first; by default CUDA where this installation has it, then the CPU.

    Raises:
        ModelFileError: Missing, truncated, not ONNX, or an ONNX file of something else.
        BackendUnavailableError: ONNX Runtime is not installed.
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
        # The options that latencies are measured under; for ONNX Runtime 0 threads are one for every core.
        options = session_options(onnxruntime, 0 if threads is None else threads)
        available = onnxruntime.get_available_providers()
        wanted = providers or ("CUDAExecutionProvider", "CPUExecutionProvider")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=[name for name in wanted if name in available]
            )
        except OSError as error:
            raise ModelFileError(f"{rule}, but {path} can not be read ({error.strerror})") from None
        except _session_errors() as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{rule}, but {path} is damaged, cut off or no ONNX file ({reason})") from None
        properties = self._session.get_modelmeta().custom_metadata_map
        super().__init__(ModelMetadata.from_properties(properties, str(path)))
        self.path = path
        self._require_signature()

    @property
    def providers(self) -> tuple[str, ...]:
        """Where it runs, as ONNX Runtime names it, best first."""
        return tuple(self._session.get_providers())

    @property
    def session(self) -> Any:
        """The ``onnxruntime.InferenceSession``."""
        return self._session

    def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
        """Detect objects on ``(B, 3, H, W)`` ``uint8`` RGB canvases, one picture a run: the file's batch is 1."""
        self._check(images)
        if not len(images):
            raise ValueError("at least one picture is needed, but got none")
        runs = [self._session.run(OUTPUT_NAMES, {INPUT_NAME: images[row : row + 1]}) for row in range(len(images))]
        return DetectionArrays(*(np.concatenate(arrays) for arrays in zip(*runs, strict=True)))

    def _require_signature(self) -> None:
        width, height = self.input_size
        inputs = [(value.name, value.type, value.shape) for value in self._session.get_inputs()]
        outputs = tuple(value.name for value in self._session.get_outputs())
        if inputs != [(INPUT_NAME, "tensor(uint8)", [1, 3, height, width])] or outputs != OUTPUT_NAMES:
            raise ModelFileError(
                f"a detector file takes {INPUT_NAME} uint8 (1, 3, {height}, {width}) and gives "
                f"{', '.join(OUTPUT_NAMES)}, but {self.path} takes {inputs} and gives {', '.join(outputs)}"
            )


class EngineDetector(_Described):
    """A detector's engine on its GPU. Not run yet: on a GPU; see :mod:`profiler.backends.engine`.

    Args:
        path: The engine, with its manifest beside it.

    Raises:
        ModelFileError: Missing or damaged, or built by another version or for another GPU.
        BackendUnavailableError: Its module is not installed, or there is no GPU here.
    """

    def __init__(self, path: Path) -> None:
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
            self._engine = Engine(trt, content)
        except EngineRefusedError as error:
            raise ModelFileError(f"an engine is one that its module loads, but for {path.name}: {error}") from error

    def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
        """Detect objects on ``(B, 3, H, W)`` ``uint8`` RGB canvases, one picture a run: the engine's batch is 1."""
        self._check(images)
        if not len(images):
            raise ValueError("at least one picture is needed, but got none")
        runs = []
        for row in range(len(images)):
            found = self._engine({INPUT_NAME: torch.from_numpy(images[row : row + 1])})
            runs.append([found[name].cpu().numpy() for name in OUTPUT_NAMES])
        return DetectionArrays(*(np.concatenate(arrays) for arrays in zip(*runs, strict=True)))


class EagerDetector(_Described):
    """A trained checkpoint, run by PyTorch.

    Args:
        path: The checkpoint file.
        device: Where it runs.

    Raises:
        CheckpointError: Missing, damaged or not a checkpoint.
    """

    def __init__(self, path: Path, *, device: torch.device | str = "cpu") -> None:
        detector, info = load_detector_checkpoint(path)
        super().__init__(ModelMetadata.of_checkpoint(info, detector.input_size))
        self.path = path
        self.device = torch.device(device)
        self._detect = eager_detect(deployable(detector), self.device)

    def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
        """Detect objects on ``(B, 3, H, W)`` ``uint8`` RGB canvases of the input size, any B."""
        self._check(images)
        return self._detect(images)


def load_model(path: Path, *, threads: int | None = None, device: torch.device | str = "cpu") -> Model:
    """Load a detector file by its suffix: ``.onnx``, ``.engine`` or a checkpoint ``.pt``.

    Args:
        path: The file.
        threads: CPU threads of one run of an ONNX file.
        device: Where a checkpoint runs.

    Raises:
        UserError: Missing, damaged, something else, not for this machine, or a suffix that stands for none of them.
    """
    match path.suffix.lower():
        case ".onnx":
            return OnnxDetector(path, threads=threads)
        case ".engine":
            return EngineDetector(path)
        case ".pt":
            return EagerDetector(path, device=device)
        case suffix:
            raise ModelFileError(
                f"a model file is .onnx, .engine or .pt, but got {path.name} ({suffix or 'no suffix'})"
            )


def _session_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises while loading: a dozen classes that share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = (getattr(state, name) for name in dir(state))
    return (RuntimeError, *(one for one in found if isinstance(one, type) and issubclass(one, Exception)))
