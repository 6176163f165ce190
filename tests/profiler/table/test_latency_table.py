"""The latency table: what is added is found again, by anyone, after anything."""

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiler.errors import UserError
from profiler.table.latency_table import LatencyTable, Row, TableError, Target, pack_samples
from profiler.table.schema import APPLICATION_ID, MIGRATIONS
from profiler.table.validate import validate

TARGET = Target("some CPU", "onnxruntime", "1.0", "fp32", 1, 1)


def measured(key: str, median_ms: float = 1.0, target: Target = TARGET) -> Row:
    samples = np.array([median_ms * 0.99, median_ms, median_ms * 1.02])
    return Row(
        key=key,
        name=f"block {key}",
        target=target,
        median_ms=median_ms,
        low_ms=samples[0],
        high_ms=samples[2],
        n=3,
        inner_runs=4,
        stop_reason="converged",
        samples=pack_samples(samples),
        parameters=10,
        flops=20,
        conditions={"governor": "performance", "loadavg": [0.1, 0.2]},
        reference_drift=0.01,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "latency.db"


def test_a_row_is_found_again_in_a_new_connection(path: Path) -> None:
    with LatencyTable(path) as table:
        stored = table.add(measured("a", 1.25))
    with LatencyTable(path, create=False) as table:
        found = table.lookup("a", TARGET)
    assert found == stored
    assert found is not None
    assert replace(found, id=None, created_at="") == measured("a", 1.25)
    np.testing.assert_array_equal(found.samples_ms, [1.25 * 0.99, 1.25, 1.25 * 1.02])
    assert found.created_at.endswith("+00:00")


@pytest.mark.parametrize(
    "other",
    [
        replace(TARGET, device="another CPU"),
        replace(TARGET, backend="eager"),
        replace(TARGET, backend_version="1.1"),
        replace(TARGET, precision="fp16"),
        replace(TARGET, batch=8),
        replace(TARGET, threads=2),
    ],
)
def test_a_row_holds_for_its_own_target_only(path: Path, other: Target) -> None:
    with LatencyTable(path) as table:
        table.add(measured("a", 1.0))
        assert table.lookup("a", other) is None
        table.add(measured("a", 2.0, other))
        assert [row.median_ms for row in table.rows()] == [1.0, 2.0]
        assert set(table.targets()) == {TARGET, other}
        assert {key: row.median_ms for key, row in table.current(other).items()} == {"a": 2.0}


def test_a_newer_row_supersedes_and_the_old_one_stays(path: Path) -> None:
    with LatencyTable(path) as table:
        first = table.add(measured("a", 1.0))
        second = table.add(measured("a", 2.0))
        found = table.lookup("a", TARGET)
        assert found == second
        assert table.count() == 1
        assert list(table.rows()) == [second]
        assert list(table.rows(superseded=True)) == [replace(first, superseded_by=second.id), second]


def test_failures_are_rows(path: Path) -> None:
    failure = Row(key="bad", name="bad block", target=TARGET, status="failed", reason="out of memory")
    with LatencyTable(path) as table:
        table.add(failure)
        found = table.lookup("bad", TARGET)
    assert found is not None
    assert (found.status, found.reason, found.median_ms) == ("failed", "out of memory", None)
    assert found.samples_ms.size == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"median_ms": None},
        {"median_ms": float("nan")},
        {"reason": "but it worked"},
        {"status": "failed"},
        {"status": "failed", "reason": "no", "high_ms": 1.0},
    ],
)
def test_a_row_that_contradicts_itself_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="row has"):
        replace(measured("a"), **wrong)  # type: ignore[arg-type]


def test_the_schema_can_be_read_with_plain_sql(path: Path) -> None:
    with LatencyTable(path) as table:
        table.add(measured("a", 1.5))
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("SELECT key, device, median_ms FROM measurement").fetchall() == [
            ("a", "some CPU", 1.5)
        ]
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        connection.close()


def refused(path: Path, *, create: bool = True) -> str:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(TableError) as caught:
        LatencyTable(path, create=create)
    assert isinstance(caught.value, UserError)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    # Someone else's file stays as it was.
    assert (path.read_bytes() if path.is_file() else None) == before
    return message


def test_a_missing_table_is_refused_for_reading(path: Path) -> None:
    assert "no file" in refused(path, create=False)
    assert not path.parent.exists()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    path.write_text("key,latency\n")
    assert "not one" in refused(path)


def test_another_programs_sqlite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE trials (id INTEGER)")
    connection.close()
    assert "of something else" in refused(path)


def test_a_table_of_a_newer_version_is_refused(path: Path) -> None:
    LatencyTable(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    assert "newer release" in refused(path)


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.3, 0.6, 0.9])
def test_a_truncated_table_is_refused(path: Path, share: float) -> None:
    with LatencyTable(path) as table:
        for number in range(300):
            table.add(measured(f"block {number}"))
    with path.open("r+b") as stream:
        stream.truncate(int(path.stat().st_size * share))
    refused(path)


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TableError):
        LatencyTable(tmp_path / "file" / "latency.db")


def test_an_empty_file_becomes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    path.touch()
    with LatencyTable(path) as table:
        table.add(measured("a"))
        assert table.count() == 1


def test_migrations_are_applied_once_and_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LatencyTable(path) as table:
        table.add(measured("a"))
    applied: list[str] = []

    def add_column(connection: sqlite3.Connection) -> None:
        applied.append("column")
        connection.execute("CREATE TABLE note (text TEXT)")

    monkeypatch.setattr("profiler.table.schema.MIGRATIONS", (*MIGRATIONS, add_column))
    for _ in range(2):
        with LatencyTable(path) as table:
            assert table.count() == 1
    assert applied == ["column"]


def test_a_failing_migration_leaves_the_table_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LatencyTable(path) as table:
        table.add(measured("a"))

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE note (text TEXT)")
        connection.execute("CREATE TABLE note (text TEXT)")

    with monkeypatch.context() as patch:
        patch.setattr("profiler.table.schema.MIGRATIONS", (*MIGRATIONS, half))
        with pytest.raises(TableError, match="already exists"):
            LatencyTable(path)
    with LatencyTable(path) as table:
        assert table.count() == 1


_WRITER = """
import sys
import numpy as np
from profiler.table.latency_table import LatencyTable, Row, Target, pack_samples
target = Target("d", "b", "1")
samples = np.random.default_rng(0).uniform(1, 2, 375)
with LatencyTable(sys.argv[1]) as table:
    number = table.count()
    while True:
        table.add(Row(key=str(number), name="n", target=target, median_ms=float(np.median(samples)),
                      low_ms=float(samples.min()), high_ms=float(samples.max()), n=375, samples=pack_samples(samples)))
        print(number, flush=True)
        number += 1
"""


@pytest.mark.slow
def test_sigkill_loses_nothing_that_was_finished(path: Path) -> None:
    rng = random.Random(0)
    finished: set[str] = set()
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        finished |= {first.strip(), *process.stdout.read().split()}
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        with LatencyTable(path, create=False) as table:
            rows = list(table.rows())
        kept = {row.key for row in rows}
        assert finished <= kept
        # At most the one row committed but not yet announced is there beside.
        assert len(kept - finished) <= 1
        finished = kept
        assert validate(path).problems == ()
    assert len(finished) > 6


WRITERS, ROWS_EACH = 8, 1250


def _write(path: Path, writer: int) -> None:
    with LatencyTable(path) as table:
        for number in range(ROWS_EACH):
            # Every tenth is of one block that all of them measure.
            table.add(measured(f"{writer}-{number}" if number % 10 else "shared", float(writer + 1)))


@pytest.fixture
def shared_path(path: Path) -> Iterator[Path]:
    """In memory where that can be: this is about writers waiting for each other, not for the disk."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder) / "latency.db"


@pytest.mark.slow
def test_eight_processes_write_ten_thousand_rows_while_another_reads(shared_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(shared_path, writer)) for writer in range(WRITERS)]
    LatencyTable(shared_path).close()
    for process in processes:
        process.start()
    counts = [0]
    while any(process.is_alive() for process in processes):
        with LatencyTable(shared_path, read_only=True) as table:
            counts.append(table.count())
        time.sleep(0.2)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WRITERS
    assert counts == sorted(counts)
    with LatencyTable(shared_path, create=False) as table:
        every = list(table.rows(superseded=True))
    assert len(every) == WRITERS * ROWS_EACH == 10_000
    shared = [row for row in every if row.key == "shared"]
    assert len(shared) == WRITERS * ROWS_EACH // 10
    assert len({row.key for row in every}) == len(every) - len(shared) + 1
    assert {row.key for row in every if row.superseded_by is not None} == {"shared"}
    # Each was superseded by the next one: a single chain, nothing skipped.
    assert [row.superseded_by for row in shared] == [*(row.id for row in shared[1:]), None]
    assert validate(shared_path).problems == ()


def test_processes_that_create_one_table_at_the_same_moment(path: Path) -> None:
    code = (
        "import sys; from profiler.table.latency_table import LatencyTable; "
        "sys.stdin.readline(); table = LatencyTable(sys.argv[1]); print(table.count())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    answers = [process.communicate(b"go\n")[0] for process in processes]
    assert answers == [b"0\n"] * 4
    assert validate(path).problems == ()


@pytest.mark.parametrize("change", ["UPDATE measurement SET median_ms = 2", "DELETE FROM measurement"])
def test_a_row_is_superseded_never_changed(path: Path, change: str) -> None:
    with LatencyTable(path) as table:
        table.add(measured("a"))
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="a row is superseded, never"):
        connection.execute(change)
    connection.close()


def test_a_row_goes_to_its_place_in_time(path: Path) -> None:
    with LatencyTable(path) as table:
        new = table.add(replace(measured("a", 2.0), created_at="2026-01-02T00:00:00+00:00"))
        old = table.add(replace(measured("a", 1.0), created_at="2026-01-01T00:00:00+00:00"))
        assert old.superseded_by == new.id
        assert table.lookup("a", TARGET) == new
        assert table.add(old) == old
        assert len(list(table.rows(superseded=True))) == 2


def test_a_clock_that_goes_back_changes_no_order(path: Path) -> None:
    with LatencyTable(path) as table:
        table.add(replace(measured("a", 1.0), created_at="2100-01-01T00:00:00.000+00:00"))
        newer = table.add(measured("a", 2.0))
        assert newer.created_at == "2100-01-01T00:00:00.000001+00:00"
        assert table.lookup("a", TARGET) == newer


@pytest.mark.parametrize("wrong", ["yesterday", "2026-01-01T00:00:00"])
def test_a_row_of_no_moment_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"offset|isoformat"):
        replace(measured("a"), created_at=wrong)


def test_many_rows_are_added_together_or_not_at_all(path: Path) -> None:
    def cut_off() -> Iterator[Row]:
        yield measured("b")
        raise KeyboardInterrupt

    with LatencyTable(path) as table:
        assert table.add_many([measured("a"), measured("a")]) == 2
        with pytest.raises(KeyboardInterrupt):
            table.add_many(cut_off())
        assert [row.key for row in table.rows(superseded=True)] == ["a", "a"]


def test_a_row_that_was_tampered_with_is_named_in_one_line(path: Path) -> None:
    with LatencyTable(path) as table:
        table.add(measured("a"))
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER measurement_never_changes")
    connection.execute("UPDATE measurement SET conditions = '{'")
    connection.commit()
    connection.close()
    with LatencyTable(path) as table, pytest.raises(TableError, match=r"row 1 of .*latency\.db") as caught:
        table.lookup("a", TARGET)
    assert "\n" not in str(caught.value)


@pytest.fixture
def first_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table as version 1 wrote it."""
    with monkeypatch.context() as patch:
        patch.setattr("profiler.table.schema.MIGRATIONS", MIGRATIONS[:1])
        LatencyTable(path).close()
    connection = sqlite3.connect(path)
    connection.execute(
        "INSERT INTO measurement VALUES (1, 'a', 'block a', 'part', 'some CPU', 'onnxruntime', '1.0', 'fp32', 1, 1, "
        "'ok', '', 1.5, 1.4, 1.6, NULL, NULL, NULL, x'', NULL, NULL, '{}', NULL, '2026-01-01T00:00:00.123+00:00', NULL)"
    )
    connection.commit()
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()
    return path


def test_a_table_of_version_1_is_brought_up_to_date_when_it_is_written(first_version: Path) -> None:
    with LatencyTable(first_version) as table:
        assert [(row.key, row.median_ms) for row in table.rows()] == [("a", 1.5)]
        table.add(measured("a", 2.0))
        assert [row.median_ms for row in table.rows()] == [2.0]
    found = validate(first_version)
    assert (found.version, found.rows, found.problems) == (len(MIGRATIONS), 2, ())


def test_a_table_of_version_1_stays_one_when_it_is_read(first_version: Path) -> None:
    before = first_version.read_bytes()
    with LatencyTable(first_version, read_only=True) as table:
        assert [(row.key, row.median_ms) for row in table.rows()] == [("a", 1.5)]
    assert first_version.read_bytes() == before
    assert validate(first_version).version == 1


def test_a_table_that_is_read_only_is_not_written(path: Path) -> None:
    with LatencyTable(path) as table:
        table.add(measured("a"))
    with LatencyTable(path, read_only=True) as table, pytest.raises(TableError, match="readonly"):
        table.add(measured("b"))
    with pytest.raises(TableError, match="no file"):
        LatencyTable(path.with_name("missing.db"), read_only=True)


def test_a_table_is_read_where_nothing_can_be_written_beside_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LatencyTable(path) as table:
        table.add(measured("a"))
    monkeypatch.setattr("profiler.table.file.os.access", lambda place, mode: False)
    with LatencyTable(path, read_only=True) as table:
        assert [row.key for row in table.rows()] == ["a"]
        assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_rows_that_only_the_log_holds_are_read_too(path: Path) -> None:
    with LatencyTable(path) as writer:
        writer.add(measured("a"))
        with LatencyTable(path, read_only=True) as table:
            assert [row.key for row in table.rows()] == ["a"]


def test_importing_the_table_loads_no_torch() -> None:
    code = "import sys, profiler.table.latency_table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", [":memory:", "file:table?mode=memory", "a?b#c%20{0}.db", "[1]\n.db"])
def test_a_table_has_any_name_that_a_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    LatencyTable(Path(name)).close()
    assert Path(name).is_file()
    LatencyTable(Path(name), read_only=True).close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_table_that_another_program_has_locked_is_waited_for_with_a_word(
    read_only: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiler.table.file._SILENT_S", 0.1)
    path = tmp_path / "latency.db"
    LatencyTable(path).close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    freed = threading.Timer(0.6, other.close)
    freed.start()
    with LatencyTable(path, read_only=read_only) as table:
        assert list(table.rows()) == []
    freed.join()
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting up to 30 s for {path}, which another program has locked"
    ]
    caplog.clear()
    LatencyTable(path, read_only=read_only).close()
    assert caplog.records == []
