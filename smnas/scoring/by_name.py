"""The scorers by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.scoring.base import Scorer
from smnas.scoring.entropy import ENTROPY_FORMS
from smnas.scoring.entropy_scorer import EntropyScorer
from smnas.scoring.trained_ap import TrainedAP
from smnas.training.recipe import Recipe

__all__ = ["SCORERS", "ScorerFactory", "ScorerOnDevices", "UnknownScorerError", "get_scorer"]

ScorerFactory = Callable[[CocoFolder, Recipe, torch.device | str], Scorer]
"""Data, recipe and device in, a scorer out."""

SCORERS: dict[str, ScorerFactory] = {
    "ap": TrainedAP,
    **{name: partial(EntropyScorer, name=name) for name in ENTROPY_FORMS},
}
_LATER = ("bn-indicator",)


class UnknownScorerError(UserError):
    """No scorer of this name, or none yet."""


def get_scorer(name: str) -> ScorerFactory:
    """Find a scorer by the name that the command line uses.

    Raises:
        UnknownScorerError: no such scorer, or it is not part of this version; the message lists those that are.
    """
    if name in SCORERS:
        return SCORERS[name]
    known = ", ".join(sorted(SCORERS))
    if name in _LATER:
        raise UnknownScorerError(f"a scorer is one of {known} in this version; {name!r} is planned but not there yet")
    raise UnknownScorerError(f"a scorer is one of {known}, but got {name!r}")


@dataclass(frozen=True)
class ScorerOnDevices:
    """Makes a worker's scorer, on that worker's device. Small enough to be sent to a process.

    Attributes:
        name: Of the scorer.
        data: Root of the data set.
        recipe: How to train.
        devices: Worker i takes the i-th, and starts over where there are fewer devices than workers.
        drop_bad_boxes: See :class:`~smnas.data.coco.CocoFolder`.
    """

    name: str
    data: Path
    recipe: Recipe
    devices: tuple[str, ...]
    drop_bad_boxes: bool = False

    def __call__(self, worker: int) -> Scorer:
        """The scorer of one worker."""
        folder = CocoFolder(self.data, drop_bad_boxes=self.drop_bad_boxes)
        return get_scorer(self.name)(folder, self.recipe, self.devices[worker % len(self.devices)])
