"""The record of all trials: an optuna study in a database, written so that a kill at any moment loses nothing finished.

The database is the run folder's own ``study.db`` (SQLite), or any that optuna can use by its URL (PostgreSQL).

A trial is created in one transaction with all that is known before its training (one that was pruned or failed early
is finished by it), and its state changes in one. A trial that is found RUNNING belonged to a killed process;
:meth:`Study.interrupted` hands it out to be taken up again under its number.
"""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from profiler.errors import first_line
from smnas.scoring.base import AP
from smnas.search.study.candidate import Candidate, State
from smnas.search.study.history import History
from smnas.search.study.parameters import DISTRIBUTIONS, parameters_of
from smnas.search.study.run_folder import RunFolder, folder_lock
from smnas.search.study.settings import STUDY_NAME, RunFolderError, SearchSettings
from smnas.search.study.storage import open_storage, patiently, quiet_optuna, study_lock
from smnas.space.architecture import Architecture, ArchitectureError

__all__ = ["Study", "read_candidates"]

_STATES: dict[State, TrialState] = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "pruned": TrialState.PRUNED,
}
_NAMES = {state: name for name, state in _STATES.items()}
# Fields of a candidate that optuna keeps itself: number, state and, in the values, the score.
_OWN = ("number", "state", "score")


class Study(AbstractContextManager["Study"]):
    """The study of one run folder, held by one process at a time. Use it as a context manager.

    Args:
        folder: The run folder; ``study.db`` is made in it if it is not there.
        storage: The URL of another database.
        name: The study's name in the database.
        metric: What the scores of the search are; those of the final phase are AP.

    Attributes:
        candidates: All trials by number.

    Raises:
        RunFolderError: another process is searching in the folder or, from anywhere, in the database's study;
            ``study.db`` is not an optuna study; or the database can not be reached.
    """

    def __init__(self, folder: Path, storage: str | None = None, name: str = STUDY_NAME, metric: str = AP) -> None:
        with ExitStack() as held, quiet_optuna():
            held.enter_context(folder_lock(folder))
            self._storage = open_storage(folder, storage, to_write=True)
            held.callback(self._storage.engine.dispose)
            held.callback(self._storage.remove_session)
            held.enter_context(study_lock(self._storage, name))
            self._database = storage or RunFolder(folder).study
            self._study_id, trials = patiently(lambda: _opened(self._storage, name, metric), self._database)
            self.candidates = History(_candidate(trial, metric) for trial in trials)
            # The database's ids of this process's running trials: it has no index by number, so a look-up takes longer
            # the more trials there are.
            self._trial_ids: dict[int, int] = {}
            self._held = held.pop_all()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database and of the folder."""
        self._held.close()

    def interrupted(self) -> tuple[Candidate, ...]:
        """The trials that a killed process left unfinished."""
        return self.candidates.running

    def add(self, candidate: Candidate) -> Candidate:
        """Create a trial in one transaction, in the state that the candidate has.

        Raises:
            ValueError: its number is not the next one.
        """
        if candidate.number != len(self.candidates):
            raise ValueError(f"the next trial has the number {len(self.candidates)}, but got {candidate.number}")
        parameters = parameters_of(candidate.architecture)
        trial = create_trial(
            state=_STATES[candidate.state],
            params=parameters,
            distributions={name: DISTRIBUTIONS[name] for name in parameters},
            user_attrs=_attributes(candidate),
            values=candidate.point if candidate.state == "complete" else None,
        )
        trial_id = patiently(
            lambda: self._storage.create_new_trial(self._study_id, template_trial=trial), self._database
        )
        if candidate.state == "running":
            self._trial_ids[candidate.number] = trial_id
        self.candidates.append(candidate)
        return candidate

    def finish(self, candidate: Candidate) -> Candidate:
        """Finish a running trial as complete (with score and latency) or failed (with a reason).

        What was learned is stored first; the state changes last, in one transaction.
        """
        before = self.candidates[candidate.number]
        if before.state != "running":
            raise ValueError(f"only a running trial can be finished, but trial {candidate.number} is {before.state}")
        patiently(lambda: self._store(candidate, _attributes(before)), self._database)
        self._trial_ids.pop(candidate.number, None)
        self.candidates.finish(candidate)
        return candidate

    def _store(self, candidate: Candidate, known: dict[str, Any]) -> None:
        trial_id = self._trial_ids.get(candidate.number)
        if trial_id is None:
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, candidate.number)
        for name, value in _attributes(candidate).items():
            if name not in known or known[name] != value:
                self._storage.set_trial_user_attr(trial_id, name, value)
        values = candidate.point if candidate.state == "complete" else None
        self._storage.set_trial_state_values(trial_id, _STATES[candidate.state], values)


def _opened(storage: RDBStorage, name: str, metric: str) -> tuple[int, list[FrozenTrial]]:
    """Id and trials of a study, which is made where it is not there."""
    study = optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
    )
    names = [metric, "latency (ms)"]
    if study.metric_names != names:  # earlier versions called every score AP
        study.set_metric_names(names)
    return storage.get_study_id_from_name(name), study.get_trials(deepcopy=False)


def read_candidates(folder: Path, settings: SearchSettings) -> tuple[Candidate, ...]:
    """All trials of a run folder by number, also while another process searches there; none before it has a study.

    Raises:
        RunFolderError: the study can not be read.
    """
    # optuna would create an empty database in place of a missing one
    if settings.storage is None and not RunFolder(folder).study.is_file():
        return ()
    with quiet_optuna(), ExitStack() as held:
        storage = open_storage(folder, settings.storage)
        held.callback(storage.engine.dispose)
        try:
            trials = patiently(
                lambda: optuna.load_study(study_name=settings.study, storage=storage).get_trials(deepcopy=False),
                settings.storage or RunFolder(folder).study,
            )
            return tuple(_candidate(trial, settings.metric) for trial in trials)
        except KeyError:  # the database exists, but the search has not created its study yet
            return ()
        except (SQLAlchemyError, RuntimeError) as error:
            raise RunFolderError(
                f"the study of {folder} must be readable, but reading it failed: {first_line(error)}"
            ) from error


def _attributes(candidate: Candidate) -> dict[str, Any]:
    """All that is known, for the user attributes; the parent is written also where there is none."""
    known = {field.name: getattr(candidate, field.name) for field in fields(candidate) if field.name not in _OWN}
    known |= {"architecture": str(candidate.architecture), "metrics": dict(candidate.metrics)}
    return {name: value for name, value in known.items() if name == "parent" or value not in (None, {})}


def _candidate(trial: FrozenTrial, metric: str) -> Candidate:
    """A trial as it was written; those of earlier versions do not say their metric."""
    known = {field.name for field in fields(Candidate)} - set(_OWN)
    attributes = {name: value for name, value in trial.user_attrs.items() if name in known}
    try:
        attributes["architecture"] = Architecture.parse(attributes["architecture"])
        attributes.setdefault("metric", AP if attributes["stage"] == "final" else metric)
        candidate = Candidate(number=trial.number, state=_NAMES[trial.state], **attributes)
    except (KeyError, TypeError, ArchitectureError) as error:
        raise RunFolderError(
            f"every trial of a search's study has an architecture, a stage and a budget, but trial {trial.number} "
            f"has not: {error}"
        ) from error
    return replace(candidate, score=trial.values[0]) if trial.state is TrialState.COMPLETE else candidate
