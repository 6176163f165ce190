"""The trials of a search, and what is counted of them, kept up to date trial by trial.

For every proposal strategies and the loop ask what was looked at, what is trained to the end and what is left of the
budget. Counting that anew takes longer the longer a search is; here an answer takes as long after thousands of trials
as after ten.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import overload

from smnas.search.strategies.halving.rungs import Trainings
from smnas.search.study.candidate import Candidate, StageName, in_search, will_count
from smnas.space.architecture import Architecture

__all__ = ["History", "Tally"]


@dataclass
class Tally:
    """What a stage's trials add up to.

    Attributes:
        trials: All of them.
        failed: Those that failed.
        trainings: Those that are trained or will be (:func:`smnas.search.study.candidate.will_count`).
        random: Of these, the ones that were drawn at random.
        epochs: Of these, what they train themselves.
    """

    trials: int = 0
    failed: int = 0
    trainings: int = 0
    random: int = 0
    epochs: int = 0

    def count(self, candidate: Candidate, times: int) -> None:
        """Add a trial, or take it away (``times`` is 1 or -1)."""
        self.trials += times
        self.failed += times * (candidate.state == "failed")
        if will_count(candidate):
            self.trainings += times
            self.random += times * (candidate.origin == "random")
            self.epochs += times * candidate.own_epochs


class History(Sequence[Candidate]):
    """The trials of a search by number.

    Args:
        candidates: Those that there are.
    """

    def __init__(self, candidates: Iterable[Candidate] = ()) -> None:
        self._candidates: list[Candidate] = []
        self._latest: dict[Architecture, int] = {}
        self._running: dict[int, None] = {}
        self._whole: list[Candidate] = []
        self._tallies: defaultdict[StageName, Tally] = defaultdict(Tally)
        self._generation: tuple[int, list[int]] = (0, [])
        self._trainings = Trainings()
        for candidate in candidates:
            self.append(candidate)

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> "History":
        """The history itself where it is one."""
        return candidates if isinstance(candidates, History) else cls(candidates)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        return self._candidates[index]

    def __len__(self) -> int:
        return len(self._candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._candidates)

    def append(self, candidate: Candidate) -> None:
        """Add a trial."""
        number = len(self._candidates)
        self._candidates.append(candidate)
        self._latest[candidate.architecture] = number
        if candidate.generation is not None and candidate.generation > self._generation[0]:
            self._generation = (candidate.generation, [])
        if candidate.generation == self._generation[0]:
            self._generation[1].append(number)
        if in_search(candidate):
            self._whole.append(candidate)
        self._enter(number, candidate)

    def finish(self, candidate: Candidate) -> None:
        """Put a trial that has ended instead of the running one with its number."""
        self._tallies[candidate.stage].count(self._candidates[candidate.number], -1)
        del self._running[candidate.number]
        self._candidates[candidate.number] = candidate
        if in_search(candidate):
            insort(self._whole, candidate, key=lambda c: c.number)  # training runs end in any order
        self._enter(candidate.number, candidate)

    def _enter(self, number: int, candidate: Candidate) -> None:
        if candidate.state == "running":
            self._running[number] = None
        self._tallies[candidate.stage].count(candidate, 1)
        self._trainings.enter(candidate)

    @property
    def seen(self) -> Set[Architecture]:
        """Every architecture that was looked at, trained or not."""
        return self._latest.keys()

    def latest(self, architecture: Architecture) -> Candidate:
        """The last trial of an architecture that was looked at."""
        return self._candidates[self._latest[architecture]]

    @property
    def running(self) -> tuple[Candidate, ...]:
        """The trials that have not ended."""
        return tuple(self._candidates[number] for number in self._running)

    @property
    def whole(self) -> Sequence[Candidate]:
        """The trials that were trained with the whole budget (:func:`~smnas.search.study.candidate.in_search`)."""
        return self._whole

    @property
    def generation(self) -> int:
        """The last generation's number; 0 is the baseline's."""
        return self._generation[0]

    @property
    def members(self) -> tuple[Candidate, ...]:
        """The trials of the last generation."""
        return tuple(self._candidates[number] for number in self._generation[1])

    @property
    def trainings(self) -> Trainings:
        """The trials by training."""
        return self._trainings

    def tally(self, stage: StageName) -> Tally:
        """What a stage's trials add up to."""
        return self._tallies[stage]
