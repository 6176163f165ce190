"""The latency table: one SQLite file of measured workloads.

A row is one finished measurement, or one failure with its reason, under the key of its workload and its target. Rows
never change: a newer measurement supersedes the older one, which stays readable. Every row is committed as it is added,
so a killed run keeps what it finished, and several processes may write one file.

The schema, :mod:`profiler.table.schema`, is legible in the ``sqlite3`` shell.
"""

import hashlib
import json
import math
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, astuple, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from profiler.table.file import (
    damage,
    file_errors,
    open_for_reading,
    open_for_writing,
    refuse_foreign_file,
    transaction,
)
from profiler.table.schema import TableError
from profiler.timing.measurement import StopReason

__all__ = ["TARGET_COLUMNS", "LatencyTable", "Row", "TableError", "Target", "Trouble", "pack_samples"]

Trouble = Literal["failed", "unsteady"]
"""Why a row may be worth another measurement."""


@dataclass(frozen=True)
class Target:
    """Device, and how a workload runs on it.

    Attributes:
        device: the device's own name, such as ``NVIDIA H200``.
        backend_version: another version is another target.
        precision: ``fp32``, ``fp16``, ...
        batch: images per run.
        threads: CPU threads of the backend.
    """

    device: str
    backend: str
    backend_version: str
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Row:
    """One measurement, or one failure.

    Attributes:
        name: human-readable name of the workload.
        kind: ``part`` of a network, or a ``whole`` one.
        reason: of a failure; empty for ``ok``.
        median_ms: median latency; ``None`` when failed, as are all fields of the measurement. ``low_ms`` and
            ``high_ms`` are its confidence interval.
        n: number of samples.
        inner_runs: runs per sample.
        samples: raw samples, packed by :func:`pack_samples`.
        flops: of one run.
        conditions: driver, clocks, load and versions before and after; ``reference_ms``, the latest reading of the
            reference workload; of each of the ``rounds`` its median, whether it was kept, and its wall time, processor
            time, preemptions and stolen time; ``round_spread``, the slowest round's median against the fastest one's;
            as JSON values. Older rows, without ``rounds``, are one round.
        reference_drift: latest against first reading of the interleaved reference workload, relative (0.02 = 2%
            slower); ``None`` without a reference.
        created_at: time of measurement, ISO 8601 with offset from UTC; the table fills it in where empty, and ``id``.
        superseded_by: id of the newer row, ``None`` while this one is current.
    """

    key: str
    name: str
    target: Target
    kind: Literal["part", "whole"] = "part"
    status: Literal["ok", "failed"] = "ok"
    reason: str = ""
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    n: int | None = None
    inner_runs: int | None = None
    stop_reason: str | None = None
    samples: bytes = field(default=b"", repr=False)
    parameters: int | None = None
    flops: int | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict, repr=False)
    reference_drift: float | None = None
    created_at: str = ""
    id: int | None = None
    superseded_by: int | None = None

    def __post_init__(self) -> None:
        measured = (self.median_ms, self.low_ms, self.high_ms)
        if self.status == "ok" and (
            self.reason or any(value is None or not math.isfinite(value) for value in measured)
        ):
            raise ValueError(f"an ok row has a finite median with its interval and no reason, but got {self}")
        if self.status == "failed" and (not self.reason or any(value is not None for value in measured)):
            raise ValueError(f"a failed row has a reason and no latency, but got {self}")
        if self.created_at and datetime.fromisoformat(self.created_at).tzinfo is None:
            raise ValueError(f"created_at has an offset from UTC, but got {self.created_at!r}")

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """``low_ms``, ``median_ms`` and ``high_ms``; ``None`` when failed."""
        if self.low_ms is None or self.median_ms is None or self.high_ms is None:
            return None
        return self.low_ms, self.median_ms, self.high_ms

    @property
    def trouble(self) -> Trouble | None:
        """``failed``, or ``unsteady`` where no three rounds agree."""
        if self.status == "failed":
            return "failed"
        return "unsteady" if self.stop_reason == StopReason.ROUNDS_DISAGREE else None

    @property
    def samples_ms(self) -> NDArray[np.float64]:
        """The raw samples in milliseconds, in measured order; empty when failed."""
        raw = zlib.decompress(self.samples) if self.samples else b""
        return np.frombuffer(raw, dtype="<f8").astype(np.float64)

    @property
    def rounds_ms(self) -> tuple[NDArray[np.float64], ...]:
        """The raw samples by round; older rows, without rounds, have one. Empty when failed."""
        samples = self.samples_ms
        sizes = [one["n"] for one in self.conditions.get("rounds", ())] or [len(samples)]
        return tuple(np.split(samples, np.cumsum(sizes)[:-1])) if len(samples) else ()


def pack_samples(samples_ms: NDArray[np.float64]) -> bytes:
    """Pack raw samples as the table stores them: little-endian float64 milliseconds, deflated."""
    return zlib.compress(np.ascontiguousarray(samples_ms, dtype="<f8").tobytes())


class LatencyTable(AbstractContextManager["LatencyTable"]):
    """A latency table on disk; each thread or process opens its own on the same file.

    Args:
        path: the file; created with its folders where missing, unless ``create`` is false.
        create: whether to create a missing file.
        read_only: leave an existing file as it is; it may lie on a read-only medium.

    Raises:
        TableError: the file is missing and may not be created, or is not a latency table of a known version.
    """

    def __init__(self, path: Path | str, *, create: bool = True, read_only: bool = False) -> None:
        self.path = Path(path)
        refuse_foreign_file(self.path, create=create and not read_only)
        with self._errors():
            self._connection = open_for_reading(self.path)[0] if read_only else open_for_writing(self.path)
        try:
            with self._errors():
                damaged = damage(self._connection, self.path)
            if damaged is not None:
                raise damaged
        except BaseException:
            self._connection.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Further use is an error."""
        self._connection.close()

    def add(self, row: Row) -> Row:
        """Commit one row, superseding the older rows of the same key and target.

        A row with ``created_at`` takes its place in time: a newer row supersedes it, and a row already there is not
        added again.

        Returns:
            The row as stored. Rows of one key and target never share their time: where the clock stood still or went
            back, the new row's is a microsecond after the last one's.
        """
        with self._errors(), transaction(self._connection):
            row_id, _ = self._insert(row)
            if row.created_at:
                self._arrange(row.target, row.key)
            stored = self._connection.execute("SELECT * FROM measurement WHERE id = ?", (row_id,)).fetchone()
        return self._row(stored)

    def add_many(self, rows: Iterable[Row]) -> int:
        """Commit rows as :meth:`add` does, in one transaction; returns the number of new ones.

        The same measurement, equal in every field, is one row however often it is added.
        """
        added = 0
        touched: set[tuple[Target, str]] = set()
        with self._errors(), transaction(self._connection):
            for row in rows:
                if self._insert(row)[1]:
                    added += 1
                    touched.add((row.target, row.key))
            for target, key in touched:
                self._arrange(target, key)
        return added

    def lookup(self, key: str, target: Target) -> Row | None:
        """Return the current row of a workload on a target, ``None`` if it was never measured."""
        with self._errors():
            found = self._connection.execute(
                f"SELECT * FROM measurement WHERE {_SAME_TARGET} AND key = ? AND superseded_by IS NULL",
                (*astuple(target), key),
            ).fetchone()
        return None if found is None else self._row(found)

    def current(self, target: Target) -> dict[str, Row]:
        """Return all current rows of a target by key."""
        with self._errors():
            found = self._connection.execute(
                f"SELECT * FROM measurement WHERE {_SAME_TARGET} AND superseded_by IS NULL ORDER BY id",
                astuple(target),
            ).fetchall()
        return {row.key: row for row in map(self._row, found)}

    def rows(self, *, superseded: bool = False) -> Iterator[Row]:
        """Iterate over the rows of all targets in the order of insertion, current ones only unless ``superseded``."""
        condition = "" if superseded else "WHERE superseded_by IS NULL"
        with self._errors():
            found = self._connection.execute(f"SELECT * FROM measurement {condition} ORDER BY id").fetchall()
        return map(self._row, found)

    def targets(self) -> tuple[Target, ...]:
        """Return every target that has a current row, sorted."""
        columns = ", ".join(TARGET_COLUMNS)
        with self._errors():
            found = self._connection.execute(
                f"SELECT DISTINCT {columns} FROM measurement WHERE superseded_by IS NULL ORDER BY {columns}"
            ).fetchall()
        return tuple(Target(*values) for values in found)

    def count(self) -> int:
        """Count the current rows of all targets."""
        with self._errors():
            (count,) = self._connection.execute(
                "SELECT count(*) FROM measurement WHERE superseded_by IS NULL"
            ).fetchone()
        return int(count)

    def _insert(self, row: Row) -> tuple[int, bool]:
        """Insert a row within the caller's transaction; return its id and whether it is new.

        A row with its own time supersedes itself until :meth:`_arrange`, so one row is current at every moment.
        """
        run = self._connection.execute
        values = _values(row)
        same = (*astuple(row.target), row.key)
        current = run(
            f"SELECT id, created_at FROM measurement WHERE {_SAME_TARGET} AND key = ? AND superseded_by IS NULL", same
        ).fetchone()
        if row.created_at:
            content = " AND ".join(f"{column} IS ?" for column in values)
            known = run(f"SELECT id FROM measurement WHERE {content}", tuple(values.values())).fetchone()
            if known is not None:
                return int(known["id"]), False
        else:
            values["created_at"] = _now(after=current and current["created_at"])
        (row_id,) = run("SELECT coalesce(max(id), 0) + 1 FROM measurement").fetchone()
        values |= {"id": row_id, "superseded_by": row_id if row.created_at else None}
        if current is not None and not row.created_at:
            run("UPDATE measurement SET superseded_by = ? WHERE id = ?", (row_id, current["id"]))
        columns = ", ".join(values)
        places = ", ".join("?" * len(values))
        run(f"INSERT INTO measurement ({columns}) VALUES ({places})", tuple(values.values()))
        return int(row_id), True

    def _arrange(self, target: Target, key: str) -> None:
        """Make each row of a workload superseded by the next newer one, and the newest current."""
        found = self._connection.execute(
            f"SELECT * FROM measurement WHERE {_SAME_TARGET} AND key = ?", (*astuple(target), key)
        ).fetchall()
        ids = [int(stored["id"]) for stored in sorted(found, key=_age)]
        # The newest last: at no moment may two rows be current.
        self._connection.executemany(
            "UPDATE measurement SET superseded_by = ? WHERE id = ? AND superseded_by IS NOT ?",
            ((newer, row_id, newer) for row_id, newer in zip(ids, [*ids[1:], None], strict=True)),
        )

    def _row(self, stored: sqlite3.Row) -> Row:
        values: dict[str, Any] = dict(stored)
        target = Target(*(values.pop(column) for column in TARGET_COLUMNS))
        try:
            values["conditions"] = json.loads(values["conditions"])
            return Row(target=target, **values)
        except (ValueError, TypeError) as error:
            raise TableError(
                f"every row of a latency table must hold together, but row {stored['id']} of {self.path} does not: "
                f"{error} (--validate lists them all)"
            ) from error

    def _errors(self) -> AbstractContextManager[None]:
        return file_errors(self.path)


TARGET_COLUMNS = tuple(one.name for one in fields(Target))
_NUMBERING = ("id", "superseded_by")
_SAME_TARGET = " AND ".join(f"{column} = ?" for column in TARGET_COLUMNS)


def _values(row: Row) -> dict[str, Any]:
    """Return a row by column, without its id and ``superseded_by``."""
    columns = {one.name: getattr(row, one.name) for one in fields(row) if one.name not in ("target", *_NUMBERING)}
    return {
        **columns,
        **asdict(row.target),
        "conditions": json.dumps(dict(row.conditions), sort_keys=True),
    }


def _now(after: str | None) -> str:
    now = datetime.now(UTC)
    if after is not None:
        now = max(now, _moment(after) + timedelta(microseconds=1))
    return now.isoformat(timespec="microseconds")


def _moment(created_at: str) -> datetime:
    try:
        return datetime.fromisoformat(created_at).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.min.replace(tzinfo=UTC)  # damaged: older than any valid time


def _age(stored: sqlite3.Row) -> tuple[datetime, str]:
    """Sort key, older rows first; ties are broken by the rows' contents, so the same way in every table."""
    said = [stored[column] for column in stored.keys() if column not in _NUMBERING]  # noqa: SIM118
    return _moment(stored["created_at"]), hashlib.sha256(repr(said).encode()).hexdigest()
