"""Detectors, images and boxes that the questions share."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smnas.data.scene import draw_scene, render
from smnas.models.build import build_detector, deployable
from smnas.models.detector import Detector
from smnas.models.losses import LossOptions
from smnas.models.target import Target
from smnas.space.architecture import Architecture
from smnas.training.optimizer import build_optimizer
from smnas.training.recipe import load_recipe

NANO_BASELINE = "basicblock_16_11-21-21-21+fpn_2-5_64+rpn+rcnn_256+128x128"
SMALL_BASELINE = "basicblock_64_11-21-21-21+fpn_2-6_256+rpn+rcnn_1024+512x512"
RESNET18 = "basicblock_64_11-21-21-21+fpn_2-6_256+rpn+rcnn_1024"
RESNET50 = "bottleneck_64_111-2111-211111-211+fpn_2-6_256+rpn+rcnn_1024"
"""Without the input's size; the usual Faster R-CNN with FPN."""
TINY_DENSE = "basicblock_8_1-2+fpn_2-3_8+norpn+retina_8_1+64x64"
TINY = "basicblock_8_1-2+fpn_2-3_8+rpn+rcnn_32+64x64"
NUM_CLASSES = 6
"""Of the generated shapes."""


def deployed(text: str, classes: int = NUM_CLASSES) -> Detector:
    """A detector with its first random weights, as it is deployed."""
    torch.manual_seed(0)
    return deployable(build_detector(Architecture.parse(text), classes))


class PreparedBatch(NamedTuple):
    """Images and their objects."""

    images: Tensor
    targets: list[Target]


def prepared_batch(architecture: Architecture, count: int) -> PreparedBatch:
    """Generated images of the detector's own size with their objects."""
    rng = np.random.default_rng(0)
    images, targets = [], []
    for _ in range(count):
        scene = draw_scene(architecture.input_width, architecture.input_height, rng)
        pixels, boxes = render(scene, rng)
        corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        images.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        labels = torch.tensor([shape.label for shape in scene.shapes], dtype=torch.int64)
        targets.append(Target(torch.from_numpy(corners), labels))
    return PreparedBatch(torch.stack(images), targets)


def random_boxes(batch: int, count: int, side: float, seed: int) -> Tensor:
    """``(batch, count, 4)`` boxes ``xyxy`` inside a square, most of them small."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * side
    size = torch.rand(batch, count, 2, generator=generator) ** 3 * side
    return torch.cat([corner, (corner + size).clamp(max=side)], dim=2)


def crowded_boxes(count: int, side: float) -> Tensor:
    """``(1, count, 4)`` boxes ``xyxy`` around ``count // 10`` objects, as a detector's candidates are."""
    generator = torch.Generator().manual_seed(count)
    objects = torch.rand(max(1, count // 10), 2, generator=generator) * side * 0.8
    chosen = objects[torch.randint(len(objects), (count,), generator=generator)]
    corner = chosen + torch.randn(count, 2, generator=generator) * side / 100
    size = side / 8 * (0.5 + torch.rand(count, 2, generator=generator))
    return torch.cat([corner, corner + size], dim=1).clamp(0, side)[None]


def training_step(
    detector: Detector, batch: PreparedBatch, losses: LossOptions | None = None, *, channels_last: bool = False
) -> Callable[[], None]:
    """A step of the ``nano`` recipe; its learning rate is so small that the boxes stay where they are."""
    recipe = load_recipe("nano").with_(learning_rate=1e-7)
    optimizer = build_optimizer(detector, recipe)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def step() -> None:
        images = batch.images.contiguous(memory_format=layout)
        loss = torch.stack(list(detector.loss(images, batch.targets, losses or recipe.losses).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(detector.parameters(), recipe.clip_norm or math.inf)
        optimizer.step()

    return step
