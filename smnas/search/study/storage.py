"""The database that a study is in: the run folder's own file, or one that others share, and who may write there.

One process at a time writes a study. That of a run folder's own file is held with the folder
(:mod:`smnas.search.study.run_folder`); one in PostgreSQL, which may be reached from other machines and folders, by a
lock in the database as well. Both end with the process that holds them.
"""

import errno
import hashlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from profiler.errors import first_line
from smnas.search.study.run_folder import RunFolder, RunFolderError
from smnas.search.study.settings import STUDY_NAME

__all__ = ["open_storage", "patiently", "quiet_optuna", "storage_url", "study_lock", "study_name"]

# A server notices within milliseconds that a killed process is gone, and needs longer only for a lost machine.
_LOCK_TIMEOUT_S = 5.0
_LOCK_POLL_S = 0.1
# SQLite waits so long by itself, deaf to Ctrl-C; then a note says what is waited for.
_BUSY_TIMEOUT_S = 3.0
_PATIENCE_S = 600.0
_DISK_FAULTS = {errno.ENOSPC: "disk is full", errno.EIO: "disk I/O error"}  # SQLite's words
_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_SOME_FILE = "sqlite:///study.db"  # says only that it is SQLite and no database in memory


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without optuna's log lines, which are not this program's output, and its warnings of experimental features."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def study_lock(storage: RDBStorage, name: str) -> Iterator[None]:
    """Hold a study of a PostgreSQL database; that of a run folder's own file is held with the folder.

    Raises:
        RunFolderError: another process, on this machine or another one, holds it.
    """
    if storage.engine.dialect.name != "postgresql":
        yield
        return
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # The server notices a lost machine in two minutes instead of two hours.
        for setting in ("idle = 60", "interval = 10", "count = 6"):
            connection.execute(text(f"SET tcp_keepalives_{setting}"))
        until = time.monotonic() + _LOCK_TIMEOUT_S
        while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
            if time.monotonic() >= until:
                raise RunFolderError(
                    f"one search at a time works on a study, but another process holds {name} in {storage.engine.url}"
                )
            time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            # The server lets go of it when the connection ends; a pooled one would live on.
            connection.invalidate()


def open_storage(folder: Path, url: str | None, *, to_write: bool = False) -> RDBStorage:
    """The database of a run folder's study: its own file, or the one with this URL.

    Opened to read, a file stays as it is.

    Raises:
        RunFolderError: it can not be opened, or the driver that it needs is not installed.
    """
    if url is not None:
        return _open_database(_with_driver(storage_url(url)))
    file = RunFolder(folder).study
    try:
        # The connection is made by SQLite's own call, which takes any file name: optuna fills in braces of its URL, and
        # a question mark would end the path there.
        # A reader makes no tables: the search that makes them at that moment would fail.
        engine = {"creator": lambda: _connected(file, to_write=to_write)}
        return patiently(lambda: RDBStorage(_SOME_FILE, engine_kwargs=engine, skip_table_creation=not to_write), file)
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        raise RunFolderError(
            f"{file} must be the SQLite file of a study, but opening it failed: {first_line(error)}"
        ) from error


def _connected(file: Path, *, to_write: bool) -> sqlite3.Connection:
    if not to_write and not all(os.access(path, os.W_OK) for path in (file, file.parent)):
        return _copied(file)
    # an absolute path is a file's, also that of a file called ":memory:"
    connection = sqlite3.connect(file.absolute(), timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
    if to_write:
        # A commit need not wait for the disk: with a write-ahead log a killed process loses nothing, and a power cut at
        # most the last trials, never the file.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _copied(file: Path) -> sqlite3.Connection:
    """A copy in memory: reading a write-ahead log needs a file beside it, which a read-only folder can not have."""
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    with tempfile.TemporaryDirectory() as folder:
        for part in (file, file.with_name(f"{file.name}-wal")):
            if part.exists():
                shutil.copyfile(part, Path(folder) / part.name)
        with closing(sqlite3.connect(Path(folder) / file.name)) as copy:
            copy.backup(memory)
    return memory


def patiently(call: Callable[[], _T], database: object) -> _T:
    """Call, again while another program has locked the database, and return the result.

    Args:
        call: Reads or writes; one that failed has changed nothing.
        database: For the messages.

    Raises:
        RunFolderError: it is locked for ten minutes.
        OSError: its disk is full or broken.
    """
    until, noted = time.monotonic() + _PATIENCE_S, False
    while True:
        try:
            return call()
        except (SQLAlchemyError, StorageInternalError) as error:
            reason = f"{error} {error.__cause__}"
            for code, words in _DISK_FAULTS.items():
                if words in reason:
                    raise OSError(code, os.strerror(code), str(database)) from error
            if "database is locked" not in reason:
                raise
            if time.monotonic() >= until:
                raise RunFolderError(
                    f"a study's database must be free within {_PATIENCE_S:g} s, but another program holds {database}"
                ) from error
            if not noted:
                _log.warning("waiting for %s, which another program has locked", database)
                noted = True
            time.sleep(_LOCK_POLL_S)


def _with_driver(url: URL) -> URL:
    """PostgreSQL's URLs name no driver as a rule; this project's is psycopg."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _open_database(url: URL) -> RDBStorage:
    try:
        # A connection that the server has closed in the hours of a training is noticed and replaced.
        text_of_url = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # optuna fills in
        return RDBStorage(text_of_url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        # optuna says that one is missing, and what it was caused by says which.
        missing = getattr(error.__cause__, "name", None) or url.drivername
        fix = ": pip install 'smnas[postgresql]'" if url.get_backend_name() == "postgresql" else ""
        raise RunFolderError(f"a database needs its driver, but {missing} is not installed{fix}") from error
    except (SQLAlchemyError, RuntimeError) as error:
        raise RunFolderError(
            f"{url} must be a database for the study, but opening it failed: {first_line(error)}"
        ) from error


def storage_url(url_text: str) -> URL:
    """Check the URL of a database for the study.

    Raises:
        RunFolderError: it is no URL, or it holds a password, which would be kept in ``settings.json``.
    """
    try:
        url = make_url(url_text)
    except ArgumentError as error:
        raise RunFolderError(
            f"a storage is a database URL as in postgresql://user@host/name, but got {url_text!r}"
        ) from error
    if url.password is not None or "password" in url.query:
        raise RunFolderError(
            "a storage URL is kept in the run folder, so it must not hold a password, but "
            f"{url.difference_update_query(['password'])} does: use PGPASSWORD or a password file"
        )
    return url


def study_name(folder: Path, storage: str | None) -> str:
    """What a run folder's study is called: in a database that others share, after the folder."""
    if storage is None:
        return STUDY_NAME
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return f"{STUDY_NAME}-{folder.resolve().name}-{digest}"
