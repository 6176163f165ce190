"""Output streams of a command: one result on standard output, everything else on standard error."""

import contextlib
import dataclasses
import enum
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Output", "plain", "show_facts", "show_lines", "show_table"]

_COLUMN_GAP = 3  # between two columns of rich's table
_PIPE_WIDTH = 240  # a pipe has no width: wide enough that no architecture string is cut


class _PipeAwareConsole(Console):
    """A console that leaves a closed pipe to the caller instead of ending the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _MessagesConsole(_PipeAwareConsole):
    """Console of messages: closing their pipe (``2>&1 | head``) ends the running command."""

    def on_broken_pipe(self) -> None:
        raise KeyboardInterrupt


def _console(stream: TextIO, kind: type[Console] = _PipeAwareConsole) -> Console:
    return kind(file=stream, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def plain(value: Any) -> Any:
    """Convert to JSON's own types: dataclasses and mappings to objects, paths to text, NaN and infinities to null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return plain(value.tolist())
    return str(value)


class Output:
    """Output of one command.

    Attributes:
        as_json: Write the result as one JSON document instead of text for people.
        quiet: Write only the result and errors.
        messages: Console on standard error.
    """

    def __init__(self, results: TextIO, messages: TextIO, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.messages = _console(messages, _MessagesConsole)
        self._results = results

    @classmethod
    @contextlib.contextmanager
    def open(cls, *, as_json: bool, quiet: bool) -> Iterator["Output"]:
        """Take over standard output during a command.

        Whatever a library prints meanwhile goes to standard error, so that ``--json`` stays one document.
        """
        results, log, notes = sys.stdout, logging.getLogger("smnas"), logging.Handler()
        before = log.level
        with contextlib.redirect_stdout(sys.stderr):
            output = cls(results, sys.stderr, as_json=as_json, quiet=quiet)
            notes.emit = lambda record: output.note(record.getMessage())  # type: ignore[method-assign]
            log.setLevel(logging.INFO)
            log.addHandler(notes)
            try:
                yield output
            finally:
                log.removeHandler(notes)
                log.setLevel(before)

    def note(self, text: str) -> None:
        """Print a line on standard error, unless quiet."""
        if not self.quiet:
            self.messages.print(Text(text), soft_wrap=True)

    @contextlib.contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show a status line on a terminal until the block ends; nothing elsewhere."""
        if self.quiet or not self.messages.is_terminal:
            yield
            return
        with self.messages.status(Text(text)):
            yield

    def result(self, document: Any, show: Callable[[Console], None]) -> None:
        """Write ``document`` as JSON, or ``show`` it for people."""
        if self.as_json:
            self._results.write(json.dumps(plain(document), indent=2, allow_nan=False) + "\n")
        else:
            show(_console(self._results))
        self._results.flush()


def show_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of numbers are right-aligned, ``None`` is a dash.

    On a narrow terminal, lines break between words. If that is not enough, the last columns become a second line of
    every row, so that no number or architecture is broken.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(isinstance(row[index], int | float | None) for row in rows) for index in range(len(headings))]
    words = [_longest_word(column) for column in zip(headings, *cells, strict=True)]
    if sum(words) + _COLUMN_GAP * len(words) > console.width:
        _show_in_two_lines(console, headings, cells, numeric)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, is_numeric, width in zip(headings, numeric, words, strict=True):
        table.add_column(heading, justify="right" if is_numeric else "left", overflow="fold", min_width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _longest_word(texts: Sequence[str]) -> int:
    return max((cell_len(word) for text in texts for word in text.split()), default=0)


def _show_in_two_lines(
    console: Console, headings: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> None:
    widths = [max(map(cell_len, column)) for column in zip(headings, *cells, strict=True)]
    ends = list(accumulate(width + 2 for width in widths))
    first = max(1, sum(end - 2 <= console.width for end in ends))

    def show(row: Sequence[str], style: str = "") -> None:
        padded = [
            " " * (width - cell_len(cell)) + cell if right else cell + " " * (width - cell_len(cell))
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines = ["  ".join(padded[:first]).rstrip(), "    " + "  ".join(cell for cell in row[first:] if cell)]
        for line in filter(str.strip, lines):
            console.print(Text(line, style), soft_wrap=True)

    show(headings, "bold")
    for row in cells:
        show(row)


def show_lines(console: Console, *lines: str) -> None:
    """Print lines as they are, however long."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def show_facts(console: Console, facts: Sequence[tuple[str, object]]) -> None:
    """Print name and value, one fact a line."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        console.print(Text(f"{name:<{width}}  {_cell(value)}"), soft_wrap=True)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)
