"""A trial of a search, and a strategy's next proposal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from smnas.scoring.base import AP
from smnas.space.architecture import Architecture

if TYPE_CHECKING:
    from profiler.prediction.predict import Latency

__all__ = ["Candidate", "Complexity", "Origin", "Proposal", "StageName", "State", "in_search", "will_count"]

StageName = Literal["baseline", "warm", "structural", "modular", "joint", "final"]
Origin = Literal["baseline", "warm-start", "random", "mutation", "crossover", "promotion", "ranking"]
State = Literal["running", "complete", "failed", "pruned"]


@dataclass(frozen=True)
class Proposal:
    """An architecture to evaluate next.

    Attributes:
        parent: String of the architecture that it was mutated from or whose structure it has, if any.
        stop_epoch: Where to stop for now, under the schedule of the full budget; None trains to the end. A
            ``promotion`` resumes an architecture that an earlier trial stopped.
    """

    architecture: Architecture
    origin: Origin
    parent: str | None = None
    stop_epoch: int | None = None


@dataclass(frozen=True)
class Complexity:
    """Parameters and floating-point operations per image of the whole detector."""

    parameters: int
    flops: int


@dataclass(frozen=True)
class Candidate:
    """One trial of the study.

    Attributes:
        number: Trial number, from 0 and without gaps.
        epochs: Full training budget, which the schedule is made for.
        start_epoch: Epochs trained by earlier trials of the architecture.
        stop_epoch: Where this trial stops; None is the end of the budget. Where one of the final phase ended by itself.
        generation: Group of candidates proposed and trained together, 0 for the baseline; None if the search does not
            train it.
        latency_ms: Predicted median end-to-end latency at batch size 1, with the bounds of its interval.
        latency_calibrated: Whether that interval is calibrated on measured detectors; if not, it is an assumption.
        latency_measured: Fraction of the blocks' time that was measured, the rest being interpolated, where the device
            is elsewhere; else None.
        flops: Floating-point operations per image.
        score: Greater is better; None unless complete.
        metric: ``AP`` (COCO's, in 0..1) of a training run, else as the scorer states.
        metrics: All numbers of the scorer; NaN where undefined.
        seconds: Training time with earlier trials; of a failed trial the time until it failed.
        reason: Why it failed or was pruned, or ended by itself; else None.
        checkpoint: Trained weights, relative to the run folder, if any.
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
    latency_measured: float | None = None
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
        """(score, latency in ms) for Pareto fronts, NaN where unknown."""
        return (
            math.nan if self.score is None else self.score,
            math.nan if self.latency_ms is None else self.latency_ms,
        )

    def with_latency(self, latency: "Latency", *, elsewhere: bool) -> "Candidate":
        """The same with a predicted latency, and how much of it was measured where the device is elsewhere."""
        return replace(
            self,
            latency_ms=latency.ms,
            latency_low_ms=latency.low_ms,
            latency_high_ms=latency.high_ms,
            latency_calibrated=latency.calibrated,
            latency_measured=latency.measured if elsewhere else None,
        )

    @property
    def limited_ms(self) -> float:
        """Latency that a limit bounds: the prediction or, where the device is elsewhere, the end of its interval."""
        return self.point[1] if self.latency_measured is None else self.latency_high_ms or math.nan

    @property
    def reached_epoch(self) -> int:
        """Epoch at which this trial's training ends."""
        return self.epochs if self.stop_epoch is None else self.stop_epoch

    @property
    def own_epochs(self) -> int:
        """Epochs that this trial trains itself."""
        return self.reached_epoch - self.start_epoch


def in_search(candidate: Candidate) -> bool:
    """Whether the search scored it at the full number of epochs, so that its score compares with others."""
    return candidate.state == "complete" and candidate.stage != "final" and candidate.stop_epoch is None


def will_count(candidate: Candidate) -> bool:
    """Whether it is one of its stage's training runs, finished or running."""
    return candidate.state in ("complete", "running") and candidate.stage != "final"
