"""Progress of a long command with the time left: a bar on a terminal, an occasional line elsewhere."""

import math
import time
from contextlib import AbstractContextManager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from smnas.cli.terminal.console import Output
from smnas.durations import duration

__all__ = ["PhaseSteps"]

_SECONDS_BETWEEN_LINES = 15.0


class PhaseSteps(AbstractContextManager["PhaseSteps"]):
    """Context manager that counts steps of consecutive phases, each on a bar of its own.

    Time left is extrapolated from the steps since a phase's first call, so steps finished by an earlier run of the same
    command do not count as fast ones. A quiet output shows nothing.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._title: str | None = None
        self._began = (0.0, 0.0)  # when the phase began, and its steps by then
        self._last_line = -math.inf
        self._bar: Progress | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the phase; the next step starts another."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._title = None

    def step(self, title: str, done: float, total: float | None, text: str = "") -> None:
        """Show ``done`` steps of ``total`` (``None``: unknown) and the current item, ``text``.

        A new title starts another phase.
        """
        now = time.monotonic()
        if title != self._title:
            self.close()
            self._title, self._began, self._last_line = title, (now, done), -math.inf
            if self._output.messages.is_terminal and not self._output.quiet:
                self._bar = self._started(title)
        began, before = self._began
        if total is not None and before < done < total:
            text = f"{duration((now - began) / (done - before) * (total - done))} left  {text}"
        if self._bar is not None:
            self._bar.tasks[0].total = total  # `update` keeps an estimate that proved too small
            self._bar.update(self._bar.tasks[0].id, completed=done, text=text)
        elif (total is not None and done >= total) or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            of = "" if total is None else f"/{math.floor(total)}"
            self._output.note(f"{title} {math.floor(done)}{of}  {text}".rstrip())

    def _started(self, title: str) -> Progress:
        # file names in square brackets are no markup
        name, text = (TextColumn(column, markup=False) for column in ("{task.description}", "{task.fields[text]}"))
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text)
        bar = Progress(*columns, console=self._output.messages)
        bar.add_task(title, total=None, text="")
        bar.start()
        return bar
