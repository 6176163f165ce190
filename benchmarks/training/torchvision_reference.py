"""Torchvision's Faster R-CNN on a ResNet with FPN, trained from scratch as its own reference script trains; resumable.

The numbers are those of torchvision's ``references/detection/train.py``: BatchNorm, SGD 0.02 for 16 images, momentum
0.9, weight decay 1e-4 on every parameter, a linear warm-up from a thousandth within the first epoch (of 1,000 steps at
most), drops to a tenth after 16 and 22 of 26 epochs (here the same shares of any number), flips and nothing else.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from profiler.atomic import replace_atomic
from smnas.data.augment import Augmentation
from smnas.data.coco import DetectionDataset
from smnas.data.loader import TrainLoader
from smnas.evaluation.predict import DetectFunction, DetectionArrays
from smnas.models.options import DetectorOptions
from smnas.training.curve import CURVE_FILE, EpochLog, append_curve, memory_in_use_mb, write_curve
from smnas.training.epoch import TrainBatch
from smnas.training.errors import DivergedError

__all__ = ["BATCH", "reference_detect", "reference_model", "reference_optimizer", "reference_step", "train_reference"]

BATCH = 16
PEAK_LEARNING_RATE = 0.02
CHECKPOINT_FILE = "reference.pt"


def reference_model(classes: int, size: int, backbone: str = "resnet18") -> FasterRCNN:
    """The model for square canvases of ``size`` pixels, which go through its own resizing unchanged.

    It detects down to the score that this project's detectors do, lower than its own default: AP counts them all.
    """
    body = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    threshold = DetectorOptions().score_threshold
    return FasterRCNN(body, num_classes=classes + 1, min_size=size, max_size=size, box_score_thresh=threshold)


def reference_optimizer(model: FasterRCNN) -> torch.optim.SGD:
    """The optimizer at its peak rate."""
    return torch.optim.SGD(model.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, weight_decay=1e-4)


def reference_rate(epoch: int, step: int, steps: int, epochs: int) -> float:
    """The learning rate of one step, both numbered from 0, in a run of ``epochs`` epochs of ``steps`` steps."""
    rate = PEAK_LEARNING_RATE * 0.1 ** sum(epoch >= round(share * epochs) for share in (16 / 26, 22 / 26))
    warmup = min(1000, steps - 1)
    return rate if epoch or step >= warmup else rate * (0.001 + 0.999 * step / warmup)


def reference_step(
    model: FasterRCNN, optimizer: torch.optim.Optimizer, device: torch.device, batch: TrainBatch, amp: str = "off"
) -> dict[str, float]:
    """One step of training, in float32 or by ``bf16`` autocast; the parts of its loss.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    images = [image.to(device).float() / 255 for image in batch.images]
    targets = [{"boxes": t.boxes.to(device), "labels": t.labels.to(device) + 1} for t in batch.targets]
    with torch.autocast("cuda", torch.bfloat16, enabled=amp == "bf16"):
        losses: dict[str, Tensor] = model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
    if not math.isfinite(loss.item()):
        raise FloatingPointError("the loss is not finite")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {name: value.item() for name, value in losses.items()}


def train_reference(
    dataset: DetectionDataset,
    size: int,
    epochs: int,
    seed: int,
    device: torch.device,
    folder: Path,
    *,
    backbone: str = "resnet18",
    evaluate_every: int,
    evaluate: Callable[[DetectFunction], dict[str, float]],
    on_epoch: Callable[[EpochLog], None],
) -> DetectFunction:
    """Train to the end, resuming from the last finished epoch in ``folder``.

    Every random number of an epoch comes from the seed and the epoch's number, as in this project's own training: a
    resumed run ends as an uninterrupted one.

    Args:
        dataset: The training split.
        size: Of the square canvas, in pixels.
        epochs: How many, in all.
        seed: Of the first weights, the order and flips of images, and the samplers.
        device: Where.
        folder: Checkpoint and curve, of this training alone; it must exist.
        backbone: Of the model.
        evaluate_every: Epochs between evaluations for the curve; 0: none.
        evaluate: COCO numbers of what the model detects.
        on_epoch: Called after every epoch, when it is stored.

    Returns:
        What the trained model detects.

    Raises:
        DivergedError: the loss is not finite.
    """
    torch.manual_seed(seed)
    model = reference_model(len(dataset.classes), size, backbone).to(device)
    optimizer = reference_optimizer(model)
    loader = TrainLoader(dataset, size, size, BATCH, seed, augmentation=Augmentation(flip=0.5))
    history = _resume(folder, model, optimizer)
    for epoch in range(len(history), epochs):
        log = _train_epoch(model, optimizer, loader, device, epoch, epochs)
        if evaluate_every and (log.epoch % evaluate_every == 0 or log.epoch == epochs):
            metrics = evaluate(reference_detect(model, device))
            log = replace(log, ap=metrics["ap"], ap50=metrics["ap50"])
        history.append(log)
        _store(folder, model, optimizer, history)
        on_epoch(log)
    return reference_detect(model, device)


def reference_detect(model: FasterRCNN, device: torch.device) -> DetectFunction:
    """The model as the function of arrays that the evaluation takes."""

    @torch.no_grad()
    def detect(images: NDArray[np.uint8]) -> DetectionArrays:
        model.eval()
        found: Sequence[dict[str, Tensor]] = model([torch.from_numpy(i).to(device).float() / 255 for i in images])
        rows = max(1, *(len(f["scores"]) for f in found))
        num = np.array([len(f["scores"]) for f in found], dtype=np.int64)
        boxes = np.zeros((len(found), rows, 4), np.float32)
        scores, labels = np.zeros((len(found), rows), np.float32), np.zeros((len(found), rows), np.int64)
        for row, f in enumerate(found):
            boxes[row, : num[row]] = f["boxes"].cpu().numpy()
            scores[row, : num[row]] = f["scores"].cpu().numpy()
            labels[row, : num[row]] = f["labels"].cpu().numpy() - 1
        return DetectionArrays(num, boxes, scores, labels)

    return detect


def _train_epoch(
    model: FasterRCNN,
    optimizer: torch.optim.Optimizer,
    loader: TrainLoader,
    device: torch.device,
    epoch: int,
    epochs: int,
) -> EpochLog:
    torch.manual_seed(int(np.random.SeedSequence([loader.seed, epoch]).generate_state(1, np.uint64)[0]))
    model.train()
    sums: defaultdict[str, float] = defaultdict(float)
    images, rate = 0, 0.0
    began = time.perf_counter()
    for step, batch in enumerate(loader.epoch(epoch)):
        rate = reference_rate(epoch, step, len(loader), epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        try:
            losses = reference_step(model, optimizer, device, batch)
        except FloatingPointError as error:
            number = epoch * len(loader) + step
            raise DivergedError(f"{error} in step {number + 1}", number) from error
        images += len(batch.targets)
        for name, value in losses.items():
            sums[name] += value * len(batch.targets)
    seconds = time.perf_counter() - began
    means = {name: value / images for name, value in sums.items()}
    return EpochLog(
        epoch=epoch + 1,
        epochs=epochs,
        loss=sum(means.values()),
        losses=means,
        learning_rate=rate,
        images_per_s=images / seconds,
        seconds=seconds,
        eta_s=seconds * (epochs - epoch - 1),
        memory_mb=memory_in_use_mb(device),
    )


def _store(folder: Path, model: FasterRCNN, optimizer: torch.optim.SGD, history: Sequence[EpochLog]) -> None:
    values: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [log.to_dict() for log in history],
    }
    replace_atomic(folder / CHECKPOINT_FILE, lambda file: torch.save(values, file))
    append_curve(folder / CURVE_FILE, history[-1])


def _resume(folder: Path, model: FasterRCNN, optimizer: torch.optim.SGD) -> list[EpochLog]:
    history: list[EpochLog] = []
    if (folder / CHECKPOINT_FILE).exists():
        values = torch.load(folder / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
        model.load_state_dict(values["model"])
        optimizer.load_state_dict(values["optimizer"])
        history = [EpochLog.from_dict(log) for log in values["history"]]
    write_curve(folder / CURVE_FILE, history)
    return history
