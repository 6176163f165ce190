"""Read a run folder: settings, trials, training curves and ranking.

Only ``settings.json`` is required, since a search that is still running or was killed has a report too.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smnas.search.ranking.notes import PRELIMINARY
from smnas.search.ranking.ranking import Ranking, RankingRow, read_ranking
from smnas.search.study.candidate import Candidate
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.run_folder import RunFolder as RunFiles
from smnas.search.study.run_folder import RunFolderError
from smnas.search.study.settings import SearchSettings, read_settings

__all__ = ["Curve", "RunFolder", "read_run_folder"]


@dataclass(frozen=True)
class Curve:
    """Curve of one training run: a mapping of numbers for every finished epoch."""

    architecture: str
    run: str
    epochs: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class RunFolder:
    """Contents of a run folder for a report."""

    path: Path
    settings: SearchSettings
    trials: tuple[Candidate, ...] = ()
    curves: tuple[Curve, ...] = ()
    ranking: Ranking = field(default_factory=lambda: Ranking((), None))

    def row(self, architecture: str) -> RankingRow | None:
        """Row of an architecture in the ranking, if any."""
        return next((row for row in self.ranking.rows if row.architecture == architecture), None)

    @property
    def ended(self) -> bool:
        """Whether the search has ended, with a detector or without one."""
        return bool(self.ranking.rows or self.ranking.notes) and PRELIMINARY not in self.ranking.notes

    @property
    def winner(self) -> RankingRow | None:
        """The recommended row; ``None`` while there is none."""
        recommendation = self.ranking.recommendation
        return None if recommendation is None else self.row(recommendation.architecture)

    @property
    def baseline(self) -> RankingRow | None:
        """The baseline's row."""
        return next((row for row in self.ranking.rows if row.role == "baseline"), None)


def read_run_folder(path: Path) -> RunFolder:
    """Read a run folder that is complete, still running or was killed.

    Raises:
        RunFolderError: not a run folder, another format version, or an unreadable file.
    """
    if not path.is_dir():
        raise RunFolderError(f"a run folder must exist, but got {path}")
    settings = read_settings(path)
    files = RunFiles(path)
    ranking = read_ranking(path) if files.ranking.is_file() else Ranking((), None)
    return RunFolder(path, settings, read_candidates(path, settings), _read_curves(files.models), ranking)


def _read_curves(models: Path) -> tuple[Curve, ...]:
    curves = []
    for file in sorted(models.glob("*/*/curve.jsonl")):
        epochs = []
        for line in file.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break  # a killed run may leave half a last line, a lost disk anything; earlier lines hold
            if isinstance(entry, dict):
                epochs.append({name: float(value) for name, value in entry.items() if _is_number(value)})
        if epochs:
            curves.append(Curve(file.parent.parent.name, file.parent.name, tuple(epochs)))
    return tuple(curves)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
