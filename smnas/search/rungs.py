"""Short trainings on the way to long ones: the rungs, and what an AP on one of them says of the AP at the end.

All trainings of a search follow the schedule of the whole budget; a rung only stops one for a while. What a rung's AP
is worth is learned from the designs that went on: a straight line from each rung to the next, with the variance around
it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from smnas.search.candidate import Candidate
from smnas.space.architecture import Architecture

__all__ = ["FACTOR", "Line", "Training", "lines_to_the_end", "rung_epochs", "trainings"]

FACTOR = 3
_MOST_RUNGS = 3
_LEAST_EPOCHS = 3
_PRIOR_PAIRS = 3.0  # how many pairs the assumption of a slope of 1 is worth


def rung_epochs(epochs: int) -> tuple[int, ...]:
    """Where trainings of ``epochs`` epochs stop: a ninth, a third and the whole, and never before three epochs.

    After one epoch of nine, detectors of the nano space are in no order yet (Kendall's tau 0.10), after three they are
    (0.84): the kept answer ``rank-budget``.
    """
    stops = {round(epochs / FACTOR**k) for k in range(_MOST_RUNGS)}
    return tuple(sorted({stop for stop in stops if stop >= _LEAST_EPOCHS} | {epochs}))


@dataclass
class Training:
    """One design's training over all its trials.

    Attributes:
        ap_at: AP after the epochs where a trial stopped.
        asked_epoch: Where its last trial stops or will stop.
        stopped: Whether it waits to go on; else it runs, failed or is at its end.
        last: Its last trial.
    """

    architecture: Architecture
    latency_ms: float
    ap_at: dict[int, float] = field(default_factory=dict)
    asked_epoch: int = 0
    stopped: bool = False
    last: Candidate | None = None


def trainings(history: Sequence[Candidate]) -> dict[Architecture, Training]:
    """The trainings of a search's history in the order in which they began, without the final phase's."""
    found: dict[Architecture, Training] = {}
    for c in history:
        if c.stage == "final" or c.state == "pruned" or c.latency_ms is None:
            continue
        training = found.setdefault(c.architecture, Training(c.architecture, c.latency_ms))
        training.asked_epoch = c.reached_epoch
        training.stopped = c.state == "complete" and c.stop_epoch is not None
        training.last = c
        if c.state == "complete" and c.ap is not None:
            training.ap_at[c.reached_epoch] = c.ap
    return found


@dataclass(frozen=True)
class Line:
    """What an AP on a rung says of the AP at the end: ``offset + slope * ap``, with a variance."""

    offset: float
    slope: float
    variance: float

    def at(self, ap: float) -> float:
        """The AP to expect at the end."""
        return self.offset + self.slope * ap


def lines_to_the_end(known: Iterable[Training], rungs: Sequence[int]) -> dict[int, Line]:
    """A line for every rung, learned from the trainings that went on from it.

    A few pairs are stretched towards a slope of 1, and where there are none yet, half of the rung's variance counts.

    Args:
        known: Trainings with at least one AP.
        rungs: Epochs, rising; the last one is the end.
    """
    known = list(known)
    lines = {rungs[-1]: Line(0.0, 1.0, 0.0)}
    for rung, above in zip(rungs[-2::-1], rungs[:0:-1], strict=True):
        here = np.array([t.ap_at[rung] for t in known if rung in t.ap_at])
        spread = float(here.var()) if len(here) > 1 else 0.0
        pairs = [(t.ap_at[rung], end) for t in known if rung in t.ap_at and (end := _later(t, rung, lines)) is not None]
        if not pairs:
            lines[rung] = Line(0.0, 1.0, lines[above].variance + 0.5 * spread)
            continue
        x, y = np.array(pairs).T
        prior = _PRIOR_PAIRS * max(spread, 1e-12)
        slope = (float(((x - x.mean()) * (y - y.mean())).sum()) + prior) / (float(((x - x.mean()) ** 2).sum()) + prior)
        slope = max(slope, 0.0)
        offset = float(y.mean() - slope * x.mean())
        residuals = y - offset - slope * x
        variance = (float((residuals**2).sum()) + 0.25 * prior) / (len(pairs) + _PRIOR_PAIRS)
        lines[rung] = Line(offset, slope, variance)
    return lines


def _later(training: Training, rung: int, lines: Mapping[int, Line]) -> float | None:
    """What a training that went on from ``rung`` says of its end, by the last of its rungs."""
    last = max(training.ap_at)
    return lines[last].at(training.ap_at[last]) if last > rung else None
