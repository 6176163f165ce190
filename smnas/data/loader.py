"""Batches: augmented for training, letterboxed for evaluation."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smnas.data.augment import Augmentation, Tile, draw_tiles, draw_view, place_boxes, place_image, shift_colors
from smnas.data.coco import DetectionDataset
from smnas.data.letterbox import PAD_VALUE, fit_scale, resized
from smnas.models.target import Target

__all__ = ["Batch", "EvalBatch", "TrainLoader", "eval_batches"]

# Images are cached at this multiple of the canvas, so that scale jitter up to it enlarges no pixel.
_CACHE_HEADROOM = 1.5


class Batch(NamedTuple):
    """Training images.

    Attributes:
        images: ``(B, 3, H, W)`` ``uint8``, RGB, contiguous.
        targets: per image, boxes in canvas pixels and 0-based labels, without crowds.
    """

    images: Tensor
    targets: list[Target]


@dataclass(frozen=True)
class EvalBatch:
    """Evaluation images.

    Attributes:
        images: ``(B, 3, H, W)`` ``uint8``, RGB, contiguous; letterboxed.
        image_ids: of the annotation file.
        scales: canvas pixels per image pixel.
        sizes: width and height of each image in pixels.
    """

    images: NDArray[np.uint8]
    image_ids: tuple[int, ...]
    scales: tuple[float, ...]
    sizes: tuple[tuple[int, int], ...]


@dataclass(eq=False)
class TrainLoader:
    """Augmented batches in a random order that depends only on seed and epoch.

    Neither the number of threads nor earlier reads change a batch: order and augmentation have generators of their own,
    seeded with ``(seed, epoch)`` and ``(seed, epoch, image)``. Decoded images stay in the data set's memory at up to
    1.5 times the canvas (see :meth:`DetectionDataset.shrunk`).

    Args:
        dataset: the images.
        width: of the canvas in pixels.
        height: of the canvas in pixels.
        batch_size: images per batch. An epoch drops its last batch if smaller, unless it is the only one.
        seed: not negative.
        augmentation: of each image.
        mosaic_epochs: epochs with mosaics; later ones show whole images, as at inference. ``None``: all of them.
        share: rank and number of the DDP ranks; each makes its equal part of the same batch.
        turn: of several loaders that make the batches of an epoch in turn, which one this is, and their number; another
            one begins every epoch.
        workers: threads that make batches ahead; 0 makes each batch on demand.
    """

    dataset: DetectionDataset
    width: int
    height: int
    batch_size: int
    seed: int
    _: KW_ONLY
    augmentation: Augmentation = field(default_factory=Augmentation)
    mosaic_epochs: int | None = None
    share: tuple[int, int] = (0, 1)
    turn: tuple[int, int] = (0, 1)
    workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seed", 0), ("workers", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"`{name} >= {least}` must hold, but got {name}={value}")
        part, parts = self.share
        if not 0 <= part < parts or self.batch_size % parts:
            raise ValueError(
                f"`0 <= part < parts` and equal parts of batch_size={self.batch_size} must hold, got {self.share}"
            )

    def __len__(self) -> int:
        return max(1, len(self.dataset) // self.batch_size)

    def without_mosaics(self, epoch: int | None) -> None:
        """Show whole images from this epoch on (from 0); None: mosaics in all epochs."""
        self.mosaic_epochs = epoch

    def epoch(self, number: int) -> Iterator[Batch]:
        """Iterate over the batches of one epoch.

        Raises:
            DataError: an image can not be decoded.
        """
        order = np.random.default_rng([self.seed, number]).permutation(len(self.dataset))
        part, parts = self.share
        steps = range((self.turn[0] - number) % self.turn[1], len(self), self.turn[1])
        groups = [order[step * self.batch_size :][: self.batch_size][part::parts] for step in steps]
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
        images = np.empty((len(indices), 3, self.height, self.width), dtype=np.uint8)
        mosaics = self.mosaic_epochs is None or epoch < self.mosaic_epochs
        targets: list[Target] = []
        for out, index in zip(images, indices.tolist(), strict=True):
            # Seeds of fewer than five words are padded with zeros, so image 0 must not be a word 0: it would get the
            # generator of the order.
            rng = np.random.default_rng([self.seed, epoch, index + 1])
            if rng.random() < self.augmentation.mosaic and mosaics:
                boxes, labels = self._mosaic(index, out, rng)
            else:
                boxes, labels = self._place(index, Tile(0, 0, self.width, self.height), out, rng)
            shift_colors(out, self.augmentation.color_jitter, rng)
            targets.append(Target(torch.from_numpy(boxes), torch.from_numpy(labels)))
        return Batch(torch.from_numpy(images), targets)

    def _mosaic(
        self, index: int, out: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Place the image in one of four tiles, three random ones in the others."""
        tiles = draw_tiles((self.width, self.height), rng)
        images = rng.permutation([index, *rng.integers(0, len(self.dataset), 3).tolist()]).tolist()
        placed = [self._place(image, tile, out, rng) for image, tile in zip(images, tiles, strict=True)]
        boxes, labels = zip(*placed, strict=True)
        return np.concatenate(boxes), np.concatenate(labels)

    def _place(
        self, index: int, tile: Tile, out: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Draw an image onto a tile of ``out``; returns its boxes in canvas pixels and their labels."""
        canvas = (self.width, self.height)
        view = draw_view(
            self.dataset.size(index),
            tile.size,
            self.augmentation,
            rng,
            mosaic_of=None if tile.size == canvas else canvas,
        )
        image, scale = self.dataset.shrunk(index, *(int(side * _CACHE_HEADROOM) for side in canvas))
        place_image(image, scale, view, out[:, tile.top : tile.bottom, tile.left : tile.right])
        boxes, labels, crowd = self.dataset.boxes(index)
        boxes, labels = place_boxes(boxes[~crowd], labels[~crowd], view, tile.size, self.augmentation)
        return boxes + np.array([tile.left, tile.top] * 2, dtype=np.float32), labels


def eval_batches(dataset: DetectionDataset, width: int, height: int, batch_size: int) -> Iterator[EvalBatch]:
    """Iterate over a split in file order, letterboxed as for a deployed detector; the last batch may be smaller.

    Raises:
        DataError: an image can not be decoded.
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
                # The image fits into the canvas: the cached copy has still to be enlarged.
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
