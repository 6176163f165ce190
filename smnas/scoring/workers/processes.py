"""Scorer pools: one score after the other in this process, or several in worker processes.

The choice changes how long a search takes and nothing else.
"""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from profiler.child_process import end_with_parent
from profiler.errors import UserError, one_line
from smnas.scoring.base import (
    PreparingScorer,
    Score,
    Scorer,
    ScoringFailedError,
    ScoringProgress,
    StoppingScorer,
)
from smnas.space.architecture import Architecture

if TYPE_CHECKING:
    from smnas.search.context import SearchContext

__all__ = [
    "InProcess",
    "Job",
    "OnProgress",
    "OnStart",
    "Outcome",
    "ScorerNotMadeError",
    "ScorerPool",
    "Workers",
    "blameless",
    "outcome_of",
    "portable",
    "prepare",
]

OnStart = Callable[["Job"], None]
OnProgress = Callable[["Job", ScoringProgress], None]

_TRIES = 2  # a worker may die of another program's doing, but hardly twice


@dataclass(frozen=True)
class Job:
    """One score to make.

    Attributes:
        number: The caller's label.
        epochs: Full training budget.
        out_dir: Folder of this score alone.
        stop_epoch: Where to stop, under the schedule of the full budget; None does not stop.
        final: Whether it is of the final phase.
        time_limit_s: Of a final training run that ends by itself.
    """

    number: int
    architecture: Architecture
    seed: int
    epochs: int
    out_dir: Path
    stop_epoch: int | None = None
    final: bool = False
    time_limit_s: float | None = None


class ScorerPool(Protocol):
    """Makes scores."""

    @property
    def size(self) -> int:
        """Number of scores at once."""

    def prepare(self, context: "SearchContext") -> None:
        """Prepare the scorers before their first score (:class:`~smnas.scoring.base.PreparingScorer`).

        Raises:
            UserError, OSError, ScorerNotMadeError: see :meth:`score_all`.
        """

    def score_all(
        self, jobs: Sequence[Job], on_start: OnStart | None = None, on_progress: OnProgress | None = None
    ) -> Iterator[tuple[Job, Score | ScoringFailedError]]:
        """Score every job; outcomes, reasons for failure included, come as they are ready.

        Args:
            jobs: Started in this order.
            on_start: Called in this process when a job starts.
            on_progress: Called in this process from time to time.

        Raises:
            UserError, OSError: not the architecture's fault, such as a missing data set or a full disk.
            ScorerNotMadeError: a worker could not make its scorer.
        """


class ScorerNotMadeError(RuntimeError):
    """A worker could not make its scorer: an internal failure that ends the search."""


def prepare(scorer: Scorer, context: "SearchContext") -> None:
    """Prepare a scorer, if it needs to."""
    if isinstance(scorer, PreparingScorer):
        scorer.prepare(context)


def outcome_of(scorer: Scorer, job: Job, on_progress: Callable[[ScoringProgress], None] | None) -> "Outcome":
    """Make one score, or return why there is none."""
    try:
        if job.stop_epoch is None:
            score: Callable[..., Score] = getattr(scorer, "score_final", scorer.score) if job.final else scorer.score
            if job.time_limit_s is not None:
                score = partial(score, time_limit_s=job.time_limit_s)
            return score(
                job.architecture, seed=job.seed, epochs=job.epochs, out_dir=job.out_dir, on_progress=on_progress
            )
        if not isinstance(scorer, StoppingScorer):
            return UserError(f"training runs that stop and go on need a scorer that trains, but got {scorer.name!r}")
        return scorer.score_until(
            job.architecture,
            seed=job.seed,
            epochs=job.epochs,
            stop_epoch=job.stop_epoch,
            out_dir=job.out_dir,
            on_progress=on_progress,
        )
    except ScoringFailedError as error:
        # A new error: the old traceback keeps the failed run's tensors in memory.
        return ScoringFailedError(error.reason)
    except (UserError, OSError) as error:
        return error
    except Exception as error:  # noqa: BLE001  one odd architecture must not end a search of days
        return ScoringFailedError(f"unexpected {type(error).__name__}: {one_line(error)}")


Outcome = Score | ScoringFailedError | ScorerNotMadeError | UserError | OSError


def blameless(outcome: Outcome) -> Score | ScoringFailedError:
    """Raise an outcome that is not the architecture's fault; return any other."""
    if isinstance(outcome, UserError | OSError | ScorerNotMadeError):
        raise outcome
    return outcome


class InProcess:
    """One score at a time, in this process."""

    size = 1

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def prepare(self, context: "SearchContext") -> None:
        """See :meth:`ScorerPool.prepare`."""
        prepare(self._scorer, context)

    def score_all(
        self, jobs: Sequence[Job], on_start: OnStart | None = None, on_progress: OnProgress | None = None
    ) -> Iterator[tuple[Job, Score | ScoringFailedError]]:
        """See :meth:`ScorerPool.score_all`."""
        for job in jobs:
            if on_start is not None:
                on_start(job)

            def report(progress: ScoringProgress, job: Job = job) -> None:
                if on_progress is not None:
                    on_progress(job, progress)

            yield job, blameless(outcome_of(self._scorer, job, report))


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job | None = None


@dataclass
class _Queue:
    waiting: deque[Job]
    tries: dict[int, int] = field(default_factory=dict)


class Workers(AbstractContextManager["Workers"]):
    """Several scores at once, each in a process of its own. Use as a context manager.

    The processes start with the first jobs and end with the context, or when this process dies, even by SIGKILL. A job
    whose worker dies is retried once.

    Args:
        make: Makes the scorer of worker 0, 1, ... in that worker; picklable. If its ``prepares`` is False, no worker
            waits for another to prepare.
        size: Number of workers.
        threads: CPU threads of each; None leaves PyTorch's choice.
    """

    def __init__(self, make: Callable[[int], Scorer], size: int, threads: int | None = None) -> None:
        if size < 1:
            raise ValueError(f"`size >= 1` must hold, but got {size}")
        self.size = size
        self._make = make
        self._threads = threads
        self._workers: list[_Worker | None] = [None] * size
        self._context: SearchContext | None = None
        self._unprepared = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; unfinished scores stay as their folders hold them."""
        for worker in self._workers:
            if worker is not None:
                worker.process.kill()
        for worker in self._workers:
            if worker is not None:
                _bury(worker)
        self._workers = [None] * self.size

    def prepare(self, context: "SearchContext") -> None:
        """See :meth:`ScorerPool.prepare`; worker 0 prepares once there is something to score."""
        self._context = context
        self._unprepared = getattr(self._make, "prepares", True)

    def _prepare_now(self, context: "SearchContext") -> None:
        for tries in range(1, 1 + _TRIES):
            worker = self._workers[0] = self._workers[0] or self._start(0)
            try:
                worker.connection.send(None)
                while isinstance(message := worker.connection.recv(), tuple):
                    context.on_progress(*message)
            except (EOFError, OSError):
                self._workers[0] = None
                code = _bury(worker)
                if tries == _TRIES:
                    raise ScorerNotMadeError(f"the worker that prepares died {tries} times, {_cause(code)}") from None
                continue
            if message is not None:
                raise message
            break
        self._unprepared = False

    def score_all(
        self, jobs: Sequence[Job], on_start: OnStart | None = None, on_progress: OnProgress | None = None
    ) -> Iterator[tuple[Job, Score | ScoringFailedError]]:
        """See :meth:`ScorerPool.score_all`."""
        if jobs and self._unprepared and self._context is not None:
            self._prepare_now(self._context)
        queue = _Queue(deque(jobs))
        while True:
            for index in range(self.size):
                self._hand_out(index, queue, on_start)
            busy = {w.connection: i for i, w in enumerate(self._workers) if w is not None and w.job is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                index = busy[connection]  # type: ignore[index]
                ended = self._hear(index, queue, on_progress)
                if ended is not None:
                    job, outcome = ended
                    yield job, blameless(outcome)

    def _hand_out(self, index: int, queue: _Queue, on_start: OnStart | None) -> None:
        worker = self._workers[index]
        if not queue.waiting or (worker is not None and worker.job is not None):
            return
        if worker is None:
            worker = self._workers[index] = self._start(index)
        job = queue.waiting.popleft()
        worker.job = job
        queue.tries[job.number] = queue.tries.get(job.number, 0) + 1
        with contextlib.suppress(OSError):  # it is dead already: _hear notices
            worker.connection.send(job)
        if on_start is not None and queue.tries[job.number] == 1:
            on_start(job)

    def _hear(self, index: int, queue: _Queue, on_progress: OnProgress | None) -> tuple[Job, Outcome] | None:
        """Receive one message of a busy worker; return its job and outcome once complete."""
        worker = self._workers[index]
        assert worker is not None  # noqa: S101  only busy workers are waited for
        job = worker.job
        assert job is not None  # noqa: S101
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._workers[index] = None
            code = _bury(worker)
            if queue.tries[job.number] < _TRIES:
                queue.waiting.appendleft(job)
                return None
            return job, ScoringFailedError(f"its process died {_TRIES} times, {_cause(code)}")
        if isinstance(message, ScoringProgress):
            if on_progress is not None:
                on_progress(job, message)
            return None
        worker.job = None
        return job, message

    def _start(self, index: int) -> _Worker:
        # Spawned, not forked: torch's threads and CUDA do not survive a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work,
            args=(theirs, self._make, index, self._threads, self._context and self._context.portable()),
            name=f"smnas-worker-{index}",
            daemon=True,
        )
        process.start()
        theirs.close()  # so that the worker's death is the end of the stream
        return _Worker(process, ours)


def _bury(worker: _Worker) -> int | None:
    worker.connection.close()
    worker.process.join(10)
    code = worker.process.exitcode
    if code is not None:
        worker.process.close()
    return code


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"by {name}" + (" (out of memory is the usual reason)" if name == "SIGKILL" else "")
    return f"with exit code {code}"


def _work(
    connection: Connection,
    make: Callable[[int], Scorer],
    index: int,
    threads: int | None,
    context: "SearchContext | None",
) -> None:
    """Worker loop: jobs in, progress and outcomes out; None in to prepare, None out when done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    end_with_parent()  # an old worker must not write in the folders of a resumed search
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    scorer: Scorer | None = None
    while True:
        try:
            job: Job | None = connection.recv()
        except EOFError:
            return
        outcome: Outcome | None = None
        try:
            if scorer is None:
                made = make(index)
                if context is not None:
                    tell = _nothing if job else lambda *progress: connection.send(progress)
                    prepare(made, replace(context, on_progress=tell))
                scorer = made
        except (UserError, OSError) as error:
            outcome = error
        except Exception as error:  # noqa: BLE001  a crash would be blamed on every job in turn
            outcome = ScorerNotMadeError(f"worker {index} has no scorer: {type(error).__name__}: {one_line(error)}")
        if job is not None and outcome is None and scorer is not None:
            outcome = outcome_of(scorer, job, connection.send)
        connection.send(outcome and portable(outcome))


def _nothing(*_: object) -> None:
    pass


def portable(outcome: Outcome) -> Outcome:
    """Make the outcome picklable: subclasses of errors may need arguments that are not kept."""
    if isinstance(outcome, ScoringFailedError):
        return ScoringFailedError(outcome.reason)
    if isinstance(outcome, UserError):
        return UserError(str(outcome))
    if isinstance(outcome, OSError) and outcome.errno is not None:
        return OSError(outcome.errno, outcome.strerror, outcome.filename)
    if isinstance(outcome, OSError):
        return OSError(str(outcome))
    return outcome
