"""Writes a search's ranking and its notes, while it runs and at the end."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smnas.search.ranking.notes import PRELIMINARY, search_notes
from smnas.search.ranking.ranking import Ranking, rank, read_ranking, same_training_runs, write_ranking
from smnas.search.study.candidate import Candidate, StageName
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import SearchSettings

__all__ = ["RankingWriter", "finished_ranking"]

_EVERY_S = 5.0
_SHARE = 0.05  # of the time at most: ranking costs more the more there is to rank


@dataclass
class RankingWriter:
    """Writes the ranking of a run folder.

    Attributes:
        planned: Trial budget of each stage.
        due_s: When the next preliminary ranking is due, by :func:`time.monotonic`.
    """

    folder: Path
    settings: SearchSettings
    planned: Mapping[StageName, int]
    due_s: float = field(default=-math.inf, init=False)

    def preliminary(self, candidates: Sequence[Candidate], notes: Sequence[str]) -> None:
        """Write a preliminary ranking, if it is due."""
        began = time.monotonic()
        if began >= self.due_s:
            self._write(candidates, notes, finished=False)
            now = time.monotonic()
            self.due_s = now + max(_EVERY_S, (now - began) / _SHARE)

    def final(self, candidates: Sequence[Candidate], notes: Sequence[str]) -> Ranking:
        """Ranking of a finished search; an earlier one that still holds is kept, as an export may have completed it."""
        before = finished_ranking(self.folder)
        if before is not None and same_training_runs(before, self._ranked(candidates)):
            return before
        return self._write(candidates, notes, finished=True)

    def _ranked(self, candidates: Sequence[Candidate], notes: Sequence[str] = ()) -> Ranking:
        return rank(candidates, self.settings.latency_ms, notes, self.settings.max_parameters)

    def _write(self, candidates: Sequence[Candidate], notes: Sequence[str], *, finished: bool) -> Ranking:
        said = (*notes, *search_notes(candidates, self.settings, self.planned, finished))
        return write_ranking(self.folder, self.settings, self._ranked(candidates, said))


def finished_ranking(folder: Path) -> Ranking | None:
    """The ranking of a run folder whose search has finished; None where it has not."""
    before = read_ranking(folder) if RunFolder(folder).ranking.exists() else None
    return None if before is None or PRELIMINARY in before.notes else before
