"""The record of all trials: an optuna study in a database, written so that a kill at any moment loses nothing finished.

The database is the run folder's own ``study.db`` (SQLite), or any that optuna can use by its URL (PostgreSQL).

A trial is created in one transaction with all that is known before its training (one that was pruned or failed early
is finished by it), and its state changes in one. A trial that is found RUNNING belonged to a killed process;
:meth:`Study.interrupted` hands it out to be taken up again under its number.
"""

import fcntl
import hashlib
import sqlite3
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from smnas.search.candidate import Candidate, State
from smnas.search.parameters import DISTRIBUTIONS, parameters_of
from smnas.search.settings import STUDY_NAME, RunFolderError, SearchSettings
from smnas.space.architecture import Architecture, ArchitectureError

__all__ = ["STUDY_FILE", "STUDY_NAME", "Study", "open_storage", "read_candidates", "storage_url", "study_name"]

STUDY_FILE = "study.db"

_STATES: dict[State, TrialState] = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "pruned": TrialState.PRUNED,
}
_NAMES = {state: name for name, state in _STATES.items()}
# Fields of a candidate that optuna keeps itself: number, state and, in the values, AP.
_OWN = ("number", "state", "ap")


class Study:
    """The study of one run folder, held by one process at a time. Use it as a context manager.

    Args:
        folder: The run folder; ``study.db`` is made in it if it is not there.
        storage: The URL of another database.
        name: The study's name in the database.

    Raises:
        RunFolderError: another process is searching in the folder, ``study.db`` is not an optuna study, or the database
            can not be reached.
    """

    def __init__(self, folder: Path, storage: str | None = None, name: str = STUDY_NAME) -> None:
        self._lock = _lock(folder / ".lock")
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # optuna's own log lines are not this program's output
        try:
            self._storage = open_storage(folder, storage, to_write=True)
            study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                directions=["maximize", "minimize"],
                load_if_exists=True,
            )
            if study.metric_names is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    study.set_metric_names(["AP", "latency (ms)"])
            self._study_id = self._storage.get_study_id_from_name(name)
            self._candidates = [_candidate(trial) for trial in study.get_trials(deepcopy=False)]
        except BaseException:
            self._lock.close()
            raise
        finally:
            optuna.logging.set_verbosity(verbosity)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and of the folder."""
        self._storage.remove_session()
        self._storage.engine.dispose()
        self._lock.close()

    @property
    def candidates(self) -> Sequence[Candidate]:
        """All trials by number."""
        return self._candidates

    def interrupted(self) -> tuple[Candidate, ...]:
        """The trials that a killed process left unfinished."""
        return tuple(c for c in self._candidates if c.state == "running")

    def add(self, candidate: Candidate) -> Candidate:
        """Create a trial in one transaction, in the state that the candidate has.

        Raises:
            ValueError: its number is not the next one.
        """
        if candidate.number != len(self._candidates):
            raise ValueError(f"the next trial has the number {len(self._candidates)}, but got {candidate.number}")
        parameters = parameters_of(candidate.architecture)
        trial = create_trial(
            state=_STATES[candidate.state],
            params=parameters,
            distributions={name: DISTRIBUTIONS[name] for name in parameters},
            user_attrs=_attributes(candidate),
            values=candidate.point if candidate.state == "complete" else None,
        )
        self._storage.create_new_trial(self._study_id, template_trial=trial)
        self._candidates.append(candidate)
        return candidate

    def finish(self, candidate: Candidate) -> Candidate:
        """Finish a running trial as complete (with AP and latency) or failed (with a reason).

        What was learned is stored first; the state changes last, in one transaction.
        """
        before = self._candidates[candidate.number]
        if before.state != "running":
            raise ValueError(f"only a running trial can be finished, but trial {candidate.number} is {before.state}")
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, candidate.number)
        known = _attributes(before)
        for name, value in _attributes(candidate).items():
            if name not in known or known[name] != value:
                self._storage.set_trial_user_attr(trial_id, name, value)
        values = candidate.point if candidate.state == "complete" else None
        self._storage.set_trial_state_values(trial_id, _STATES[candidate.state], values)
        self._candidates[candidate.number] = candidate
        return candidate


def read_candidates(folder: Path, settings: SearchSettings) -> tuple[Candidate, ...]:
    """All trials of a run folder by number, also while another process searches there.

    Raises:
        RunFolderError: there is no study, or it can not be read.
    """
    if settings.storage is None and not (folder / STUDY_FILE).is_file():
        raise RunFolderError(f"a run folder with a study holds {STUDY_FILE}, but {folder} has none")
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(folder, settings.storage)
    try:
        study = optuna.load_study(study_name=settings.study, storage=storage)
        return tuple(_candidate(trial) for trial in study.get_trials(deepcopy=False))
    except (KeyError, SQLAlchemyError, RuntimeError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunFolderError(f"the study of {folder} must be readable, but reading it failed: {cause}") from error
    finally:
        optuna.logging.set_verbosity(verbosity)
        storage.engine.dispose()


def _lock(file: Path) -> IO[str]:
    handle = file.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
    except OSError as error:
        handle.close()
        raise RunFolderError(
            f"one search at a time works in a run folder, but another process holds {file.parent}"
        ) from error
    return handle


def open_storage(folder: Path, url: str | None, *, to_write: bool = False) -> RDBStorage:
    """The database of a run folder's study: its own file, or the one with this URL.

    Opened to read, a file stays as it is.

    Raises:
        RunFolderError: it can not be opened, or the driver that it needs is not installed.
    """
    if url is not None:
        return _open_database(_with_driver(storage_url(url)))
    file = folder / STUDY_FILE
    try:
        storage = RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}})
        if to_write:
            event.listen(storage.engine, "connect", _write_ahead)
            storage.engine.dispose()  # the connection that made the tables came before the listener
    except (SQLAlchemyError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise RunFolderError(
            f"{file} must be the SQLite file of a study, but opening it failed: {first_line}"
        ) from error
    return storage


def _with_driver(url: URL) -> URL:
    """PostgreSQL's URLs name no driver as a rule; this project's is psycopg."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _open_database(url: URL) -> RDBStorage:
    try:
        # A connection that the server has closed in the hours of a training is noticed and replaced.
        return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise RunFolderError(
            f"a database needs its driver, but {error.name} is not installed: pip install 'smnas[postgresql]'"
        ) from error
    except (SQLAlchemyError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise RunFolderError(f"{url} must be a database for the study, but opening it failed: {first_line}") from error


def storage_url(text: str) -> URL:
    """Check the URL of a database for the study.

    Raises:
        RunFolderError: it is no URL, or it holds a password, which would be kept in ``settings.json``.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise RunFolderError(
            f"a storage is a database URL as in postgresql://user@host/name, but got {text!r}"
        ) from error
    if url.password is not None:
        raise RunFolderError(
            f"a storage URL is kept in the run folder, so it must not hold a password, but {url} does: "
            "use PGPASSWORD or a password file"
        )
    return url


def _write_ahead(connection: sqlite3.Connection, _record: object) -> None:
    # A commit need not wait for the disk: with a write-ahead log a killed process loses nothing, and a power cut at
    # most the last trials, never the file.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _attributes(candidate: Candidate) -> dict[str, Any]:
    """All that is known, for the user attributes; the parent is written also where there is none."""
    known = {field.name: getattr(candidate, field.name) for field in fields(candidate) if field.name not in _OWN}
    known |= {"architecture": str(candidate.architecture), "metrics": dict(candidate.metrics)}
    return {name: value for name, value in known.items() if name == "parent" or value not in (None, {})}


def _candidate(trial: FrozenTrial) -> Candidate:
    known = {field.name for field in fields(Candidate)} - set(_OWN)
    attributes = {name: value for name, value in trial.user_attrs.items() if name in known}
    try:
        attributes["architecture"] = Architecture.parse(attributes["architecture"])
        candidate = Candidate(number=trial.number, state=_NAMES[trial.state], **attributes)
    except (KeyError, TypeError, ArchitectureError) as error:
        raise RunFolderError(
            f"every trial of a search's study has an architecture, a stage and a budget, but trial {trial.number} "
            f"has not: {error}"
        ) from error
    return replace(candidate, ap=trial.values[0]) if trial.state is TrialState.COMPLETE else candidate


def study_name(folder: Path, storage: str | None) -> str:
    """What a run folder's study is called: in a database that others share, after the folder."""
    if storage is None:
        return STUDY_NAME
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return f"{STUDY_NAME}-{folder.resolve().name}-{digest}"
