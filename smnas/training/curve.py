"""The training curve: one JSON line per epoch in ``curve.jsonl``."""

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from profiler.atomic import write_atomic

__all__ = ["CURVE_FILE", "EpochLog", "StepLog", "append_curve", "best_epoch", "memory_in_use_mb", "write_curve"]

CURVE_FILE = "curve.jsonl"


@dataclass(frozen=True)
class EpochLog:
    """One finished epoch.

    Attributes:
        epoch: Number of this epoch, from 1.
        epochs: Epochs of the recipe.
        loss: Mean over the epoch's images of the summed losses.
        losses: The same mean for each part of the loss.
        learning_rate: Learning rate of the last step.
        images_per_s: Training images per second, loading included.
        seconds: Wall-clock time of this epoch.
        eta_s: Expected time to the end of the run.
        memory_mb: Peak so far, in 2**20 bytes: allocated on a CUDA device, resident in the process on a CPU.
        ap: COCO AP on the validation split after this epoch, if it was evaluated.
        ap50: AP at IoU 0.5.
        evaluation_s: Time of that evaluation, under an automatic schedule.
    """

    epoch: int
    epochs: int
    loss: float
    losses: Mapping[str, float]
    learning_rate: float
    images_per_s: float
    seconds: float
    eta_s: float
    memory_mb: float
    ap: float | None = None
    ap50: float | None = None
    evaluation_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EpochLog":
        """The inverse of :meth:`to_dict`; raises ``TypeError`` for other keys."""
        return cls(**values)


@dataclass(frozen=True)
class StepLog:
    """One finished step, for a progress bar.

    ``epoch`` counts from 1; ``step`` is the number of finished steps in this epoch. ``loss`` sums the losses of this
    step, ``images_per_s`` is the mean so far in this epoch, and ``eta_s`` the expected time to the end of the run.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_s: float
    eta_s: float

    @property
    def share_done(self) -> float:
        """Finished fraction of the whole run, 0 to 1."""
        return ((self.epoch - 1) * self.steps + self.step) / (self.epochs * self.steps)


def write_curve(path: Path, history: Sequence[EpochLog]) -> None:
    """Write exactly these epochs, so that a resumed run never shows an epoch twice."""
    write_atomic(path, "".join(_line(log) for log in history))


def append_curve(path: Path, log: EpochLog) -> None:
    """Append one epoch."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(log))


def best_epoch(history: Sequence[EpochLog]) -> EpochLog | None:
    """The evaluated epoch with the highest AP, the first of equal ones; None without evaluations."""
    return max((log for log in history if log.ap is not None), key=lambda log: log.ap or 0.0, default=None)


def memory_in_use_mb(device: torch.device) -> float:
    """Peak memory so far, in 2**20 bytes: allocated on a CUDA device, resident in the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _line(log: EpochLog) -> str:
    return json.dumps(log.to_dict(), allow_nan=False) + "\n"
