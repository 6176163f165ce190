"""What a scorer is: an architecture in, a number out, or a reason why there is none.

One's own scorer is any object with these members, which worker processes can import::

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
    "PreparingScorer",
    "Score",
    "Scorer",
    "ScorerFacts",
    "ScoringFailedError",
    "ScoringProgress",
    "StoppingScorer",
]

AP = "AP"
"""The metric of training runs: only what has one is ranked."""


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
        epochs: Epochs trained; 0 for a score that trains nothing.
        checkpoint: Trained weights, if there are any.
    """

    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    epochs: int = 0
    checkpoint: Path | None = None


class ScorerFacts(Protocol):
    """What a scorer states, also as a class that is not made yet.

    It may also state ``strategy``, the name of the strategy that a search with this scorer uses by default, and
    ``remark``, a sentence about its scores for the reader of a ranking.
    """

    @property
    def name(self) -> str:
        """What ``--scorer`` takes, and ``settings.json`` keeps."""
        ...

    @property
    def metric(self) -> str:
        """What its values are, as a reader calls them; ``AP`` is what rankings are made of."""
        ...

    @property
    def trains(self) -> bool:
        """Whether a score is a training run; if not, only the final phase trains."""
        ...

    @property
    def stops(self) -> bool:
        """Whether it can stop a training run and resume it: it is a :class:`StoppingScorer`."""
        ...


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
            architecture: What to score.
            seed: What every random number comes from.
            epochs: Training budget, where the scorer trains.
            out_dir: A folder for this score alone. Called again with the same arguments, a scorer resumes from what it
                finds there and does nothing twice.
            on_progress: Called now and then.

        Raises:
            ScoringFailedError: the candidate has no score, with its reason.
        """
        ...


@runtime_checkable
class PreparingScorer(Scorer, Protocol):
    """A scorer that makes something before the first score, such as weights that all candidates share."""

    def prepare(self, context: "SearchContext") -> None:
        """Make what scores need in ``context.folder``, or find it there.

        Called in one process before the first score, and then in every process that scores, before its first score
        there. Resumable: after a kill it continues, and where all is made it only reads it. ``context.on_progress`` is
        called meanwhile.

        Raises:
            UserError, OSError: it can not be made; the search ends.
        """
        ...


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
        """The score after ``stop_epoch`` epochs of a training run of ``epochs``, resumed if it was stopped before.

        ``seconds`` and ``epochs`` of the score are those of the whole training run so far.

        Raises:
            ScoringFailedError: the candidate has no score, with its reason.
        """
        ...
