"""A run folder as values: its settings, its trials, its training curves and its ranking.

Only reading happens here. Every file is optional except ``settings.json``, because a report of a search that is still
running, or that was killed, is wanted too.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna
from sqlalchemy.exc import SQLAlchemyError

from profiler.errors import first_line
from smnas.scoring.entropy import ENTROPY_FORMS
from smnas.search.ranking.notes import PRELIMINARY
from smnas.search.ranking.ranking import Ranking, RankingRow, read_ranking
from smnas.search.study.run_folder import RunFolder as RunFiles
from smnas.search.study.run_folder import RunFolderError
from smnas.search.study.settings import SearchSettings, read_settings
from smnas.search.study.storage import open_storage

__all__ = ["Curve", "RunFolder", "Trial", "read_run_folder"]

_STATES = {
    optuna.trial.TrialState.COMPLETE: "complete",
    optuna.trial.TrialState.FAIL: "failed",
    optuna.trial.TrialState.PRUNED: "pruned",
    optuna.trial.TrialState.RUNNING: "running",
    optuna.trial.TrialState.WAITING: "running",
}


@dataclass(frozen=True)
class Trial:
    """One architecture that the search looked at.

    Attributes:
        number: The study's trial number.
        state: ``complete``, ``failed``, ``pruned`` or ``running``.
        stage: ``baseline``, ``structural``, ``modular`` or ``final``.
        ap: COCO AP in 0..1; ``None`` unless complete and trained.
        score: What a scorer without training gave; ``None`` in a run that trains its candidates.
        latency_ms: Predicted latency of the whole detector, with the bounds of its interval.
        epochs: The whole budget, of which this trial trains ``start_epoch`` to ``stop_epoch`` (``None``: to the end).
        reason: Why it failed or was pruned.
    """

    number: int
    state: str
    architecture: str
    stage: str
    origin: str | None = None
    parent: str | None = None
    ap: float | None = None
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    parameters: int | None = None
    flops: float | None = None
    seconds: float | None = None
    seed: int | None = None
    epochs: int | None = None
    start_epoch: int = 0
    stop_epoch: int | None = None
    reason: str | None = None
    score: float | None = None

    @property
    def own_epochs(self) -> int:
        """Epochs that this trial trained itself."""
        return (self.stop_epoch or self.epochs or 0) - self.start_epoch


@dataclass(frozen=True)
class Curve:
    """How one training went: a mapping of numbers for every finished epoch."""

    architecture: str
    run: str
    epochs: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class RunFolder:
    """Everything that a report needs from a run folder."""

    path: Path
    settings: SearchSettings
    trials: tuple[Trial, ...] = ()
    curves: tuple[Curve, ...] = ()
    ranking: Ranking = field(default_factory=lambda: Ranking((), None))

    def row(self, architecture: str) -> RankingRow | None:
        """The ranking's row of an architecture, if it has one."""
        return next((row for row in self.ranking.rows if row.architecture == architecture), None)

    @property
    def ended(self) -> bool:
        """Whether the search came to its end, with a detector or without one."""
        return bool(self.ranking.rows or self.ranking.notes) and PRELIMINARY not in self.ranking.notes

    @property
    def winner(self) -> RankingRow | None:
        """The recommended row; ``None`` while there is none."""
        recommendation = self.ranking.recommendation
        return None if recommendation is None else self.row(recommendation.architecture)

    @property
    def baseline(self) -> RankingRow | None:
        """The row that every candidate is compared with."""
        return next((row for row in self.ranking.rows if row.role == "baseline"), None)


def read_run_folder(path: Path) -> RunFolder:
    """Read a run folder that is complete, still running or was killed.

    Args:
        path: The folder that ``smnas-search --out`` wrote.

    Raises:
        RunFolderError: not a run folder, another format version, or a file in it that can not be read.
    """
    if not path.is_dir():
        raise RunFolderError(f"a run folder must exist, but got {path}")
    settings = read_settings(path)
    files = RunFiles(path)
    ranking = read_ranking(path) if files.ranking.is_file() else Ranking((), None)
    trials = _read_trials(path, settings)
    if settings.scorer in ENTROPY_FORMS:
        trials = tuple(trial if trial.stage == "final" else replace(trial, ap=None, score=trial.ap) for trial in trials)
    return RunFolder(path, settings, trials, _read_curves(files.models), ranking)


def _read_trials(path: Path, settings: SearchSettings) -> tuple[Trial, ...]:
    # optuna would create an empty database in place of a missing one.
    if settings.storage is None and not RunFiles(path).study.is_file():
        return ()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(path, settings.storage)
    try:
        study = optuna.load_study(study_name=settings.study, storage=storage)
        return tuple(_trial(frozen) for frozen in study.get_trials(deepcopy=False))
    except KeyError:  # the storage exists, but the search has not created its study yet
        return ()
    except (SQLAlchemyError, RuntimeError) as error:
        raise RunFolderError(
            f"the study of {path} must be readable, but reading it failed: {first_line(error)}"
        ) from error
    finally:
        optuna.logging.set_verbosity(verbosity)
        storage.engine.dispose()


def _trial(frozen: optuna.trial.FrozenTrial) -> Trial:
    attributes = frozen.user_attrs
    state = _STATES[frozen.state]
    ap = latency = None
    if state == "complete":
        ap, latency = _finite(frozen.values[0]), _finite(frozen.values[1])
    return Trial(
        number=frozen.number,
        state=state,
        architecture=attributes.get("architecture", ""),
        stage=attributes.get("stage", ""),
        ap=ap,
        latency_ms=latency if latency is not None else attributes.get("latency_ms"),
        start_epoch=attributes.get("start_epoch", 0),
        **{
            name: attributes.get(name)
            for name in (
                "origin",
                "parent",
                "latency_low_ms",
                "latency_high_ms",
                "parameters",
                "flops",
                "seconds",
                "seed",
                "epochs",
                "stop_epoch",
                "reason",
            )
        },
    )


def _read_curves(models: Path) -> tuple[Curve, ...]:
    curves = []
    for file in sorted(models.glob("*/*/curve.jsonl")):
        epochs = []
        for line in file.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break  # a killed run may leave half a last line, a lost disk anything; the whole ones before it stand
            if isinstance(entry, dict):
                epochs.append({name: float(value) for name, value in entry.items() if _is_number(value)})
        if epochs:
            curves.append(Curve(file.parent.parent.name, file.parent.name, tuple(epochs)))
    return tuple(curves)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
