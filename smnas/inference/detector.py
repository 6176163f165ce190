"""The detector as a Python object: images in, named boxes in image pixels out."""

from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smnas.data.image import Decoded, decode, upright_rgb
from smnas.inference.detections import Detection
from smnas.inference.model_file import model_file, usual_runtime
from smnas.inference.pipeline import DetectOptions, StageTimes, find_objects, read_ahead
from smnas.inference.runtime import Model, load_model
from smnas.inference.video import VideoError, VideoFrame, open_camera, open_video

__all__ = ["DetectedFrame", "Detection", "Detector", "Image"]

ImageInput = str | Path | Image.Image | NDArray[np.uint8]
"""A file, a PIL image or a ``(H, W, 3)`` ``uint8`` RGB array."""


@dataclass(frozen=True)
class DetectedFrame:
    """One frame of a video at ``time_s`` seconds from its start; detections best first, boxes in image pixels."""

    index: int
    time_s: float
    image: Image.Image
    detections: tuple[Detection, ...]


class Detector:
    """A trained detector ready to use: ``smnas detect`` from Python.

    Example::

        detector = Detector("my-run", score=0.5)
        for detection in detector(["photo.jpg"])[0]:
            print(detection.name, detection.score, detection.box)

    Args:
        path: An exported ``.onnx`` or ``.tflite`` file, an ``.engine`` or a checkpoint ``.pt``; or the folder of a
            search (its recommended detector) or of a training run.
        score: Score threshold; the file itself keeps detections from 0.01 on.
        batch: Images per call of the network; by default the file's batch size, which is 1 for a checkpoint.
        workers: Threads that decode and resize in parallel to the network; 0 runs everything in turn.
        quick_decode: Decode large JPEG files at reduced size.
        runtime: Runs an ONNX file: ``onnxruntime`` or ``openvino``; by default that of the search, or the first.
        threads: CPU threads of an ONNX or LiteRT file; ``None`` takes every core.
        device: Of a checkpoint, such as ``cuda``; or OpenVINO's, such as ``cpu``.
        cuda_graph: Run a checkpoint or an engine as CUDA graphs; not run on a GPU yet.

    Attributes:
        times: Stage times of the last call, without its wall time.

    Raises:
        UserError: The file is missing, damaged or something else.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        score: float = 0.3,
        batch: int | None = None,
        workers: int = 2,
        quick_decode: bool = False,
        runtime: str | None = None,
        threads: int | None = None,
        device: str = "cpu",
        cuda_graph: bool = False,
    ) -> None:
        self.options = DetectOptions(score, batch, workers, quick_decode)
        runtime = runtime or usual_runtime(Path(path))
        self.model: Model = load_model(
            model_file(Path(path)), runtime=runtime, threads=threads, device=device, cuda_graph=cuda_graph
        )
        self.times = StageTimes()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.model.classes

    def __call__(self, images: Iterable[ImageInput]) -> list[list[Detection]]:
        """Detect objects on images of any size, consumed lazily.

        Returns:
            Detections of each image, best first.

        Raises:
            DataError: A file can not be decoded.
            TypeError: Not an image, such as a float array, or a single image outside a list.
        """
        if isinstance(images, str | Path | Image.Image):
            raise TypeError(f"images come as a list, [image] for one, but got one {type(images).__name__}")
        self.times = StageTimes()
        results = []
        with closing(find_objects(self.model, images, self._decode, self.options, self.times)) as found:
            for one in found:
                if one.error is not None:
                    raise one.error
                results.append(list(one.detections))
        return results

    def frames(self, video: str | Path | int) -> Generator[DetectedFrame, None, None]:
        """Detect objects on every frame of a video file, or of a camera by number until the caller stops.

        Raises:
            UserError: It can not be opened, or breaks off before its end.
        """
        self.times = StageTimes()
        with ExitStack() as stack:
            reader = stack.enter_context(open_camera(video) if isinstance(video, int) else open_video(Path(video)))
            source: Iterable[VideoFrame] = reader
            if self.options.workers:
                source = stack.enter_context(closing(read_ahead(reader, self.options.batch_for(self.model))))
            run = find_objects(self.model, source, VideoFrame.decoded, self.options, self.times, keep_images=True)
            for one in stack.enter_context(closing(run)):
                if one.error is not None or one.image is None:
                    raise one.error or RuntimeError("a kept image is gone")
                yield DetectedFrame(one.source.index, one.source.time_s, one.image, one.detections)
            if reader.problem is not None:
                raise VideoError(reader.problem)

    def _decode(self, image: ImageInput) -> Decoded:
        """Convert any kind of image to RGB; PIL images are treated like their files."""
        if isinstance(image, str | Path):
            return decode(Path(image), canvas=self.model.input_size if self.options.quick_decode else None)
        if isinstance(image, Image.Image):
            return Decoded(upright_rgb(image, "an image"))
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"an image is a file, a PIL image or a uint8 (H, W, 3) RGB array, but got {got}")
        return Decoded(Image.fromarray(image))
