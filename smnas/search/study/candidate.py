"""What the search knows about one architecture it looked at, and what a strategy proposes next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from smnas.scoring.base import AP
from smnas.space.architecture import Architecture

__all__ = ["Candidate", "Complexity", "Origin", "Proposal", "StageName", "State", "in_search", "will_count"]

StageName = Literal["baseline", "warm", "structural", "modular", "joint", "final"]
Origin = Literal["baseline", "warm-start", "random", "mutation", "crossover", "promotion", "ranking"]
State = Literal["running", "complete", "failed", "pruned"]


@dataclass(frozen=True)
class Proposal:
    """An architecture to look at next.

    Attributes:
        origin: How it was made.
        parent: The architecture string it was mutated from or whose structure it has, where there is one.
        stop_epoch: Where to stop for now, under the schedule of the whole budget; None trains to the end. A
            ``promotion`` goes on with an architecture that an earlier trial stopped.
    """

    architecture: Architecture
    origin: Origin
    parent: str | None = None
    stop_epoch: int | None = None


@dataclass(frozen=True)
class Complexity:
    """Size of the whole detector: its parameters, and its floating-point operations for one image."""

    parameters: int
    flops: int


@dataclass(frozen=True)
class Candidate:
    """One trial of the study.

    Attributes:
        number: The trial's number in the study, from 0 and without gaps.
        seed: The training's seed.
        epochs: The training's budget, which its schedule is made for.
        start_epoch: Epochs that earlier trials of the same architecture have trained already.
        stop_epoch: Where this trial stops; None is the end of the budget.
        generation: Which group of candidates it was proposed and trained with, from 0 for the baseline; None for what
            is not trained by the search.
        latency_ms: Predicted median latency of the whole detector at batch size 1, with the bounds of its interval.
        latency_calibrated: Whether that interval comes from measured wholes; if not, it is an assumption.
        flops: Floating-point operations for one image.
        score: What the scorer gave, greater is better; None unless complete.
        metric: What the score is: ``AP`` (COCO's, in 0..1) of a training run, else as its scorer states.
        metrics: All the scorer's numbers; may hold NaN where a number is not defined.
        seconds: What the training took, with its earlier trials; of a failed one, the time until it failed.
        reason: Why it failed or was pruned, else None.
        checkpoint: The trained weights, relative to the run folder, where there are any.
    """

    number: int
    architecture: Architecture
    stage: StageName
    origin: Origin
    parent: str | None
    state: State
    seed: int
    epochs: int
    start_epoch: int = 0
    stop_epoch: int | None = None
    generation: int | None = None
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    latency_calibrated: bool | None = None
    parameters: int | None = None
    flops: int | None = None
    score: float | None = None
    metric: str = AP
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    reason: str | None = None
    checkpoint: str | None = None

    @cached_property
    def point(self) -> tuple[float, float]:
        """(score, latency in ms), NaN where unknown: what Pareto fronts are made of."""
        return (
            math.nan if self.score is None else self.score,
            math.nan if self.latency_ms is None else self.latency_ms,
        )

    @property
    def reached_epoch(self) -> int:
        """Where this trial's training ends."""
        return self.epochs if self.stop_epoch is None else self.stop_epoch

    @property
    def own_epochs(self) -> int:
        """Epochs that this trial trains itself."""
        return self.reached_epoch - self.start_epoch


def in_search(candidate: Candidate) -> bool:
    """Whether it was scored by the search with the full number of epochs, so that its score compares with others."""
    return candidate.state == "complete" and candidate.stage != "final" and candidate.stop_epoch is None


def will_count(candidate: Candidate) -> bool:
    """Whether it is one of its stage's training runs: a finished one, or one that is still to be made."""
    return candidate.state in ("complete", "running") and candidate.stage != "final"
