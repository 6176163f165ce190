"""Scorers by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch

from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.models.layers import NormKind
from smnas.scoring.base import Scorer, ScorerFacts
from smnas.scoring.entropy_scorer import ENTROPY_SCORERS
from smnas.scoring.shared_ap import FineTunedAP, SharedAP
from smnas.scoring.trained_ap import TrainedAP
from smnas.space.architecture import Architecture
from smnas.training.pretrained import Pretrained
from smnas.training.recipe import Recipe

__all__ = ["SCORERS", "AnyScorer", "ScorerClass", "ScorerOnDevices", "UnknownScorerError", "get_scorer", "quick_score"]


class ScorerClass(ScorerFacts, Protocol):
    """A scorer class that takes a data set, a recipe and a device."""

    def __call__(self, data: CocoFolder, recipe: Recipe, device: torch.device | str, /) -> Scorer:
        """Make it."""


AnyScorer = str | Scorer | ScorerClass
"""A name, an object that scores, or a class of such, made with data set, recipe and device."""

SCORERS: dict[str, Scorer | ScorerClass] = {
    "ap": TrainedAP,
    "shared-ap": SharedAP,
    "fine-tuned-ap": FineTunedAP,
    **ENTROPY_SCORERS,
}
_LATER = ("bn-indicator",)


class UnknownScorerError(UserError):
    """Unknown name, or a scorer of a later version."""


def get_scorer(scorer: AnyScorer) -> Scorer | ScorerClass:
    """Find a scorer by its command-line name; an object is returned as it is.

    Raises:
        UnknownScorerError: unknown name, or planned for a later version; the message lists the known ones.
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
    """Score function of a scorer that needs only the architecture; None for any other."""
    found = get_scorer(scorer)
    if isinstance(found, type) or found.trains or hasattr(found, "prepare"):
        return None
    ready = cast("Scorer", found)
    return lambda architecture: ready.score(architecture, seed=0, epochs=0, out_dir=Path()).value


@dataclass(frozen=True)
class ScorerOnDevices:
    """Makes a worker's scorer on that worker's device; picklable.

    Attributes:
        scorer: Name or object.
        data: Root of the data set.
        recipe: How to train.
        devices: Assigned to workers in turn, cyclically.
        drop_bad_boxes, drop_bad_images, test: See :class:`~smnas.data.coco.CocoFolder`.
        automatic, pretrained, norm: See :class:`~smnas.scoring.trained_ap.TrainedAP`.
    """

    scorer: AnyScorer
    data: Path
    recipe: Recipe
    devices: tuple[str, ...]
    drop_bad_boxes: bool = False
    drop_bad_images: bool = False
    test: Path | None = None
    automatic: bool = False
    pretrained: Pretrained | None = None
    norm: NormKind = "gn-ws"

    @property
    def prepares(self) -> bool:
        """Whether its scorers prepare something before the first score."""
        return hasattr(get_scorer(self.scorer), "prepare")

    def __call__(self, worker: int) -> Scorer:
        """Scorer of one worker."""
        found = get_scorer(self.scorer)
        if not isinstance(found, type):
            return cast("Scorer", found)
        folder = CocoFolder(
            self.data, drop_bad_boxes=self.drop_bad_boxes, drop_bad_images=self.drop_bad_images, test=self.test
        )
        device = self.devices[worker % len(self.devices)]
        if issubclass(found, TrainedAP):
            trains = cast("type[TrainedAP]", found)
            return trains(
                folder,
                self.recipe,
                device,
                automatic=self.automatic,
                norm=self.norm,
                pretrained=self.pretrained,
            )
        return found(folder, self.recipe, device)
