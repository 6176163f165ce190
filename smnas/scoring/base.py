"""What a scorer is: an architecture in, a number out, or a reason why there is none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from smnas.space.architecture import Architecture

__all__ = ["Score", "Scorer", "ScoringFailedError", "ScoringProgress", "StoppingScorer"]


class ScoringFailedError(RuntimeError):
    """This candidate has no score: it does not build, fit in memory or converge. Stored, never fatal to a search.

    Attributes:
        reason: One line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ScoringProgress:
    """How far a score is.

    Attributes:
        phase: What is going on.
        done: Share of the phase, 0 to 1.
        epoch: Running epoch, from 1.
        epochs: How many there are.
        loss: Of the last step; ``None`` while evaluating.
        images_per_s: Images a second.
        eta_s: Expected time until the phase ends; ``None`` where nothing is known.
    """

    phase: Literal["train", "evaluate"]
    done: float
    epoch: int
    epochs: int
    loss: float | None
    images_per_s: float
    eta_s: float | None


@dataclass(frozen=True)
class Score:
    """An architecture's score; greater is better.

    Attributes:
        value: What the search maximises; finite.
        metrics: All that was measured by the way, such as the 12 COCO numbers (NaN where undefined).
        seconds: Time spent in training, over all processes that took part; 0 for a score that trains nothing.
        epochs: Epochs trained; 0 likewise.
        checkpoint: Trained weights, if there are any.
    """

    value: float
    metrics: Mapping[str, float]
    seconds: float
    epochs: int
    checkpoint: Path | None


class Scorer(Protocol):
    """Anything that ranks architectures."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    def score(
        self,
        architecture: Architecture,
        *,
        seed: int,
        epochs: int,
        out_dir: Path,
        on_progress: Callable[[ScoringProgress], None] | None = None,
    ) -> Score:
        """Score one architecture.

        Args:
            architecture: What to score.
            seed: What every random number comes from.
            epochs: Training budget, where the scorer trains.
            out_dir: A folder for this score alone. Asked again with the same arguments, a scorer goes on from what it
                finds there and does nothing twice.
            on_progress: Called now and then.

        Raises:
            ScoringFailedError: the candidate has no score, with its reason.
        """
        ...


@runtime_checkable
class StoppingScorer(Scorer, Protocol):
    """A scorer that trains and can stop on the way, under the schedule of the whole budget, and go on from there."""

    def score_until(
        self,
        architecture: Architecture,
        *,
        seed: int,
        epochs: int,
        stop_epoch: int,
        out_dir: Path,
        on_progress: Callable[[ScoringProgress], None] | None = None,
    ) -> Score:
        """The score after ``stop_epoch`` epochs of a training of ``epochs``; asked for more, it goes on from there.

        ``seconds`` and ``epochs`` of the score are those of the whole training so far.

        Raises:
            ScoringFailedError: the candidate has no score, with its reason.
        """
        ...
