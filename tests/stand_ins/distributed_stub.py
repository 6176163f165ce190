"""A tiny deterministic detector and its batches, whole or one process's share of them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from smnas.models.losses import LossOptions
from smnas.models.target import Target
from smnas.training.checkpoint import CheckpointInfo
from smnas.training.recipe import load_recipe


class Stub(nn.Module):
    """Guesses each image's box; the loss is a mean over images, so means over shares are means over batches."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU())
        self.box = nn.Linear(8, 4)

    def loss(self, images: Tensor, targets: list[Target], _: LossOptions) -> dict[str, Tensor]:
        x = self.features(images.float() / 255 - 0.5).mean((2, 3))
        error = (self.box(x) - torch.stack([target.boxes[0] for target in targets]) / 32).abs()
        return {"corner": error[:, :2].mean(), "size": error[:, 2:].mean()}


class StubBatch(NamedTuple):
    images: Tensor
    targets: list[Target]


class ShareOfBatches:
    """Batches of 8 of 24 random images; rank r of n sees every n-th image of each from the r-th on."""

    def __init__(self, rank: int = 0, count: int = 1, spoilt: bool = False) -> None:
        rng = np.random.default_rng(7)
        self.images = rng.integers(0, 255, (24, 3, 32, 32), dtype=np.uint8)
        self.boxes = rng.uniform(0, 32, (24, 1, 4)).astype(np.float32)
        if spoilt:
            self.boxes[:] = np.nan
        self.share = (rank, count)

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int) -> Iterator[StubBatch]:
        order = np.random.default_rng([3, epoch]).permutation(24)
        rank, count = self.share
        for start in range(0, 24, 8):
            rows = order[start : start + 8][rank::count]
            targets = [Target(torch.from_numpy(self.boxes[row]), torch.zeros(1, dtype=torch.int64)) for row in rows]
            yield StubBatch(torch.from_numpy(self.images[rows]), targets)


def info() -> CheckpointInfo:
    return CheckpointInfo(
        architecture="basicblock_16_11-21-21+fpn_2-4_32+rpn+rcnn_64+64x64",
        classes=("square",),
        category_ids=(1,),
        norm="gn-ws",
        stem="deep",
        recipe=load_recipe("nano").with_(epochs=4, batch_size=8, warmup_iterations=2, clip_norm=1.0, ema_decay=0.5),
        seed=5,
        train_images=24,
    )


def detector(seed: int = 0) -> Stub:
    torch.manual_seed(seed)
    return Stub()
