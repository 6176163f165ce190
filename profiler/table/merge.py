"""Merge the measurements of several latency tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.table.latency_table import LatencyTable

__all__ = ["Merged", "merge"]


@dataclass(frozen=True)
class Merged:
    """Summary of merging one table: its rows, superseded ones too, and how many of them were new."""

    path: Path
    rows: int
    added: int


def merge(into: LatencyTable, others: Sequence[Path | str]) -> tuple[Merged, ...]:
    """Add every row of other tables, superseded ones and failures too, each table in one transaction.

    Measurements equal in every field are one row. Of different ones for one key and target the newest is current and
    the others stay, superseded. So merging is idempotent, and its order decides only the rows' numbers. The other
    tables, older versions included, stay as they are.

    Raises:
        TableError: another table is missing or is no latency table; then nothing was written.
    """
    read = []
    for path in others:
        with LatencyTable(path, read_only=True) as table:
            read.append(list(table.rows(superseded=True)))
    return tuple(Merged(Path(path), len(rows), into.add_many(rows)) for path, rows in zip(others, read, strict=True))
