"""Merge the measurements of several latency tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.table.latency_table import LatencyTable

__all__ = ["Merged", "merge"]


@dataclass(frozen=True)
class Merged:
    """Summary of merging one table.

    Attributes:
        path: of the table that was read.
        rows: that it holds, superseded ones too.
        added: how many of them were not yet in the table that was written.
    """

    path: Path
    rows: int
    added: int


def merge(into: LatencyTable, others: Sequence[Path | str]) -> tuple[Merged, ...]:
    """Add every row of other tables, superseded ones and failures too, each table in one transaction.

    The same measurement, every field of it, is one row however often it comes. Of different measurements of one key
    and target the newest is current and the others stay, superseded. So merging again changes nothing, and the order of
    merging decides nothing but the rows' numbers. The other tables stay as they are, also those of an older version.

    Args:
        into: the table that is written.
        others: the files of the others.

    Raises:
        TableError: one of the others is missing or is no latency table; then nothing was written.
    """
    read = []
    for path in others:
        with LatencyTable(path, read_only=True) as table:
            read.append(list(table.rows(superseded=True)))
    return tuple(Merged(Path(path), len(rows), into.add_many(rows)) for path, rows in zip(others, read, strict=True))
