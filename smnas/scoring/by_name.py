"""The scorers by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch

from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.scoring.base import Scorer, ScorerFacts
from smnas.scoring.entropy_scorer import ENTROPY_SCORERS
from smnas.scoring.trained_ap import TrainedAP
from smnas.space.architecture import Architecture
from smnas.training.recipe import Recipe

__all__ = ["SCORERS", "AnyScorer", "ScorerClass", "ScorerOnDevices", "UnknownScorerError", "get_scorer", "quick_score"]


class ScorerClass(ScorerFacts, Protocol):
    """A scorer that is made for a data set, a recipe and a device."""

    def __call__(self, data: CocoFolder, recipe: Recipe, device: torch.device | str, /) -> Scorer:
        """Make it."""
        ...


AnyScorer = str | Scorer | ScorerClass
"""A name, or one's own: an object that scores, or a class of such, made with data set, recipe and device."""

SCORERS: dict[str, Scorer | ScorerClass] = {
    "ap": TrainedAP,
    **ENTROPY_SCORERS,
}
_LATER = ("bn-indicator",)


class UnknownScorerError(UserError):
    """Unknown name, or a scorer of a later version."""


def get_scorer(scorer: AnyScorer) -> Scorer | ScorerClass:
    """Find a scorer by the name that the command line uses; one's own is returned as it is.

    Raises:
        UnknownScorerError: no such scorer, or it is not part of this version; the message lists those that are.
    """
    if not isinstance(scorer, str):
        return scorer
    if scorer in SCORERS:
        return SCORERS[scorer]
    known = ", ".join(sorted(SCORERS))
    if scorer in _LATER:
        raise UnknownScorerError(f"a scorer is one of {known} in this version; {scorer!r} is planned but not there yet")
    raise UnknownScorerError(f"a scorer is one of {known}, but got {scorer!r}")


def quick_score(scorer: AnyScorer) -> Callable[[Architecture], float] | None:
    """The values of a scorer that needs nothing but the architecture; None for any other one."""
    found = get_scorer(scorer)
    if isinstance(found, type) or found.trains or hasattr(found, "prepare"):
        return None
    ready = cast("Scorer", found)
    return lambda architecture: ready.score(architecture, seed=0, epochs=0, out_dir=Path()).value


@dataclass(frozen=True)
class ScorerOnDevices:
    """Makes a worker's scorer, on that worker's device. Small enough to be sent to a process.

    Attributes:
        scorer: Its name, or one's own.
        data: Root of the data set.
        recipe: How to train.
        devices: Worker i takes the i-th, and starts over where there are fewer devices than workers.
        drop_bad_boxes: See :class:`~smnas.data.coco.CocoFolder`.
        drop_bad_images: See there.
    """

    scorer: AnyScorer
    data: Path
    recipe: Recipe
    devices: tuple[str, ...]
    drop_bad_boxes: bool = False
    drop_bad_images: bool = False

    @property
    def prepares(self) -> bool:
        """Whether its scorers make something before the first score."""
        return hasattr(get_scorer(self.scorer), "prepare")

    def __call__(self, worker: int) -> Scorer:
        """The scorer of one worker."""
        found = get_scorer(self.scorer)
        if not isinstance(found, type):
            return cast("Scorer", found)
        folder = CocoFolder(self.data, drop_bad_boxes=self.drop_bad_boxes, drop_bad_images=self.drop_bad_images)
        return found(folder, self.recipe, self.devices[worker % len(self.devices)])
