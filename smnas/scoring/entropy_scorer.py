"""The entropy as a scorer: a number in microseconds, in place of a training."""

from collections.abc import Callable
from pathlib import Path

import torch

from smnas.data.coco import CocoFolder
from smnas.scoring.base import Score, ScoringProgress
from smnas.scoring.entropy import ENTROPY_FORMS, detector_entropy
from smnas.space.architecture import Architecture
from smnas.space.convolutions import layers
from smnas.training.recipe import Recipe

__all__ = ["EntropyScorer"]


class EntropyScorer:
    """Scores a detector by its backbone's entropy. Nothing is trained, built or read.

    Args:
        data: Not read: the score knows nothing of images.
        recipe: Not used.
        device: Not used.
        name: One of :data:`~smnas.scoring.entropy.ENTROPY_FORMS`.
    """

    def __init__(
        self, data: CocoFolder, recipe: Recipe, device: torch.device | str = "cpu", *, name: str = "entropy"
    ) -> None:
        self.name = name
        self._form = ENTROPY_FORMS[name]

    def score(
        self,
        architecture: Architecture,
        *,
        seed: int,
        epochs: int,
        out_dir: Path,
        on_progress: Callable[[ScoringProgress], None] | None = None,
    ) -> Score:
        """The entropy of ``architecture``; seed, epochs and folder are not used."""
        value = detector_entropy(architecture, self._form)
        depth = layers(architecture.backbone.convolutions())
        metrics = {"entropy": value, "layers": float(depth)}
        return Score(value=value, metrics=metrics, seconds=0.0, epochs=0, checkpoint=None)
