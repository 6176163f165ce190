"""Weights that all detectors of a space share."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from smnas.api.arguments import OnProgress, StrPath, one_of, open_data, quiet, recipe_of

if TYPE_CHECKING:
    from smnas.supernet.supernet import Supernet
    from smnas.training.curve import EpochLog, StepLog
    from smnas.training.recipe import Recipe

__all__ = ["train_supernet"]

_log = logging.getLogger(__name__)


def train_supernet(
    preset: str,
    data: StrPath,
    out: StrPath,
    *,
    epochs: int | None = None,
    recipe: "str | Path | Recipe" = "nano",
    batch_size: int | None = None,
    norm: str = "gn-ws",
    drop_bad_boxes: bool = False,
    drop_bad_images: bool = False,
    seed: int = 0,
    on_epoch: "Callable[[EpochLog], None] | None" = None,
    on_progress: OnProgress = quiet,
) -> "Supernet":
    """Train weights that all detectors of a space share, or resume; see :mod:`smnas.supernet.supernet`.

    A search with ``scorer`` shared-ap and the same settings finds them in the folder ``supernet`` of its run folder.

    Args:
        preset: Search space: ``nano``, ``small``, ``paper`` or a .toml file.
        data: COCO-format folder.
        out: Where checkpoint and curve go.
        epochs: Passes over the data; by default the recipe's.
        recipe: Name, .toml file or value.
        batch_size: Images per step; by default the recipe's.
        norm: ``gn-ws`` or ``gn``.
        drop_bad_boxes: Leave out boxes without a size or outside their image.
        drop_bad_images: Leave out images that are missing, damaged or of another size than annotated.
        seed: Random seed.
        on_epoch: Called after every epoch.
        on_progress: Called while training.

    Raises:
        UserError: an argument or the data breaks a rule, or ``out`` holds another run.
        TrainingFailedError: training diverges or runs out of memory.
    """
    from smnas.models.layers import NormKind
    from smnas.space.preset import load_space
    from smnas.supernet.training import train_supernet as train
    from smnas.training.device import training_device

    def step(log: "StepLog") -> None:
        text = f"loss {log.loss:.3f}  {log.images_per_s:.0f} images/s"
        on_progress("epoch", log.share_done * log.epochs, log.epochs, text)

    settings, device = recipe_of(recipe).with_(epochs=epochs, batch_size=batch_size), training_device()
    folder = open_data(data, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images)
    _log.info("training shared weights on %s: %d epochs", device, settings.epochs)
    return train(
        load_space(preset),
        folder,
        settings,
        out_dir=Path(out),
        seed=seed,
        norm=one_of("--norm", NormKind, norm),
        device=device,
        on_epoch=on_epoch,
        on_step=step,
    )
