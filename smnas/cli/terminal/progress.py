"""Progress of a long command with the time left: a bar on a terminal, an occasional line elsewhere."""

import math
import time
from contextlib import AbstractContextManager, ExitStack

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from smnas.cli.terminal.console import Output
from smnas.durations import duration

__all__ = ["PhaseSteps", "Steps"]

_SECONDS_BETWEEN_LINES = 15.0


class Steps:
    """Context manager that counts steps.

    Time left is extrapolated from the steps since the first call, so steps finished by an earlier run of the same
    command do not count as fast ones.

    Args:
        output: Where to write; a quiet one writes nothing.
        title: Name of the task, e.g. ``training``.
    """

    def __init__(self, output: Output, title: str) -> None:
        self._output = output
        self._title = title
        self._started: tuple[float, float] | None = None
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        if output.messages.is_terminal and not output.quiet:
            # file names in square brackets are no markup
            title_column, text_column = (
                TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[text]}")
            )
            columns = (title_column, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text_column)
            self._bar = Progress(*columns, console=output.messages)
            self._task = self._bar.add_task(title, total=None, text="")

    def __enter__(self) -> "Steps":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, done: float, total: float | None, text: str = "") -> None:
        """Show ``done`` steps of ``total`` (``None``: unknown) and the current item, ``text``."""
        now = time.monotonic()
        if self._started is None:
            self._started = (now, done)
        left = None if total is None else self._left(now, done, total)
        if left is not None:
            text = f"{duration(left)} left  {text}"
        if self._bar is not None:
            self._bar.tasks[0].total = total  # `update` keeps an estimate that proved too small
            self._bar.update(self._task, completed=done, text=text)
        elif (total is not None and done >= total) or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            of = "" if total is None else f"/{math.floor(total)}"
            self._output.note(f"{self._title} {math.floor(done)}{of}  {text}".rstrip())

    def _left(self, now: float, done: float, total: float) -> float | None:
        if self._started is None or done <= self._started[1] or done >= total:
            return None
        began, before = self._started
        return (now - began) / (done - before) * (total - done)


class PhaseSteps(AbstractContextManager["PhaseSteps"]):
    """Context manager that counts steps of consecutive phases, each on a bar of its own."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._title: str | None = None
        self._stack = ExitStack()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the phase; the next step starts another."""
        self._stack.close()
        self._title = None

    def step(self, title: str, done: float, total: float | None, text: str = "") -> None:
        """See :meth:`Steps.at`; a new title starts another phase."""
        if title != self._title:
            self._stack.close()
            self._title = title
            self._steps = self._stack.enter_context(Steps(self._output, title))
        self._steps.at(done, total, text)
