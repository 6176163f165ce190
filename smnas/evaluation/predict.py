"""Runs a detector on a whole split and gives COCO results in pixels of the original images.

The detector is a function of ``uint8`` NumPy batches, so that an ``nn.Module``, an ONNX file and an engine take the
same path and their numbers are comparable.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smnas.data.coco import DetectionDataset
from smnas.data.letterbox import to_original
from smnas.data.loader import EvalBatch, eval_batches
from smnas.evaluation.coco_eval import CocoMetrics, CocoResult, evaluate_results

__all__ = ["DetectFunction", "DetectionArrays", "coco_results", "eager_detect", "evaluate", "host_arrays"]


class DetectionArrays(NamedTuple):
    """Detections of a batch, padded to K rows per image.

    Attributes:
        num: ``(B,)`` int64, number of valid rows of each image.
        boxes: ``(B, K, 4)`` float32, ``xyxy`` in pixels of the canvas.
        scores: ``(B, K)`` float32.
        labels: ``(B, K)`` int64, 0-based.
    """

    num: NDArray[np.int64]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


DetectFunction = Callable[[NDArray[np.uint8]], DetectionArrays]
"""Maps ``(B, 3, H, W)`` ``uint8`` RGB images on the canvas to detections."""


def eager_detect(detector: nn.Module, device: torch.device | str) -> DetectFunction:
    """Wrap a detector as a function of arrays that runs in PyTorch on ``device`` in evaluation mode.

    The detector is moved to the device. Its training mode is restored after each call.
    """
    target = torch.device(device)
    detector.to(target)

    def detect(images: NDArray[np.uint8]) -> DetectionArrays:
        was_training = detector.training
        detector.eval()
        try:
            with torch.inference_mode():
                # asynchronous from page-locked memory, an ordinary copy from other memory
                found = detector(torch.from_numpy(images).to(target, non_blocking=True))
        finally:
            detector.train(was_training)
        return DetectionArrays(*host_arrays(found))

    return detect


def host_arrays(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Copy tensors of one device to arrays; all copies from a GPU are started before one synchronization."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if tensors[0].is_cuda:
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in copies]


def evaluate(
    detect: DetectFunction,
    dataset: DetectionDataset,
    width: int,
    height: int,
    batch_size: int,
    *,
    category_ids: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CocoMetrics:
    """Compute the 12 COCO numbers of a detector on a split.

    Args:
        detect: The detector.
        dataset: The images.
        width: Canvas width in pixels.
        height: Canvas height in pixels.
        batch_size: Images per batch.
        category_ids: Category id of each label; by default the data set's.
        on_progress: Called with the number of finished images and the total.

    Raises:
        DataError: an image cannot be decoded.
    """
    results: list[CocoResult] = []
    done = 0
    for batch in eval_batches(dataset, width, height, batch_size):
        results += coco_results(detect(batch.images), batch, category_ids or dataset.category_ids)
        done += len(batch.image_ids)
        if on_progress is not None:
            on_progress(done, len(dataset))
    return evaluate_results(dataset.ground_truth(), results)


def coco_results(found: DetectionArrays, batch: EvalBatch, category_ids: Sequence[int]) -> list[CocoResult]:
    """Detections on a batch in COCO's results format: boxes in pixels of the image, clipped to it, unrounded."""
    results: list[CocoResult] = []
    for row, (image_id, scale, (width, height)) in enumerate(
        zip(batch.image_ids, batch.scales, batch.sizes, strict=True)
    ):
        count = int(found.num[row])
        boxes = to_original(found.boxes[row, :count], scale, width, height)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(
            boxes.tolist(), found.scores[row, :count].tolist(), found.labels[row, :count].tolist(), strict=True
        ):
            results.append({"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score})
    return results
