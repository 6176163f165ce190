"""What a strategy and a scorer are given: the search that they work for, as one value."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from profiler.prediction.predict import Latency
from smnas.data.coco import CocoFolder
from smnas.latency.detector_latency import LatencyFailedError
from smnas.search.strategies.choices import Choices, DetectorChoices
from smnas.search.study.settings import SearchSettings
from smnas.space.architecture import Architecture
from smnas.space.preset import Space

__all__ = ["LatencyPredictor", "OnPrepare", "SearchContext"]

OnPrepare = Callable[[str, float | None], None]
"""Called with one line on what is being prepared, and with the fraction done where it is known."""


class LatencyPredictor(Protocol):
    """The part of :class:`smnas.latency.detector_latency.DetectorLatency` that a search needs."""

    def predict(self, architecture: Architecture) -> Latency:
        """End-to-end latency; raises :class:`smnas.latency.detector_latency.LatencyFailedError`."""
        ...


def _silent(_text: str, _done: float | None) -> None:
    pass


@dataclass(frozen=True)
class SearchContext:
    """One search. It can be sent to a worker process as :meth:`portable`.

    Attributes:
        folder: The run folder. What a scorer or a strategy prepares is kept here, under a name of its own.
        settings: What the search is run with.
        space: Where it searches.
        latency: Predicts end-to-end latency before anything is trained; None in a worker process.
        time_limit_s: Seconds that this run of the search may take; None: no limit.
        on_progress: Called while something is prepared.
    """

    folder: Path
    settings: SearchSettings
    space: Space
    latency: LatencyPredictor | None = None
    time_limit_s: float | None = None
    on_progress: OnPrepare = _silent

    @cached_property
    def choices(self) -> Choices:
        """The space as strategies see it: draws, moves and genes."""
        return DetectorChoices(self.space)

    @property
    def data(self) -> CocoFolder:
        """The data set, opened at every access: keep it."""
        facts = self.settings.data
        return CocoFolder(facts.root, drop_bad_boxes=facts.drop_bad_boxes)

    @property
    def trials(self) -> int:
        """Trial budget of both stages together."""
        return self.settings.trials.structural + self.settings.trials.modular

    @property
    def slowest_ms(self) -> float | None:
        """The latency limit with its tolerance; None without a limit."""
        limit = self.settings.latency_ms
        return None if limit is None else limit * self.settings.latency_tolerance

    def known_ms(self, architecture: Architecture, until: float) -> float | None:
        """Latency before anything is trained; None for a design that does not run, and from ``until`` on.

        Args:
            architecture: The design.
            until: A time of :func:`time.monotonic`: predicting may have to measure blocks first.
        """
        if self.latency is None or time.monotonic() > until:
            return None
        try:
            return self.latency.predict(architecture).ms
        except LatencyFailedError:
            return None

    def portable(self) -> "SearchContext":
        """The same search for a process of its own, without latency, time limit and progress."""
        space = Space.model_construct(**dict(self.space))  # without the list of its structures
        return SearchContext(self.folder, self.settings, space)
