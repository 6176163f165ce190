"""The latency table: one SQLite file of measured workloads.

A row is one finished measurement (or one failure with its reason) under the key of its workload and the target that it
holds for. Rows are never changed: a newer measurement supersedes the older one, which stays readable. Every row is
committed as it is added, so a killed run keeps all it had finished, and several processes may write one file.

The schema is meant to be read with the ``sqlite3`` shell.
"""

import json
import math
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from profiler.errors import UserError

__all__ = ["LatencyTable", "Row", "TableError", "Target", "pack_samples"]

APPLICATION_ID = 0x736D6C74
"""``smlt``: marks a SQLite file as a latency table."""

_BUSY_TIMEOUT_S = 30.0
_HEADER = b"SQLite format 3\x00"


class TableError(UserError):
    """The file is not a latency table that this version can use."""


@dataclass(frozen=True)
class Target:
    """What a latency holds for: the device, and how the workload runs on it.

    Attributes:
        device: the device's own name, such as ``NVIDIA H200``.
        backend: name of the backend.
        backend_version: its version; another version is another target.
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
        key: the workload's key.
        name: what a person calls the workload.
        target: what the latency holds for.
        kind: ``part`` of a network, or a ``whole`` one.
        status: ``ok`` or ``failed``.
        reason: why it failed; empty for ``ok``.
        median_ms: median latency; ``None`` when failed, as are all fields of the measurement.
        low_ms: lower end of the median's confidence interval.
        high_ms: upper end.
        n: number of samples.
        inner_runs: runs per sample.
        stop_reason: why sampling ended.
        samples: raw samples, packed by :func:`pack_samples`.
        parameters: of the module.
        flops: of one run.
        conditions: driver, clocks, load and versions before and after, as JSON values.
        reference_drift: of the interleaved reference workload against its first reading, as a share (0.02 = 2%
            slower); ``None`` without a reference.
        created_at: UTC, ISO 8601; filled in by the table.
        id: filled in by the table.
        superseded_by: id of the row that took this one's place, ``None`` while it is current.
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

    @property
    def samples_ms(self) -> NDArray[np.float64]:
        """The raw samples in milliseconds, in the order in which they were taken; empty when failed."""
        raw = zlib.decompress(self.samples) if self.samples else b""
        return np.frombuffer(raw, dtype="<f8").astype(np.float64)


def pack_samples(samples_ms: NDArray[np.float64]) -> bytes:
    """Pack raw samples as the table stores them: little-endian float64 milliseconds, deflated."""
    return zlib.compress(np.ascontiguousarray(samples_ms, dtype="<f8").tobytes())


class LatencyTable:
    """A latency table on disk. Not shared between threads or processes: each opens its own on the same file.

    Args:
        path: the file; created with its folders where it is missing, unless ``create`` is false.
        create: whether a missing file is made.

    Raises:
        TableError: the file is missing and may not be made, or is not a latency table of a version known here.
    """

    def __init__(self, path: Path | str, *, create: bool = True) -> None:
        self.path = Path(path)
        _refuse_foreign_file(self.path, create=create)
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        try:
            with self._errors():
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Further use is an error."""
        self._connection.close()

    def add(self, row: Row) -> Row:
        """Commit one row, superseding the current row of the same key and target.

        Returns:
            The row as stored, with its ``id`` and ``created_at``.
        """
        created_at = row.created_at or datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._errors(), self._transaction():
            (new_id,) = self._connection.execute("SELECT coalesce(max(id), 0) + 1 FROM measurement").fetchone()
            self._connection.execute(
                f"UPDATE measurement SET superseded_by = ? WHERE {_SAME_TARGET} AND key = ? AND superseded_by IS NULL",
                (new_id, *_target_values(row.target), row.key),
            )
            values = {
                "id": new_id,
                "key": row.key,
                "name": row.name,
                "kind": row.kind,
                **dict(zip(_TARGET_COLUMNS, _target_values(row.target), strict=True)),
                "status": row.status,
                "reason": row.reason,
                "median_ms": row.median_ms,
                "low_ms": row.low_ms,
                "high_ms": row.high_ms,
                "n": row.n,
                "inner_runs": row.inner_runs,
                "stop_reason": row.stop_reason,
                "samples": row.samples,
                "parameters": row.parameters,
                "flops": row.flops,
                "conditions": json.dumps(dict(row.conditions), sort_keys=True),
                "reference_drift": row.reference_drift,
                "created_at": created_at,
            }
            columns = ", ".join(values)
            places = ", ".join("?" * len(values))
            self._connection.execute(f"INSERT INTO measurement ({columns}) VALUES ({places})", tuple(values.values()))
            stored = self._connection.execute("SELECT * FROM measurement WHERE id = ?", (new_id,)).fetchone()
        return _row(stored)

    def lookup(self, key: str, target: Target) -> Row | None:
        """The current row of a workload on a target, or ``None`` where it was never measured."""
        with self._errors():
            found = self._connection.execute(
                f"SELECT * FROM measurement WHERE {_SAME_TARGET} AND key = ? AND superseded_by IS NULL",
                (*_target_values(target), key),
            ).fetchone()
        return None if found is None else _row(found)

    def current(self, target: Target) -> dict[str, Row]:
        """All current rows of a target by key."""
        with self._errors():
            found = self._connection.execute(
                f"SELECT * FROM measurement WHERE {_SAME_TARGET} AND superseded_by IS NULL ORDER BY id",
                _target_values(target),
            ).fetchall()
        return {row.key: row for row in map(_row, found)}

    def rows(self, *, superseded: bool = False) -> Iterator[Row]:
        """Rows of all targets in the order in which they were added, current ones only unless ``superseded``."""
        condition = "" if superseded else "WHERE superseded_by IS NULL"
        with self._errors():
            found = self._connection.execute(f"SELECT * FROM measurement {condition} ORDER BY id").fetchall()
        return map(_row, found)

    def targets(self) -> tuple[Target, ...]:
        """Every target that has a current row, sorted."""
        columns = ", ".join(_TARGET_COLUMNS)
        with self._errors():
            found = self._connection.execute(
                f"SELECT DISTINCT {columns} FROM measurement WHERE superseded_by IS NULL ORDER BY {columns}"
            ).fetchall()
        return tuple(Target(*values) for values in found)

    def count(self) -> int:
        """Number of current rows of all targets."""
        with self._errors():
            (count,) = self._connection.execute(
                "SELECT count(*) FROM measurement WHERE superseded_by IS NULL"
            ).fetchone()
        return int(count)

    def _open(self) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        self._refuse_foreign_schema()
        self._switch_to_wal()
        # FULL: a committed row survives a power cut too. One sync per measurement is nothing beside measuring.
        connection.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
                migration(connection)
                connection.execute(f"PRAGMA user_version = {number}")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise TableError(f"a latency table must be whole, but {self.path} is damaged: {verdict.splitlines()[-1]}")

    def _refuse_foreign_schema(self) -> None:
        """Look before touching anything: someone else's file must stay as it is."""
        (application_id,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (objects,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application_id != APPLICATION_ID and (objects or application_id or version):
            raise TableError(f"a latency table is wanted, but {self.path} is a SQLite file of something else")
        if version > len(MIGRATIONS):
            raise TableError(
                f"latency tables up to version {len(MIGRATIONS)} can be read, but {self.path} has version {version}: "
                "it was written by a newer release"
            )

    def _switch_to_wal(self) -> None:
        # Two processes that create one file at the same moment: SQLite refuses the loser at once here, without
        # waiting as it does everywhere else, so the wait is ours.
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say in one line what is wrong with the file."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # our own mistake, such as use after close
        except sqlite3.DatabaseError as error:
            raise TableError(f"a latency table must be readable and writable, but {self.path} gave: {error}") from error
        except OSError as error:
            raise TableError(
                f"a latency table must be readable and writable, but {self.path} gave: {error.strerror}"
            ) from error


def _refuse_foreign_file(path: Path, *, create: bool) -> None:
    try:
        if path.is_dir():
            raise TableError(f"a latency table must be a file, but {path} is a folder")
        if not path.exists():
            if not create:
                raise TableError(f"a latency table must exist to be read, but there is no file {path}")
            return
        with path.open("rb") as stream:
            header = stream.read(len(_HEADER))
    except OSError as error:
        raise TableError(f"a latency table must be readable, but {path} gave: {error.strerror}") from error
    # An empty file is a table whose creation was cut off before its first commit.
    if header and header != _HEADER:
        raise TableError(f"a latency table must be a SQLite file, but {path} is not one")


def _create_measurement(connection: sqlite3.Connection) -> None:
    """Version 1: one row per measurement."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(
        """
        CREATE TABLE measurement (
            id              INTEGER PRIMARY KEY,
            key             TEXT NOT NULL,      -- decides the latency: what is computed, on which shapes
            name            TEXT NOT NULL,      -- what a person calls the workload
            kind            TEXT NOT NULL CHECK (kind IN ('part', 'whole')),
            device          TEXT NOT NULL,
            backend         TEXT NOT NULL,
            backend_version TEXT NOT NULL,
            precision       TEXT NOT NULL,
            batch           INTEGER NOT NULL,
            threads         INTEGER NOT NULL,
            status          TEXT NOT NULL CHECK (status IN ('ok', 'failed')),
            reason          TEXT NOT NULL,      -- of a failure, else empty
            median_ms       REAL,
            low_ms          REAL,               -- confidence interval of the median
            high_ms         REAL,
            n               INTEGER,            -- samples
            inner_runs      INTEGER,            -- runs per sample
            stop_reason     TEXT,
            samples         BLOB NOT NULL,      -- little-endian float64 milliseconds per run, zlib
            parameters      INTEGER,
            flops           INTEGER,
            conditions      TEXT NOT NULL,      -- JSON: versions, driver, clocks, load before and after
            reference_drift REAL,               -- of the interleaved reference workload, 0.02 = 2% slower
            created_at      TEXT NOT NULL,      -- UTC, ISO 8601
            superseded_by   INTEGER REFERENCES measurement (id) DEFERRABLE INITIALLY DEFERRED,
            CHECK ((status = 'ok') = (median_ms IS NOT NULL)),
            CHECK ((status = 'failed') = (reason <> ''))
        )
        """
    )
    connection.execute(
        """
        CREATE UNIQUE INDEX current_measurement
        ON measurement (device, backend, backend_version, precision, batch, threads, key)
        WHERE superseded_by IS NULL
        """
    )


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_create_measurement,)
"""Applied once each, in order; ``PRAGMA user_version`` counts them."""

_TARGET_COLUMNS = ("device", "backend", "backend_version", "precision", "batch", "threads")
_SAME_TARGET = " AND ".join(f"{column} = ?" for column in _TARGET_COLUMNS)


def _target_values(target: Target) -> tuple[str | int, ...]:
    return tuple(getattr(target, column) for column in _TARGET_COLUMNS)


def _row(stored: sqlite3.Row) -> Row:
    values: dict[str, Any] = dict(stored)
    target = Target(*(values.pop(column) for column in _TARGET_COLUMNS))
    values["conditions"] = json.loads(values["conditions"])
    return Row(target=target, **values)
