"""A run folder as values: its settings, its trials, its training curves and its ranking.

Only reading happens here. Every file is optional except ``settings.json``, because a report of a search that is still
running, or that was killed, is wanted too.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.exc import SQLAlchemyError

from profiler.errors import UserError

__all__ = [
    "FORMAT_VERSION",
    "Curve",
    "Ranking",
    "RankingRow",
    "RunFolder",
    "RunFolderError",
    "Trial",
    "read_run_folder",
]

FORMAT_VERSION = 1
STUDY_NAME = "smnas"

_STATES = {
    optuna.trial.TrialState.COMPLETE: "complete",
    optuna.trial.TrialState.FAIL: "failed",
    optuna.trial.TrialState.PRUNED: "pruned",
    optuna.trial.TrialState.RUNNING: "running",
    optuna.trial.TrialState.WAITING: "running",
}


class RunFolderError(UserError):
    """A folder that is not a run folder, or one of another format version."""


@dataclass(frozen=True)
class Trial:
    """One architecture that the search looked at.

    Attributes:
        number: The study's trial number.
        state: ``complete``, ``failed``, ``pruned`` or ``running``.
        stage: ``baseline``, ``structural``, ``modular`` or ``final``.
        ap: COCO AP in 0..1; ``None`` unless complete.
        latency_ms: Predicted latency of the whole detector, with the bounds of its interval.
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
    reason: str | None = None


@dataclass(frozen=True)
class RankingRow:
    """One row of ``ranking.json``; the field names are the file's."""

    rank: int
    architecture: str
    id: str
    role: str
    stage: str
    on_front: bool
    ap: float | None
    ap_std: float | None = None
    ap_per_seed: tuple[float, ...] = ()
    ap50: float | None = None
    seeds: tuple[int, ...] = ()
    epochs: int | None = None
    predicted_latency_ms: float | None = None
    predicted_latency_low_ms: float | None = None
    predicted_latency_high_ms: float | None = None
    measured_latency_ms: float | None = None
    measured_latency_low_ms: float | None = None
    measured_latency_high_ms: float | None = None
    parameters: int | None = None
    flops: float | None = None
    checkpoint: str | None = None
    model: str | None = None
    exported_ap: float | None = None
    exported_ap50: float | None = None


@dataclass(frozen=True)
class Ranking:
    """``ranking.json``: the rows, best first, and which of them to deploy."""

    rows: tuple[RankingRow, ...]
    winner: str | None
    reason: str
    notes: tuple[str, ...] = ()

    def row(self, architecture: str | None) -> RankingRow | None:
        """The row of ``architecture``, if the ranking holds it."""
        return next((row for row in self.rows if row.architecture == architecture), None)

    @property
    def baseline(self) -> RankingRow | None:
        """The row that every candidate is compared with."""
        return next((row for row in self.rows if row.role == "baseline"), None)


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
    settings: Mapping[str, Any]
    trials: tuple[Trial, ...] = ()
    curves: tuple[Curve, ...] = ()
    ranking: Ranking = field(default_factory=lambda: Ranking((), None, ""))


def read_run_folder(path: Path) -> RunFolder:
    """Read a run folder that is complete, still running or was killed.

    Args:
        path: The folder that ``smnas-search --out`` wrote.

    Raises:
        RunFolderError: not a run folder, another format version, or a file in it that can not be read.
    """
    if not path.is_dir():
        raise RunFolderError(f"a run folder must exist, but got {path}")
    settings_file = path / "settings.json"
    if not settings_file.is_file():
        raise RunFolderError(f"a run folder holds settings.json, but {path} has none")
    settings = _read_versioned(settings_file)
    ranking_file = path / "ranking.json"
    ranking = _ranking(ranking_file, _read_versioned(ranking_file)) if ranking_file.is_file() else Ranking((), None, "")
    return RunFolder(path, settings, _read_trials(path / "study.db"), _read_curves(path / "models"), ranking)


def _read_versioned(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file} must be a JSON document, but reading it failed: {error}") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise RunFolderError(f"this version reads run folders of format {FORMAT_VERSION}, but {file} has {version}")
    return dict(document)


def _ranking(file: Path, document: Mapping[str, Any]) -> Ranking:
    known = {f.name for f in fields(RankingRow)}
    try:
        rows = []
        for raw in document["rows"]:
            values = {name: value for name, value in raw.items() if name in known}
            for name in ("ap_per_seed", "seeds"):
                value = values.get(name)
                values[name] = tuple(value) if isinstance(value, list) else ()
            rows.append(RankingRow(**values))
        recommendation = document.get("recommendation") or {}
        return Ranking(
            tuple(sorted(rows, key=lambda row: row.rank)),
            recommendation.get("architecture"),
            recommendation.get("reason") or "",
            tuple(str(note) for note in document.get("notes", ())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{file} must hold ranking rows, but reading them failed: {error!r}") from error


def _read_trials(file: Path) -> tuple[Trial, ...]:
    # optuna would create an empty database in place of a missing one.
    if not file.is_file():
        return ()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
        return tuple(_trial(frozen) for frozen in study.get_trials(deepcopy=False))
    except KeyError:  # the storage exists, but the search has not created its study yet
        return ()
    except (SQLAlchemyError, RuntimeError) as error:
        cause = str(error).splitlines()[0]
        raise RunFolderError(f"{file} must be the SQLite file of a study, but reading it failed: {cause}") from error
    finally:
        optuna.logging.set_verbosity(verbosity)
        if storage is not None:
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
                "reason",
            )
        },
    )


def _read_curves(models: Path) -> tuple[Curve, ...]:
    curves = []
    for file in sorted(models.glob("*/*/curve.jsonl")):
        epochs = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break  # a killed run may leave half a last line; the whole ones before it stand
            if isinstance(entry, dict):
                epochs.append({name: float(value) for name, value in entry.items() if _is_number(value)})
        if epochs:
            curves.append(Curve(file.parent.parent.name, file.parent.name, tuple(epochs)))
    return tuple(curves)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
