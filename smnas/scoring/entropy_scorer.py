"""Entropy as a scorer: microseconds instead of a training run."""

from collections.abc import Callable
from pathlib import Path

from smnas.scoring.base import Score, ScoringProgress
from smnas.scoring.entropy import ENTROPY_FORMS, detector_entropy
from smnas.space.architecture import Architecture
from smnas.space.convolutions import layers

__all__ = ["ENTROPY_SCORERS", "EntropyScorer"]


class EntropyScorer:
    """Scores a detector by its backbone's entropy; nothing is trained, built or read.

    Args:
        name: One of :data:`~smnas.scoring.entropy.ENTROPY_FORMS`.
    """

    trains = False
    stops = False
    strategy = "mae-det"

    def __init__(self, name: str = "entropy") -> None:
        self.name = self.metric = name
        self.remark = (
            f"Candidates were scored by the {name} of their backbones, without training; it is close to a count of "
            "layers."
        )
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
        """Entropy of ``architecture``; seed, epochs and folder are ignored."""
        value = detector_entropy(architecture, self._form)
        depth = layers(architecture.backbone.convolutions())
        return Score(value, {"entropy": value, "layers": float(depth)})


ENTROPY_SCORERS = {name: EntropyScorer(name) for name in ENTROPY_FORMS}
"""One for each published form."""
