"""Train the shared weights of a space, one random detector a step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from smnas.data.coco import CocoFolder
from smnas.data.contents import split_contents
from smnas.data.loader import Batch, TrainLoader
from smnas.models.detector import Detector
from smnas.models.layers import NormKind
from smnas.space.preset import Space
from smnas.supernet.supernet import Supernet
from smnas.training.checkpoint import (
    CHECKPOINT_FILE,
    CheckpointError,
    CheckpointInfo,
    load_checkpoint,
    require_same_run,
)
from smnas.training.curve import EpochLog, StepLog
from smnas.training.fit import fit_batches
from smnas.training.recipe import Recipe

__all__ = ["SUPERNET", "load_supernet", "train_supernet"]

SUPERNET = "supernet"
"""Folder of the shared weights inside a run folder."""


@dataclass(frozen=True)
class _Canvases:
    """Batches of each input size in turn; together an epoch's hold every image once."""

    loaders: tuple[TrainLoader, ...]

    def __len__(self) -> int:
        return len(self.loaders[0])

    def epoch(self, epoch: int) -> Iterator[Batch]:
        streams = [loader.epoch(epoch) for loader in self.loaders]
        for step in range(len(self)):
            yield next(streams[(step + epoch) % len(streams)])


def train_supernet(
    space: Space,
    data: CocoFolder,
    recipe: Recipe,
    *,
    out_dir: Path,
    seed: int = 0,
    norm: NormKind = "gn-ws",
    device: torch.device | str = "cpu",
    on_epoch: Callable[[EpochLog], None] | None = None,
    on_step: Callable[[StepLog], None] | None = None,
) -> Supernet:
    """Train the shared weights of ``space``, or resume; complete ones are only read.

    Every step trains one detector, drawn by :meth:`Supernet.draw`; the input sizes take turns. Folder, resuming and
    errors are those of :func:`smnas.training.fit.fit`: a run that was killed ends with the same weights.

    Args:
        space: The space.
        data: Trained on its training split.
        recipe: How to train.
        out_dir: Folder of checkpoint and curve.
        seed: Random seed of weights, images and detectors.
        norm: ``gn-ws`` or ``gn``.
        device: Where to train.
        on_epoch: Called after every epoch.
        on_step: Called after every step.

    Raises:
        UserError, TrainingFailedError: see :func:`~smnas.training.fit.fit`.
    """
    split, path = data.split("train"), out_dir / CHECKPOINT_FILE
    before = load_checkpoint(path) if path.exists() else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = Supernet(space, len(split.classes), norm=norm, state=None if before is None else before.model)
    info = CheckpointInfo(
        architecture=supernet.label,
        classes=tuple(split.classes),
        category_ids=tuple(split.category_ids),
        norm=norm,
        stem="deep",
        recipe=recipe,
        seed=seed,
        train_images=len(split),
        data=split_contents("train", split),
    )
    if before is not None and before.info.complete:
        require_same_run(before.info, info, path)
        return supernet.to(device).eval()
    loaders = [
        TrainLoader(
            split,
            *size,
            recipe.batch_size,
            seed,
            augmentation=recipe.augmentation,
            mosaic_epochs=recipe.mosaic_epochs,
            turn=(index, len(space.inputs)),
        )
        for index, size in enumerate(space.inputs)
    ]
    fit_batches(
        cast("Detector", supernet),  # of a detector, only the loss and the weights are used
        _Canvases(tuple(loaders)),
        info,
        device=device,
        out_dir=out_dir,
        on_epoch=on_epoch,
        on_step=on_step,
    )
    return supernet


def load_supernet(folder: Path, space: Space) -> Supernet:
    """The trained shared weights of ``space`` in ``folder``, on the CPU.

    Raises:
        CheckpointError: there are none, they are another space's, or their training has not ended.
    """
    path = folder / CHECKPOINT_FILE
    checkpoint = load_checkpoint(path)
    info = checkpoint.info
    supernet = Supernet(space, info.num_classes, norm=info.norm, state=checkpoint.deployed)
    if info.architecture != supernet.label or not info.complete:
        raise CheckpointError(
            f"shared weights are those of the {supernet.label}, trained to the end, but {path} has {info.architecture} "
            f"after {info.epoch} of {info.recipe.epochs} epochs"
        )
    return supernet.eval()
