"""Rungs: where short training runs stop, and what an AP there says of the final AP.

All runs of a search follow the schedule of the full budget; a rung only pauses one. A line from each rung's AP to the
final AP, with the variance around it, is fitted to the designs that resumed.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smnas.search.study.candidate import Candidate
from smnas.space.architecture import Architecture

__all__ = ["FACTOR", "Line", "TrainingRuns", "expected_ends", "reached_rungs", "rung_epochs"]

FACTOR = 3
_LEAST_EPOCHS = 3
_PRIOR_PAIRS = 3.0  # weight of the prior slope of 1, in pairs


def rung_epochs(epochs: int) -> tuple[int, ...]:
    """Epochs at which runs of ``epochs`` epochs stop: a third, unless that is under three, and the end.

    After one epoch of nine, detectors of the nano space are in no order yet (Kendall's tau 0.10), after three they are
    (0.84): the kept answer ``rank-budget``. After three of 27 they hardly are (0.34), after nine they are (0.85), and
    most searches with another rung at a ninth end lower: the kept answers ``search-quality-*-27-epochs``.
    """
    stop = round(epochs / FACTOR)
    return (stop, epochs) if stop >= _LEAST_EPOCHS else (epochs,)


class TrainingRuns:
    """Training runs of a search, one row each in starting order, without the final phase's.

    A run may span several trials, each of which resumes where the one before it stopped.
    """

    def __init__(self) -> None:
        self._rows: dict[Architecture, int] = {}
        self.last: list[Candidate] = []
        self._latency_ms = array("d")
        self._asked = array("l")
        self._stopped = array("b")
        self._ap: dict[int, array[float]] = {}

    def enter(self, candidate: Candidate) -> None:
        """Record a trial; one entered while running is entered again when it has ended."""
        c = candidate
        if c.stage == "final" or c.state == "pruned" or c.latency_ms is None:
            return
        row = self._rows.setdefault(c.architecture, len(self.last))
        if row == len(self.last):
            self.last.append(c)
            self._latency_ms.append(c.latency_ms)
            self._asked.append(0)
            self._stopped.append(0)
            for column in self._ap.values():
                column.append(math.nan)
        self.last[row] = c
        self._asked[row] = c.reached_epoch
        self._stopped[row] = c.state == "complete" and c.stop_epoch is not None
        if c.state == "complete" and c.score is not None:
            if c.reached_epoch not in self._ap:
                self._ap[c.reached_epoch] = array("d", [math.nan]) * len(self.last)
            self._ap[c.reached_epoch][row] = c.score

    def __len__(self) -> int:
        return len(self.last)

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """``(N,)``."""
        return np.array(self._latency_ms, dtype=np.float64)

    @property
    def asked_epoch(self) -> NDArray[np.int64]:
        """Epoch where the last trial of each stops or will stop, ``(N,)``."""
        return np.array(self._asked, dtype=np.int64)

    @property
    def stopped(self) -> NDArray[np.bool_]:
        """Whether each waits to resume, ``(N,)``; else it runs, failed or is at its end."""
        return np.array(self._stopped, dtype=np.bool_)

    def ap(self, epochs: Sequence[int]) -> NDArray[np.float64]:
        """AP after each of ``epochs``, ``(N, len(epochs))``, NaN where there is none."""
        nothing = array("d", [math.nan]) * len(self)
        return np.column_stack([np.array(self._ap.get(epoch, nothing), dtype=np.float64) for epoch in epochs])


@dataclass(frozen=True)
class Line:
    """Prediction of the final AP from the AP on a rung: ``offset + slope * ap``, with a variance."""

    offset: float
    slope: float
    variance: float


def reached_rungs(ap: NDArray[np.float64]) -> NDArray[np.int64]:
    """Last rung with an AP in each row of ``(N, rungs)``, ``(N,)``; -1 where there is none."""
    rungs = ap.shape[1]
    there = ~np.isnan(ap)
    return np.where(there.any(axis=1), rungs - 1 - np.argmax(there[:, ::-1], axis=1), -1)


def expected_ends(ap: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[Line, ...]]:
    """Expected final AP of every training run, and the line of every rung behind it.

    Lines are fitted to the runs that resumed from their rung. Few pairs are shrunk towards a slope of 1; without any,
    half of the rung's variance counts.

    Args:
        ap: ``(N, rungs)``, NaN where a run has none; the last rung is the end.

    Returns:
        ``(N,)``, by the last rung of each (NaN without any), and a line for each rung.
    """
    reached = reached_rungs(ap)
    ends = ap[:, -1].copy()
    lines = [Line(0.0, 1.0, 0.0)]
    for rung in range(ap.shape[1] - 2, -1, -1):
        there = ~np.isnan(ap[:, rung])
        went_on, last = there & (reached > rung), reached == rung
        line = _line(ap[went_on, rung], ends[went_on], _variance(ap[there, rung]), lines[0].variance)
        ends[last] = line.offset + line.slope * ap[last, rung]
        lines.insert(0, line)
    return ends, tuple(lines)


def _variance(values: NDArray[np.float64]) -> float:
    return float(values.var()) if len(values) > 1 else 0.0


def _line(x: NDArray[np.float64], y: NDArray[np.float64], spread: float, variance_above: float) -> Line:
    if len(x) == 0:
        return Line(0.0, 1.0, variance_above + 0.5 * spread)
    prior = _PRIOR_PAIRS * max(spread, 1e-12)
    slope = (float(((x - x.mean()) * (y - y.mean())).sum()) + prior) / (float(((x - x.mean()) ** 2).sum()) + prior)
    slope = max(slope, 0.0)
    offset = float(y.mean() - slope * x.mean())
    residuals = y - offset - slope * x
    variance = (float((residuals**2).sum()) + 0.25 * prior) / (len(x) + _PRIOR_PAIRS)
    return Line(offset, slope, variance)
