"""Trials of a search, with counts that are kept up to date trial by trial.

Strategies and the search loop need them for every proposal; counting anew would slow down with the number of trials.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from smnas.search.strategies.halving.rungs import TrainingRuns
from smnas.search.study.candidate import Candidate, StageName, in_search, will_count
from smnas.space.architecture import Architecture

__all__ = ["History", "Tally"]


@dataclass
class Tally:
    """Counts of a stage's trials.

    Attributes:
        trials: All of them.
        training_runs: Those trained or to be trained (:func:`smnas.search.study.candidate.will_count`).
        random: Of ``training_runs``, those drawn at random.
        epochs: Epochs that ``training_runs`` train themselves.
    """

    trials: int = 0
    failed: int = 0
    training_runs: int = 0
    random: int = 0
    epochs: int = 0

    def count(self, candidate: Candidate, times: int) -> None:
        """Add a trial, or remove it (``times`` is 1 or -1)."""
        self.trials += times
        self.failed += times * (candidate.state == "failed")
        if will_count(candidate):
            self.training_runs += times
            self.random += times * (candidate.origin == "random")
            self.epochs += times * candidate.own_epochs


class History(list[Candidate]):
    """Trials of a search by number.

    Attributes:
        seen: Every proposed architecture, trained or not.
        whole: Trials of full length (:func:`~smnas.search.study.candidate.in_search`).
        training_runs: Trials by training run.
        generation: Number of the last generation; 0 is the baseline's.
    """

    def __init__(self, candidates: Iterable[Candidate] = ()) -> None:
        super().__init__()
        self._latest: dict[Architecture, int] = {}
        self._running: dict[int, None] = {}
        self._tallies: defaultdict[StageName, Tally] = defaultdict(Tally)
        self._members: list[int] = []
        self.seen: Set[Architecture] = self._latest.keys()
        self.whole: list[Candidate] = []
        self.training_runs = TrainingRuns()
        self.generation = 0
        for candidate in candidates:
            self.append(candidate)

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> "History":
        """The history itself if it is one."""
        return candidates if isinstance(candidates, History) else cls(candidates)

    def append(self, candidate: Candidate) -> None:
        """Add a trial."""
        number = len(self)
        super().append(candidate)
        self._latest[candidate.architecture] = number
        if candidate.generation is not None and candidate.generation > self.generation:
            self.generation, self._members = candidate.generation, []
        if candidate.generation == self.generation:
            self._members.append(number)
        if in_search(candidate):
            self.whole.append(candidate)
        self._enter(number, candidate)

    def finish(self, candidate: Candidate) -> None:
        """Replace the running trial of this number by the ended one."""
        self._tallies[candidate.stage].count(self[candidate.number], -1)
        del self._running[candidate.number]
        self[candidate.number] = candidate
        if in_search(candidate):
            insort(self.whole, candidate, key=lambda c: c.number)  # training runs end in any order
        self._enter(candidate.number, candidate)

    def _enter(self, number: int, candidate: Candidate) -> None:
        if candidate.state == "running":
            self._running[number] = None
        self._tallies[candidate.stage].count(candidate, 1)
        self.training_runs.enter(candidate)

    def latest(self, architecture: Architecture) -> Candidate:
        """Last trial of a seen architecture."""
        return self[self._latest[architecture]]

    @property
    def running(self) -> tuple[Candidate, ...]:
        """Trials that have not ended."""
        return tuple(self[number] for number in self._running)

    @property
    def members(self) -> tuple[Candidate, ...]:
        """Trials of the last generation."""
        return tuple(self[number] for number in self._members)

    def tally(self, stage: StageName) -> Tally:
        """Counts of a stage's trials."""
        return self._tallies[stage]
