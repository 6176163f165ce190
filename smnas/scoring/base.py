"""Scorers: an architecture in, a number out, or a reason why there is none.

A custom scorer is any object with these members that worker processes can import::

    class FewFlops:
        name, metric, trains, stops = "few-flops", "negative GFLOPs", False, False

        def score(self, architecture, *, seed, epochs, out_dir, on_progress=None):
            flops = sum(workload.flops for workload in detector_workloads(architecture, 3))
            return Score(-1e-9 * flops)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from smnas.space.architecture import Architecture

if TYPE_CHECKING:
    from smnas.search.context import SearchContext

__all__ = [
    "AP",
    "VALIDATION_AP",
    "PreparingScorer",
    "Score",
    "Scorer",
    "ScorerFacts",
    "ScoringFailedError",
    "ScoringProgress",
    "StoppingScorer",
]

AP = "AP"
"""Metric of training runs; only they are ranked."""

VALIDATION_AP = "validation_ap"
"""AP on the validation images, among metrics of held-out ones."""


class ScoringFailedError(RuntimeError):
    """The candidate has no score: it does not build, fit in memory or converge. Stored, never fatal to a search.

    Attributes:
        reason: One line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ScoringProgress:
    """Progress of one score.

    Attributes:
        done: Fraction of the phase, 0 to 1.
        epoch: Running epoch, from 1.
        epochs: Total number of epochs.
        loss: Of the last step; ``None`` while evaluating.
        eta_s: Expected time until the phase ends; ``None`` if unknown.
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
    """Score of an architecture; greater is better.

    Attributes:
        value: Maximised by the search; finite.
        metrics: Everything measured, such as the 12 COCO numbers (NaN where undefined).
        seconds: Training time over all processes that took part; 0 without training.
        epochs: Epochs trained; 0 without training.
        checkpoint: Trained weights, if any.
        stop_reason: Why training ended, where its schedule decides that.
    """

    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    epochs: int = 0
    checkpoint: Path | None = None
    stop_reason: str | None = None


class ScorerFacts(Protocol):
    """Facts that a scorer states, also as a class before it is made.

    Optional: ``strategy``, the name of the default strategy for this scorer; ``remark``, a sentence about its scores
    for the reader of a ranking; ``finals``, the scorer of the final phase by the value of ``--final``, the first one by
    default; and ``score_final``, with the arguments of ``score``, which gives the score of the final phase, as on
    images that neither the search nor the choice of an epoch has seen.
    """

    @property
    def name(self) -> str:
        """Value of ``--scorer``, kept in ``settings.json``."""

    @property
    def metric(self) -> str:
        """Name of its values for a reader; rankings are made of ``AP``."""

    @property
    def trains(self) -> bool:
        """Whether a score is a training run; if not, only the final phase trains."""

    @property
    def stops(self) -> bool:
        """Whether it can stop a training run and resume it, as a :class:`StoppingScorer`."""


class Scorer(ScorerFacts, Protocol):
    """Anything that ranks architectures."""

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
            architecture: Candidate.
            seed: Random seed.
            epochs: Training budget, if the scorer trains.
            out_dir: Folder of this score alone. Called again with the same arguments, a scorer resumes from what it
                finds there and does nothing twice.
            on_progress: Called from time to time.

        Raises:
            ScoringFailedError: the candidate has no score, with the reason.
        """


@runtime_checkable
class PreparingScorer(Scorer, Protocol):
    """A scorer that makes something before the first score, such as weights that all candidates share."""

    def prepare(self, context: "SearchContext") -> None:
        """Make what scores need in ``context.folder``, or find it there.

        Called before the first score in one process, then before the first score of every other process. Resumable:
        after a kill it continues, and if all is made it only reads. It reports to ``context.on_progress``.

        Raises:
            UserError, OSError: it cannot be made; the search ends.
        """


@runtime_checkable
class StoppingScorer(Scorer, Protocol):
    """A scorer that can stop a training run, under the schedule of the full number of epochs, and resume it."""

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
        """Score after ``stop_epoch`` epochs of a training run of ``epochs``, resumed if it was stopped before.

        ``seconds`` and ``epochs`` of the score cover the whole training run so far.

        Raises:
            ScoringFailedError: the candidate has no score, with the reason.
        """
