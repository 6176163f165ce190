"""Images through a detector in overlapping stages: other threads decode and resize while the network runs.

Look-ahead is bounded, results keep the order of the images, and every stage is timed.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from profiler.errors import UserError
from smnas.data.image import Decoded
from smnas.data.letterbox import letterbox
from smnas.inference.detections import Detection, named_detections
from smnas.inference.runtime import Model

__all__ = ["DetectOptions", "Found", "StageTimes", "find_objects", "map_ahead", "read_ahead"]

T = TypeVar("T")
R = TypeVar("R")
_END: Any = object()


@dataclass(frozen=True)
class DetectOptions:
    """Options of detection.

    Attributes:
        batch: Images per call of the network; by default the file's batch size, which is 1 for a checkpoint. Gray
            images fill up the call of a file with a larger batch size.
        workers: Threads that decode, resize and draw in parallel to the network; 0 runs everything in turn.
        quick_decode: Decode large JPEG files at reduced size (see :func:`smnas.data.image.decode`), except those to be
            drawn on. Boxes move by little more than with a copy saved at quality 92.
    """

    score: float = 0.3
    batch: int | None = None
    workers: int = 2
    quick_decode: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise UserError(f"`0 <= score <= 1` must hold, but got score={self.score}")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"`batch >= 1` must hold, but got batch={self.batch}")
        if self.workers < 0:
            raise UserError(f"`workers >= 0` must hold, but got workers={self.workers}")

    def batch_for(self, model: Model) -> int:
        """Return the number of images per call of a model."""
        return self.batch or model.metadata.batch


@dataclass
class StageTimes:
    """Seconds per stage over all images. Stages overlap, so their sum may exceed ``wall_s``, except without workers.

    Attributes:
        images: Number of images that passed the network.
        wall_s: From the first image to the last result, without loading the detector.
        decode_s: Files to RGB pixels.
        preprocess_s: Pixels to canvases.
        network_s: Canvases to boxes after NMS, with the copies to and from a GPU.
        postprocess_s: Boxes to named detections in image pixels.
        draw_s: Drawing and writing the drawn copies.
    """

    images: int = 0
    wall_s: float = 0.0
    decode_s: float = 0.0
    preprocess_s: float = 0.0
    network_s: float = 0.0
    postprocess_s: float = 0.0
    draw_s: float = 0.0

    @property
    def images_per_s(self) -> float:
        """Images per second of wall time; 0 before the first."""
        return self.images / self.wall_s if self.wall_s else 0.0

    def ms_per_image(self) -> dict[str, float]:
        """Milliseconds per image by stage."""
        stages = ("decode", "preprocess", "network", "postprocess", "draw")
        return {stage: 1e3 * getattr(self, f"{stage}_s") / max(1, self.images) for stage in stages}


@dataclass(frozen=True)
class Found(Generic[T]):
    """Detections on one image.

    Attributes:
        size: Width and height in pixels; zeros if it could not be decoded.
        detections: Best first.
        image: RGB, if kept.
        error: Why there is no image.
    """

    source: T
    size: tuple[int, int] = (0, 0)
    detections: tuple[Detection, ...] = ()
    image: Image.Image | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class _Prepared(Generic[T]):
    """An image on its canvas ``(3, H, W)``, and the times taken."""

    found: Found[T]
    canvas: NDArray[np.uint8] | None
    scale: float
    decode_s: float
    preprocess_s: float


def find_objects(
    model: Model,
    sources: Iterable[T],
    decode: Callable[[T], Decoded],
    options: DetectOptions,
    times: StageTimes,
    *,
    keep_images: bool = False,
) -> Generator[Found[T], None, None]:
    """Detect objects on every image, in order; an undecodable image gives a result with its error.

    Args:
        model: The detector.
        sources: Consumed lazily, a bounded number ahead.
        decode: Decodes a source; called in several threads. ``UserError``, ``OSError`` and ``MemoryError`` are taken as
            the image's errors.
        options: Score, batch and threads.
        times: Every stage's time is added here.
        keep_images: Keep the images in the results.
    """
    width, height = model.input_size

    def prepare(source: T) -> _Prepared[T]:
        began = time.perf_counter()
        try:
            image = decode(source)
            decoded = time.perf_counter()
            canvas, scale = letterbox(image.image, width, height)
            found = Found(source, image.size, image=image.image if keep_images else None)
            planes = np.ascontiguousarray(canvas.transpose(2, 0, 1))
        except (UserError, OSError, MemoryError) as error:
            return _Prepared(Found(source, error=error), None, 1.0, time.perf_counter() - began, 0.0)
        return _Prepared(found, planes, scale / image.reduction, decoded - began, time.perf_counter() - decoded)

    batch = options.batch_for(model)
    buffer = _pinned_buffer(model, batch)
    with closing(map_ahead(prepare, sources, options.workers, batch + options.workers)) as prepared:
        while group := list(islice(prepared, batch)):
            yield from _run(model, group, options.score, times, buffer)


def _run(
    model: Model,
    group: list[_Prepared[T]],
    score: float,
    times: StageTimes,
    buffer: NDArray[np.uint8] | None,
) -> Iterator[Found[T]]:
    times.decode_s += sum(one.decode_s for one in group)
    times.preprocess_s += sum(one.preprocess_s for one in group)
    canvases = [one.canvas for one in group if one.canvas is not None]
    if canvases:
        began = time.perf_counter()
        if buffer is not None:
            images = np.stack(canvases, out=buffer[: len(canvases)])
        else:
            images = canvases[0][None] if len(canvases) == 1 else np.stack(canvases)
        arrays = model(images)
        times.network_s += time.perf_counter() - began
        times.images += len(canvases)
    row = 0
    for one in group:
        if one.canvas is None:
            yield one.found
            continue
        began = time.perf_counter()
        detections = named_detections(model, arrays, row, one.scale, one.found.size, score)
        times.postprocess_s += time.perf_counter() - began
        row += 1
        yield Found(one.found.source, one.found.size, detections, one.found.image)


def _pinned_buffer(model: Model, batch: int) -> NDArray[np.uint8] | None:
    """Allocate pinned memory for a batch, so that a GPU fetches the canvases itself; ``None`` without a GPU."""
    if not model.on_gpu or not torch.cuda.is_available():
        return None
    width, height = model.input_size
    buffer: NDArray[np.uint8] = torch.empty((batch, 3, height, width), dtype=torch.uint8, pin_memory=True).numpy()
    return buffer


def map_ahead(function: Callable[[T], R], items: Iterable[T], workers: int, depth: int) -> Generator[R, None, None]:
    """``map`` with results computed ahead by threads, in the order of the items.

    ``items`` are iterated in the calling thread, up to ``depth`` ahead of the current result; without workers every
    result is computed on demand.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="smnas-detect")
    try:
        ahead: deque[Future[R]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > depth:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Iterate in another thread, up to ``depth`` items ahead."""
    source = iter(items)
    pool = ThreadPoolExecutor(1, thread_name_prefix="smnas-read")
    try:
        ahead: deque[Future[T]] = deque()
        while True:
            while len(ahead) <= depth:
                ahead.append(pool.submit(next, source, _END))
            item = ahead.popleft().result()
            if item is _END:
                return
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
