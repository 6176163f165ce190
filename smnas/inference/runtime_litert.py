"""LiteRT files (``.tflite``) as functions of images.

The metadata is an associated file, as TensorFlow Lite's own is: a ZIP archive after the model, whose interpreter reads
what comes before.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiler.backends.litert import open_interpreter
from profiler.errors import one_line
from smnas.inference.metadata import ModelFileError, ModelMetadata
from smnas.inference.runtime_base import FixedBatchModel
from smnas.training.device import cpu_cores

__all__ = ["LiteRtDetector", "with_metadata"]

_MEMBER = "smnas.json"
_RULE = "a detector file is one that `smnas export` wrote"


class LiteRtDetector(FixedBatchModel):
    """An exported detector, run by LiteRT on a CPU.

    Args:
        path: The ``.tflite`` file.
        threads: CPU threads of one run; ``None`` takes every core.

    Raises:
        ModelFileError: Missing, damaged, or another kind of LiteRT file.
        BackendUnavailableError: LiteRT is not installed.
    """

    on_gpu = False

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        if not path.is_file():
            raise ModelFileError(f"{_RULE}, but there is no file {path}")
        content = path.read_bytes()
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                properties = json.loads(archive.read(_MEMBER))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ModelFileError(f"{_RULE}, but {path} is damaged or something else ({one_line(error)})") from None
        super().__init__(ModelMetadata.from_properties(properties, str(path)))
        self.path = path
        try:
            self._interpreter: Any = open_interpreter(content, threads or cpu_cores())
        except (ValueError, RuntimeError) as error:
            raise ModelFileError(f"{_RULE}, but LiteRT can not load {path} ({one_line(error)})") from None
        (images,) = self._interpreter.get_input_details()
        self._images = images["index"]
        self._outputs = [spec["index"] for spec in self._interpreter.get_output_details()]
        self._free = Lock()

    def _run(self, images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        with self._free:  # an interpreter takes one call at a time
            self._interpreter.set_tensor(self._images, images)
            self._interpreter.invoke()
            num, boxes, scores, labels = (self._interpreter.get_tensor(index) for index in self._outputs)
        return num.astype(np.int64), boxes, scores, labels.astype(np.int64)


def with_metadata(model: bytes, metadata: ModelMetadata) -> bytes:
    """Append a detector's metadata to its LiteRT model; the same model gives the same bytes."""
    content = io.BytesIO(model)
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_MEMBER), json.dumps(metadata.to_properties(), sort_keys=True))
    return content.getvalue()
