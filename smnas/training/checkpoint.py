"""Checkpoints: the weights and settings of a training run, and the state needed to resume it.

The file ``checkpoint.pt`` is replaced atomically after every epoch. During training it includes the optimizer's state;
a complete run keeps only the weights, which ``eval``, ``export`` and ``detect`` read. Files are loaded with
``weights_only=True``: tensors and plain values, never code.
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from profiler.atomic import replace_atomic
from profiler.errors import UserError, first_line
from smnas import __version__
from smnas.data.contents import difference
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.models.layers import NormKind
from smnas.space.architecture import Architecture
from smnas.space.convolutions import StemKind
from smnas.training.curve import EpochLog
from smnas.training.recipe import Recipe
from smnas.training.schedule import decay_end

__all__ = [
    "CHECKPOINT_FILE",
    "Checkpoint",
    "CheckpointError",
    "CheckpointInfo",
    "load_checkpoint",
    "load_detector_checkpoint",
    "record_metrics",
    "require_same_run",
    "save_checkpoint",
]

CHECKPOINT_FILE = "checkpoint.pt"
_FORMAT = "smnas checkpoint"
_FORMAT_VERSION = 2


class CheckpointError(UserError):
    """The file is not a checkpoint of this version, or belongs to another run."""


def _versions() -> dict[str, str]:
    return {"smnas": __version__} | {name: version(name) for name in ("torch", "torchvision", "numpy")}


@dataclass(frozen=True)
class CheckpointInfo:
    """Architecture, classes and training settings of a checkpoint's weights.

    Attributes:
        architecture, norm, stem, recipe, seed: As given to the run.
        classes: Class names in the order of the detector's 0-based labels.
        category_ids: Category id of each class in the data set.
        train_images: Number of images in the training split.
        pretrained: Digest of the weights that training started from; ``None`` from scratch.
        started_from: Their name, and the fraction of the backbone that they gave, for a reader.
        data: Content of the splits, see :mod:`smnas.data.contents`; empty in files of earlier versions.
        epoch: Number of finished epochs.
        decay_from: Epochs before the decay of an automatic schedule, once it is decided; it fixes the end.
        stop_reason: Why it was decided.
        metrics: COCO numbers of the finished detector; empty before it is evaluated. Of held-out images where there
            are any, with ``validation_ap`` beside them.
        versions: Versions of the software that wrote the file.
    """

    architecture: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    norm: NormKind
    stem: StemKind
    recipe: Recipe
    seed: int
    train_images: int
    pretrained: str | None = None
    started_from: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    decay_from: int | None = None
    stop_reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=_versions)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def end_epoch(self) -> int:
        """The last epoch; of an automatic schedule whose end is not decided, the last that it may have."""
        return self.recipe.epochs if self.decay_from is None else min(decay_end(self.decay_from), self.recipe.epochs)

    @property
    def complete(self) -> bool:
        """Whether all epochs are finished."""
        return self.epoch >= self.end_epoch

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "recipe": self.recipe.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CheckpointInfo":
        """The inverse of :meth:`to_dict`; raises ``TypeError`` or ``KeyError`` for other keys."""
        return cls(
            **{
                **values,
                "classes": tuple(values["classes"]),
                "category_ids": tuple(values["category_ids"]),
                "recipe": Recipe.parse(values["recipe"]),
            }
        )


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    No generator state is stored: each epoch is seeded by the run's seed and the epoch's number.

    Attributes:
        info: Architecture, classes and training settings.
        model: ``state_dict`` of the detector; in a complete run with a moving average, the averaged weights.
        average: ``state_dict`` of the moving average; ``None`` without one and once training is complete.
        optimizer: ``state_dict`` of the optimizer; ``None`` once training is complete.
        scaler: ``state_dict`` of the gradient scaler; ``None`` without float16 and once training is complete.
        history: The finished epochs.
        best: ``state_dict`` of the evaluated epoch with the highest AP, averaged if weights are; ``None`` without
            evaluations, and once training is complete if it is the last epoch's.
    """

    info: CheckpointInfo
    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None = None
    optimizer: Mapping[str, Any] | None = None
    scaler: Mapping[str, Any] | None = None
    history: tuple[EpochLog, ...] = ()
    best: Mapping[str, Tensor] | None = None

    @property
    def deployed(self) -> Mapping[str, Tensor]:
        """The weights to use: of a complete run, the best evaluated epoch's, else the last epoch's."""
        return self.best if self.best is not None and self.info.complete else self.model


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file at ``path`` atomically: a killed process leaves the old file or the new one."""
    values = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "info": checkpoint.info.to_dict(),
        "model": dict(checkpoint.model),
        "average": None if checkpoint.average is None else dict(checkpoint.average),
        "optimizer": checkpoint.optimizer,
        "scaler": checkpoint.scaler,
        "history": [log.to_dict() for log in checkpoint.history],
        "best": None if checkpoint.best is None else dict(checkpoint.best),
    }
    replace_atomic(path, lambda file: torch.save(values, file))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file onto the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, no checkpoint, or of another format version.
    """
    rule = "a checkpoint is a .pt file that training wrote"
    if not path.is_file():
        raise CheckpointError(f"{rule}, but there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{rule}, but {path} is something else or was cut off")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        LookupError,
    ) as error:
        # torch's own message on unpickling advises loading code as well
        reason = "no tensors" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise CheckpointError(f"{rule}, but {path} is damaged or something else ({reason})") from None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise CheckpointError(f"{rule}, but {path} holds something else")
    if (found := values.get("format_version")) != _FORMAT_VERSION:
        raise CheckpointError(
            f"this version reads checkpoints of format {_FORMAT_VERSION}, but {path} has format {found}"
        )
    try:
        return Checkpoint(
            info=CheckpointInfo.from_dict(values["info"]),
            model=values["model"],
            average=values["average"],
            optimizer=values["optimizer"],
            scaler=values["scaler"],
            history=tuple(EpochLog.from_dict(log) for log in values["history"]),
            best=values.get("best"),
        )
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{rule}, but {path} lacks a part or has one too many ({error})") from None


def load_detector_checkpoint(path: Path) -> tuple[Detector, CheckpointInfo]:
    """Build the detector of a checkpoint and load its weights, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: as :func:`load_checkpoint`, or the weights are not this architecture's.
    """
    checkpoint = load_checkpoint(path)
    info = checkpoint.info
    with torch.random.fork_rng(devices=[]):
        detector = build_detector(
            Architecture.parse(info.architecture), info.num_classes, norm=info.norm, stem=info.stem
        )
    try:
        detector.load_state_dict(checkpoint.deployed)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights of {path} must be those of {info.architecture}, but got others ({first_line(error)})"
        ) from None
    return detector.eval(), info


def record_metrics(path: Path, metrics: Mapping[str, float], data: Mapping[str, Any]) -> None:
    """Store the metrics of a finished detector in its checkpoint, and the contents of the split that they are of.

    Raises:
        CheckpointError: as :func:`load_checkpoint`.
    """
    checkpoint = load_checkpoint(path)
    info = replace(checkpoint.info, metrics=dict(metrics), data={**checkpoint.info.data, **data})
    save_checkpoint(path, replace(checkpoint, info=info))


def require_same_run(found: CheckpointInfo, wanted: CheckpointInfo, path: Path) -> None:
    """Refuse to resume from a checkpoint of another run.

    Raises:
        CheckpointError: the first setting that differs, with both values, or how the data set does.
    """
    wants = _identity(wanted)
    different = [
        f"with {key}={value}, but got {wants[key]}" for key, value in _identity(found).items() if value != wants[key]
    ]
    if (other := difference(found.data, wanted.data)) is not None:
        different.append(f"on another data set, but got {other}")
    if different:
        raise CheckpointError(
            f"a training folder holds one run: {path} was trained {different[0]}; choose another folder or delete this "
            "one"
        )


def _identity(info: CheckpointInfo) -> dict[str, Any]:
    values = info.to_dict()
    recipe = values.pop("recipe")
    for name in ("epoch", "decay_from", "stop_reason", "metrics", "versions", "data", "started_from"):
        del values[name]
    del recipe["name"]
    return {**values, **{f"recipe.{key}": value for key, value in recipe.items()}}
