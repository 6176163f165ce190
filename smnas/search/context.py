"""The search that a strategy and a scorer work for, as one value."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from profiler.prediction.predict import Latency
from smnas.data.coco import CocoFolder
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.prediction import LatencyFailedError
from smnas.search.strategies.choices import Choices, DetectorChoices
from smnas.search.study.settings import SearchSettings, open_data
from smnas.space.architecture import Architecture
from smnas.space.preset import Space

__all__ = ["OnPrepare", "PredictLatency", "SearchContext"]

OnPrepare = Callable[[str, float | None], None]
"""Callback during preparation: a line of text, and the fraction done or None."""

PredictLatency = Callable[[Architecture], Latency]
"""End-to-end latency; raises :class:`smnas.latency.prediction.LatencyFailedError`. It may measure blocks first."""


def _silent(_text: str, _done: float | None) -> None:
    pass


def _always(_: Architecture) -> bool:
    return True


@dataclass(frozen=True)
class SearchContext:
    """One search; :meth:`portable` makes it picklable for a worker process.

    Attributes:
        folder: Run folder; scorers and strategies keep what they prepare here, under names of their own.
        latency: Predicts end-to-end latency before any training; None in a worker process.
        time_limit_s: Time limit of this run of the search; None: no limit.
        on_progress: Called during preparation.
        profiler: Measures blocks; None where the device is not in this machine.
        is_small_enough: Whether a design is within the size limit, which costs less to check than latency.
    """

    folder: Path
    settings: SearchSettings
    space: Space
    latency: PredictLatency | None = None
    time_limit_s: float | None = None
    on_progress: OnPrepare = _silent
    profiler: DetectorLatency | None = None
    is_small_enough: Callable[[Architecture], bool] = _always

    @cached_property
    def choices(self) -> Choices:
        """The space as strategies see it: draws, moves and genes."""
        return DetectorChoices(self.space)

    @property
    def data(self) -> CocoFolder:
        """The data set, opened anew at every access."""
        return open_data(self.folder, self.settings.data)

    @property
    def trials(self) -> int:
        """Trial budget of both stages together."""
        return self.settings.trials.structural + self.settings.trials.modular

    def known_ms(self, architecture: Architecture, until: float) -> float | None:
        """Predicted end-to-end latency in ms; None for a design that is too large or does not run, and after ``until``.

        Predicting may measure blocks first, which ``until``, a :func:`time.monotonic`, bounds.
        """
        if self.latency is None or time.monotonic() > until or not self.is_small_enough(architecture):
            return None
        try:
            return self.latency(architecture).ms
        except LatencyFailedError:
            return None

    def portable(self) -> "SearchContext":
        """The same search for another process, without latency, time limit and progress."""
        space = Space.model_construct(**dict(self.space))  # without the cached list of structures
        return SearchContext(self.folder, self.settings, space)
