"""Processes that are killed at random moments, and what must survive."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Survival:
    """What finished work was lost or changed by kills.

    Attributes:
        lost: Items that were there before a kill and not after it.
        changed: Items that were not the same after it.
        known: The items after the last kill.
    """

    lost: int = 0
    changed: int = 0
    known: dict[Any, Any] = field(default_factory=dict)

    def check(self, now: Mapping[Any, Any]) -> None:
        """Compare with the items before, and keep these."""
        self.lost += sum(key not in now for key in self.known)
        self.changed += sum(now[key] != item for key, item in self.known.items() if key in now)
        self.known = dict(now)


def killed_process(work: Callable[[int], None], lines: int, delay_s: float) -> tuple[list[str], bool]:
    """Work in a forked process, and kill it ``delay_s`` after it has written ``lines`` lines.

    Counted in lines, because on a busy machine a time would often be over before anything has happened.

    Args:
        work: Writes to the file descriptor that it is given.
        lines: Number of lines after which the delay begins; 0: at the start.
        delay_s: Delay in seconds.

    Returns:
        All lines that it wrote, and whether it was killed before it ended.

    Raises:
        RuntimeError: it ended with an error by itself.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            work(writing)
            code = 0
        finally:
            os._exit(code)  # nothing that the parent has begun is finished here
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as written:
        found = [written.readline() for _ in range(lines)]  # empty, and at once, when the child has ended
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)  # one that has ended stays a zombie until waited for
        found += written.readlines()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"the process ended with status {status}")
    return [line.strip() for line in found if line.endswith("\n")], killed


def finished_trials(run: Path) -> dict[int, tuple[object, ...]]:
    """Every finished trial of a run folder with its state, end and values, by SQL of its own."""
    file = run / "study.db"
    if not file.exists():
        return {}
    with closing(sqlite3.connect(file)) as connection:
        try:
            rows = connection.execute(
                "select number, state, datetime_complete, (select group_concat(value, ' ') from trial_values v"
                " where v.trial_id = t.trial_id) from trials t where state in ('COMPLETE', 'FAIL', 'PRUNED')"
            ).fetchall()
        except sqlite3.OperationalError:
            return {}  # killed before the tables were made
    return {number: tuple(facts) for number, *facts in rows}
