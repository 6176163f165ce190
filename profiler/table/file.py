"""Open the latency table's file for reading and writing, or only for reading; errors are one line.

With write-ahead logging any number of processes read while one writes; writers wait for each other.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from profiler.table.schema import MIGRATIONS, TableError, check_schema, migrate

__all__ = ["damage", "file_errors", "open_for_reading", "open_for_writing", "refuse_foreign_file", "transaction"]

_BUSY_TIMEOUT_S = 30.0
_SILENT_S = 1.0  # of waiting, before a line says for what
_HEADER = b"SQLite format 3\x00"

_log = logging.getLogger(__name__)


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open a table for writing: create a missing one, migrate an older one.

    Raises:
        sqlite3.Error: any error of SQLite; :func:`file_errors` turns it into one line.
        TableError: the file is another kind of database, or a table of a newer version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path.absolute(), timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    try:
        _note_a_lock(connection, path)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        check_schema(connection, path)
        _switch_to_wal(connection)
        # FULL: a committed row survives a power cut too. One sync per measurement costs nothing beside measuring.
        connection.execute("PRAGMA synchronous = FULL")
        with transaction(connection):
            migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> tuple[sqlite3.Connection, int]:
    """Open an existing table without changing it, even on a read-only medium; an older one is migrated in memory.

    Returns:
        The connection, and the version of the file.

    Raises:
        sqlite3.Error: any error of SQLite; :func:`file_errors` turns it into one line.
        TableError: the file is another kind of database, or a table of a newer version.
    """
    connection = sqlite3.connect(_reading_uri(path), uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    try:
        _note_a_lock(connection, path)
        connection.execute("PRAGMA query_only = ON")
        version = check_schema(connection, path)
        if version < len(MIGRATIONS):
            connection = _migrated_copy(connection)
        connection.row_factory = sqlite3.Row
    except BaseException:
        connection.close()
        raise
    return connection, version


def damage(connection: sqlite3.Connection, path: Path) -> TableError | None:
    """Return any damage of the file's pages, by the quick check that every opening can afford."""
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict == "ok":
        return None
    return TableError(f"a latency table must be whole, but {path} is damaged: {verdict.splitlines()[-1]}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit all of the block, or none of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's and the operating system's errors into a one-line :class:`TableError`."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a bug of ours, such as use after close
    except sqlite3.DatabaseError as error:
        raise TableError(f"a latency table must be readable and writable, but {path} gave: {error}") from error
    except OSError as error:
        raise TableError(f"a latency table must be readable and writable, but {path} gave: {error.strerror}") from error


def refuse_foreign_file(path: Path, *, create: bool) -> None:
    """Refuse a file that is not SQLite, before SQLite opens it; ``create`` allows a missing one.

    Raises:
        TableError: one line that says what the file is instead.
    """
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
    # An empty file is a table whose creation was interrupted before its first commit.
    if header and header != _HEADER:
        raise TableError(f"a latency table must be a SQLite file, but {path} is not one")


def _note_a_lock(connection: sqlite3.Connection, path: Path) -> None:
    """Log what is waited for where another program has locked the file: SQLite itself waits in silence."""
    connection.execute(f"PRAGMA busy_timeout = {1000 * _SILENT_S:.0f}")
    try:
        connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        _log.warning("waiting up to %g s for %s, which another program has locked", _BUSY_TIMEOUT_S, path)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {1000 * _BUSY_TIMEOUT_S:.0f}")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    # When two processes create one file at the same moment, SQLite refuses the loser here at once instead of waiting
    # as everywhere else.
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _reading_uri(path: Path) -> str:
    file = path.resolve()
    log = file.with_name(f"{file.name}-wal")
    # Reading in WAL mode needs a file beside the table. Where none can be made (a read-only medium), no process writes
    # the table either, and `immutable` does without, except with a log beside it, which holds rows of its own.
    alone = not os.access(file.parent, os.W_OK) and not (log.exists() and log.stat().st_size)
    # Otherwise `rw`, not `ro`: the last reader removes the files beside the table only if it may write.
    return f"{file.as_uri()}?{'immutable=1' if alone else 'mode=rw'}"


def _migrated_copy(connection: sqlite3.Connection) -> sqlite3.Connection:
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.backup(memory)
        with transaction(memory):
            migrate(memory)
        memory.execute("PRAGMA query_only = ON")
    except BaseException:
        memory.close()
        raise
    connection.close()
    return memory
