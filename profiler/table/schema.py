"""Schema of the latency table, as legible SQL, and its history as named migrations.

A migration is a function applied once. Opening an older table applies all missing migrations in one transaction; a
newer table is refused.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from profiler.errors import UserError

__all__ = ["APPLICATION_ID", "MIGRATIONS", "TableError", "check_schema", "migrate", "schema_differences"]

APPLICATION_ID = 0x736D6C74
"""``smlt``: marks a SQLite file as a latency table."""


class TableError(UserError):
    """The file is not a latency table that this version can use."""


def create_measurement(connection: sqlite3.Connection) -> None:
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


def keep_measurements_as_they_are(connection: sqlite3.Connection) -> None:
    """Version 2: the file itself refuses to change or delete a row, except for which row superseded it.

    The index serves merging, which looks up a measurement among all rows of its key, superseded ones too.
    """
    connection.execute("CREATE INDEX measurement_history ON measurement (key, created_at)")
    connection.execute(
        """
        CREATE TRIGGER measurement_never_changes
        BEFORE UPDATE OF
            id, key, name, kind, device, backend, backend_version, precision, batch, threads, status, reason, median_ms,
            low_ms, high_ms, n, inner_runs, stop_reason, samples, parameters, flops, conditions, reference_drift,
            created_at
        ON measurement
        BEGIN
            SELECT RAISE(ABORT, 'a row is superseded, never changed');
        END
        """
    )
    connection.execute(
        """
        CREATE TRIGGER measurement_never_goes
        BEFORE DELETE ON measurement
        BEGIN
            SELECT RAISE(ABORT, 'a row is superseded, never deleted');
        END
        """
    )


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (create_measurement, keep_measurements_as_they_are)
"""Applied once each, in order; ``PRAGMA user_version`` counts them."""


def check_schema(connection: sqlite3.Connection, path: Path) -> int:
    """Return the table's version without changing a foreign file; 0 for an empty file, an interrupted creation.

    Raises:
        TableError: the file is another kind of database, or a table of a newer version.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id != APPLICATION_ID and (objects or application_id or version):
        raise TableError(f"a latency table is wanted, but {path} is a SQLite file of something else")
    if version > len(MIGRATIONS):
        raise TableError(
            f"latency tables up to version {len(MIGRATIONS)} can be read, but {path} has version {version}: "
            "it was written by a newer release"
        )
    return int(version)


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing migrations. The caller holds a write transaction and commits it."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        migration(connection)
        connection.execute(f"PRAGMA user_version = {number}")


def schema_differences(connection: sqlite3.Connection) -> list[str]:
    """Return the differences from an up-to-date schema, a line each; additions are allowed."""
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(fresh)
        wanted = _definitions(fresh)
    finally:
        fresh.close()
    found = _definitions(connection)
    missing = [f"{kind} {name} is missing" for kind, name in wanted if (kind, name) not in found]
    changed = [
        f"{kind} {name} is defined otherwise"
        for (kind, name), sql in wanted.items()
        if (kind, name) in found and found[kind, name] != sql
    ]
    return missing + changed


def _definitions(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    found = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {(kind, name): " ".join(sql.split()) for kind, name, sql in found}
