"""Batches: of augmented pictures to train on, and of letterboxed ones to evaluate on."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smnas.data.augment import Augmentation, draw_view, place_boxes, place_image
from smnas.data.coco import DetectionDataset
from smnas.data.letterbox import PAD_VALUE, fit_scale, resized
from smnas.models.target import Target

__all__ = ["Batch", "EvalBatch", "TrainLoader", "eval_batches"]

# Pictures are kept at this multiple of the canvas, so that scale jitter up to it still enlarges no pixel.
_CACHE_HEADROOM = 1.5


class Batch(NamedTuple):
    """Pictures to train on.

    Attributes:
        images: ``(B, 3, H, W)`` ``uint8``, RGB, contiguous.
        targets: for each picture its boxes in pixels of the canvas and 0-based labels; crowds are left out.
    """

    images: Tensor
    targets: list[Target]


@dataclass(frozen=True)
class EvalBatch:
    """Pictures to evaluate on.

    Attributes:
        images: ``(B, 3, H, W)`` ``uint8``, RGB, contiguous; letterboxed.
        image_ids: of each picture in the annotation file.
        scales: of each picture: pixels of the canvas per pixel of the picture.
        sizes: width and height of each picture in pixels.
    """

    images: NDArray[np.uint8]
    image_ids: tuple[int, ...]
    scales: tuple[float, ...]
    sizes: tuple[tuple[int, int], ...]


class TrainLoader:
    """Augmented batches in a random order that is a function of the seed and the epoch alone.

    Neither the number of threads nor what was read before changes a batch: order and each picture's augmentation come
    from generators of their own, seeded with ``(seed, epoch)`` and ``(seed, epoch, picture)``. Decoded pictures stay
    in the data set's memory at up to 1.5 times the canvas (see :meth:`DetectionDataset.shrunk`).

    Args:
        dataset: the pictures.
        width: of the canvas in pixels.
        height: of the canvas in pixels.
        batch_size: pictures in a batch. The last batch of an epoch is dropped if it is smaller, unless it is the only.
        seed: not negative.
        augmentation: what happens to each picture.
        share: which of how many equal parts of each batch this loader makes, for processes that train together; the
            parts of one batch are the whole one's.
        workers: threads that make batches ahead of time; 0 makes each batch when it is asked for.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        width: int,
        height: int,
        batch_size: int,
        seed: int,
        *,
        augmentation: Augmentation | None = None,
        share: tuple[int, int] = (0, 1),
        workers: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size >= 1` must hold, but got batch_size={batch_size}")
        if seed < 0:
            raise ValueError(f"`seed >= 0` must hold, but got seed={seed}")
        if workers < 0:
            raise ValueError(f"`workers >= 0` must hold, but got workers={workers}")
        part, parts = share
        if not 0 <= part < parts or batch_size % parts:
            raise ValueError(f"`0 <= part < parts` and equal parts of batch_size={batch_size} must hold, got {share}")
        self.dataset = dataset
        self.width = width
        self.height = height
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = Augmentation() if augmentation is None else augmentation
        self.share = share
        self.workers = workers

    def __len__(self) -> int:
        """Batches in an epoch."""
        return max(1, len(self.dataset) // self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch.

        Raises:
            DataError: a picture can not be decoded.
        """
        order = np.random.default_rng([self.seed, number]).permutation(len(self.dataset))
        part, parts = self.share
        groups = [order[start * self.batch_size :][: self.batch_size][part::parts] for start in range(len(self))]
        if self.workers == 0:
            for group in groups:
                yield self._batch(number, group)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="smnas-loader")
        try:
            ahead: deque[Future[Batch]] = deque()
            for group in groups:
                ahead.append(pool.submit(self._batch, number, group))
                if len(ahead) > self.workers + 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, epoch: int, indices: NDArray[np.int64]) -> Batch:
        canvas = (self.width, self.height)
        images = np.empty((len(indices), 3, self.height, self.width), dtype=np.uint8)
        targets: list[Target] = []
        for out, index in zip(images, indices.tolist(), strict=True):
            # Seeds of fewer than five words are filled up with zeros, so picture 0 must not be a word 0: it would
            # get the generator of the order.
            rng = np.random.default_rng([self.seed, epoch, index + 1])
            view = draw_view(self.dataset.size(index), canvas, self.augmentation, rng)
            image, scale = self.dataset.shrunk(
                index, int(self.width * _CACHE_HEADROOM), int(self.height * _CACHE_HEADROOM)
            )
            place_image(image, scale, view, out)
            boxes, labels, crowd = self.dataset.boxes(index)
            boxes, labels = place_boxes(boxes[~crowd], labels[~crowd], view, canvas, self.augmentation)
            targets.append(Target(torch.from_numpy(boxes), torch.from_numpy(labels)))
        return Batch(torch.from_numpy(images), targets)


def eval_batches(dataset: DetectionDataset, width: int, height: int, batch_size: int) -> Iterator[EvalBatch]:
    """All pictures of a split in file order, letterboxed as for a deployed detector; the last batch may be smaller.

    Args:
        dataset: the pictures.
        width: of the canvas in pixels.
        height: of the canvas in pixels.
        batch_size: pictures in a batch.

    Raises:
        DataError: a picture can not be decoded.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size >= 1` must hold, but got batch_size={batch_size}")
    for start in range(0, len(dataset), batch_size):
        indices = range(start, min(start + batch_size, len(dataset)))
        images = np.full((len(indices), 3, height, width), PAD_VALUE, dtype=np.uint8)
        scales: list[float] = []
        for out, index in zip(images, indices, strict=True):
            pixels, scale = dataset.shrunk(index, width, height)
            if scale == 1.0:
                # The picture is smaller than the canvas (or fits exactly): what is in memory has still to be enlarged.
                scale = fit_scale(*dataset.size(index), width, height)
                pixels = resized(pixels, scale)
            out[:, : pixels.shape[0], : pixels.shape[1]] = pixels.transpose(2, 0, 1)
            scales.append(scale)
        yield EvalBatch(
            images=images,
            image_ids=dataset.image_ids[start : start + batch_size],
            scales=tuple(scales),
            sizes=tuple(dataset.size(index) for index in indices),
        )
