"""Scores made on a Ray cluster: one task a score, on whichever node has room.

Every node must see the data set and the run folder under the same paths (a shared file system): a training run whose
node is lost resumes from its checkpoint on another one. The study stays with the process that searches; after a restart
of the cluster's head, the same search command resumes with everything that was finished.
"""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from profiler.errors import BackendUnavailableError, UserError, first_line
from smnas.scoring.base import Score, Scorer, ScoringFailedError
from smnas.scoring.workers.processes import (
    Job,
    OnProgress,
    OnStart,
    Outcome,
    ScorerNotMadeError,
    blameless,
    outcome_of,
    portable,
    prepare,
)

if TYPE_CHECKING:
    from smnas.search.context import SearchContext

__all__ = ["RayWorkers", "import_ray"]

_RETRIES = 3  # of a task whose process or node dies; its own errors are outcomes, not retried


class RayWorkers(AbstractContextManager["RayWorkers"]):
    """A pool on a cluster. Use as a context manager.

    Args:
        make_on: Maps device names to a picklable factory, which makes one scorer a process. A task sees its own GPU as
            ``cuda:0``.
        address: Of the cluster, as ``ray.init`` takes it (``auto``, ``host:port``).
        threads: CPU threads, and CPUs of the cluster, of one score; if the cluster has GPUs, it takes one of them too.
        at_most: Scores at once; None: as room permits.

    Raises:
        BackendUnavailableError: Ray is not installed.
        UserError: no cluster at the address, or too small for one score.
    """

    def __init__(
        self,
        make_on: Callable[[tuple[str, ...]], Callable[[int], Scorer]],
        address: str,
        threads: int = 1,
        at_most: int | None = None,
    ) -> None:
        self._ray = ray = import_ray()
        self._threads = threads
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--ray must be the address of a running cluster, but got {address!r}: {error}") from error
        resources = ray.cluster_resources()
        self.gpus = int(resources.get("GPU", 0))
        self.size = int(resources.get("CPU", 0)) // threads
        if self.gpus:
            self.size = min(self.size, self.gpus)
        if at_most is not None:
            self.size = min(self.size, at_most)
        self._make = make_on(("cuda:0",) if self.gpus else ("cpu",))
        self._context: SearchContext | None = None
        self._unprepared = False
        self._key = uuid4().hex
        if self.size < 1:
            self._ray.shutdown()
            raise UserError(f"one training needs {threads} CPUs, but the cluster has {resources.get('CPU', 0):g}")

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; unfinished scores stop and stay as their folders hold them."""
        self._ray.shutdown()

    def prepare(self, context: "SearchContext") -> None:
        """See :meth:`ScorerPool.prepare`; a task prepares, without progress, once there is something to score."""
        self._context = context.portable()
        self._unprepared = getattr(self._make, "prepares", True)

    def score_all(
        self, jobs: Sequence[Job], on_start: OnStart | None = None, on_progress: OnProgress | None = None
    ) -> Iterator[tuple[Job, Score | ScoringFailedError]]:
        """See :meth:`ScorerPool.score_all`; without progress inside a score."""
        ray = self._ray
        options = {"num_cpus": self._threads, "num_gpus": 1 if self.gpus else 0, "max_retries": _RETRIES}
        task = ray.remote(**options)(_score)
        scorer = self._key, self._make, self._context
        if jobs and self._unprepared:
            outcome = self._result(task.remote(scorer, None, self._threads))
            if isinstance(outcome, ScoringFailedError):
                raise ScorerNotMadeError(outcome.reason)
            if outcome is not None:
                blameless(outcome)
            self._unprepared = False
        waiting = list(reversed(jobs))
        running: dict[Any, Job] = {}
        while waiting or running:
            while waiting and len(running) < self.size:
                job = waiting.pop()
                if on_start is not None:
                    on_start(job)
                running[task.remote(scorer, job, self._threads)] = job
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            outcome = self._result(done)
            assert outcome is not None  # noqa: S101  only preparing has none
            yield running.pop(done), blameless(outcome)

    def _result(self, reference: Any) -> Outcome | None:
        errors = self._ray.exceptions
        try:
            outcome: Outcome | None = self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            # Ray's other errors are the cluster's, not the architecture's: they end the search, which can resume.
            return ScoringFailedError(f"its process or node died {1 + _RETRIES} times: {first_line(error)}")
        return outcome


def import_ray() -> Any:
    """Import Ray; raises :class:`BackendUnavailableError` if it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise BackendUnavailableError("a Ray cluster needs Ray: pip install 'smnas[ray]'") from error


_SCORERS: dict[str, Scorer] = {}
"""By pool, in this process of the cluster: reading a data set takes longer than some scores."""


def _score(
    of: tuple[str, Callable[[int], Scorer], "SearchContext | None"], job: Job | None, threads: int
) -> Outcome | None:
    """Task in a process of the cluster; without a job it only prepares."""
    import torch

    torch.set_num_threads(threads)
    key, make, context = of
    try:
        scorer = _SCORERS.get(key)
        if scorer is None:
            scorer = make(0)
            if context is not None:
                prepare(scorer, context)
            _SCORERS[key] = scorer
    except (UserError, OSError) as error:
        return portable(error)
    return None if job is None else portable(outcome_of(scorer, job, None))
