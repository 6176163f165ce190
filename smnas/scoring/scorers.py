"""The scorers by name."""

from collections.abc import Callable

import torch

from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.scoring.base import Scorer
from smnas.scoring.trained_ap import TrainedAP
from smnas.training.recipe import Recipe

__all__ = ["SCORERS", "ScorerFactory", "UnknownScorerError", "get_scorer"]

ScorerFactory = Callable[[CocoFolder, Recipe, torch.device | str], Scorer]
"""Data, recipe and device in, a scorer out."""

SCORERS: dict[str, ScorerFactory] = {"ap": TrainedAP}
_LATER = ("bn-indicator", "entropy")


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
