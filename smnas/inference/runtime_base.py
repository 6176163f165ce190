"""What a loaded detector file is: a function of images, with a description."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smnas.data.letterbox import PAD_VALUE
from smnas.evaluation.predict import DetectionArrays
from smnas.inference.metadata import ModelMetadata

__all__ = ["RUNTIMES", "FixedBatchModel", "Model"]

RUNTIMES = {"onnxruntime": ".onnx", "openvino": ".onnx", "litert": ".tflite"}
"""Runtimes of exported files, with the suffix of what each runs; the first of a suffix is its default."""


class Model(ABC):
    """A detector that is ready to run, callable as a :data:`~smnas.evaluation.predict.DetectFunction`.

    Attributes:
        metadata: Description of the detector.
        classes: Names, in the order of the labels.
        category_ids: The data set's id of each class.
        input_size: Canvas ``(width, height)`` in pixels.
        path: Of the file.
        on_gpu: Whether canvases are copied to a GPU, which is faster from pinned memory.
    """

    path: Path
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


class FixedBatchModel(Model):
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
