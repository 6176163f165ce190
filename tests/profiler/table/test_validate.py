"""Checking a latency table: whole ones pass, and everything that can be wrong is a line."""

import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiler.table.latency_table import LatencyTable, Row, TableError, Target, pack_samples
from profiler.table.schema import MIGRATIONS
from profiler.table.validate import validate

CPU = Target("some CPU", "onnxruntime", "1.0")
SAMPLES = np.array([0.9, 1.0, 1.2])


def measured(key: str) -> Row:
    return Row(
        key=key,
        name=f"block {key}",
        target=CPU,
        median_ms=1.0,
        low_ms=0.95,
        high_ms=1.1,
        n=3,
        inner_runs=1,
        stop_reason="converged",
        samples=pack_samples(SAMPLES),
        reference_drift=0.01,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Rows 1 and 2 of one workload, 3 and 4 of others; 4 failed."""
    with LatencyTable(tmp_path / "latency.db") as table:
        for row in (measured("a"), measured("a"), measured("b")):
            table.add(row)
        table.add(Row(key="c", name="block c", target=CPU, status="failed", reason="no memory"))
    return tmp_path / "latency.db"


def tampered(path: Path, *statements: str) -> tuple[str, ...]:
    """The problems after statements that neither triggers nor checks stop."""
    connection = sqlite3.connect(path)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    connection.execute("PRAGMA ignore_check_constraints = ON")
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in triggers:
        connection.execute(sql)
    connection.commit()
    connection.close()
    return validate(path).problems


def test_a_whole_table(path: Path) -> None:
    before = path.read_bytes()
    found = validate(path)
    assert (found.version, found.rows, found.current, found.problems) == (len(MIGRATIONS), 4, 3, ())
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_estimate_promises_no_samples(path: Path) -> None:
    with LatencyTable(path) as table:
        table.add(replace(measured("d"), n=None, inner_runs=None, samples=b"", stop_reason="estimate"))
    assert validate(path).problems == ()


def test_rounds_that_were_not_kept_are_not_in_the_median(path: Path) -> None:
    rounds = [{"n": 2, "kept": True}, {"n": 2, "kept": False}, {"n": 1, "kept": True}]
    samples = pack_samples(np.array([1.0, 1.02, 1.5, 1.6, 0.99]))
    row = replace(measured("r"), n=5, samples=samples, low_ms=0.9, high_ms=1.1, conditions={"rounds": rounds})
    with LatencyTable(path) as table:
        table.add(row)
    assert validate(path).problems == ()
    with LatencyTable(path) as table:
        table.add(replace(row, median_ms=1.02))
        table.add(replace(row, key="s", conditions={"rounds": rounds[:2]}))
    wrong_median, wrong_sizes = validate(path).problems
    assert "the samples' median 1.0" in wrong_median
    assert "add up to n = 5 samples" in wrong_sizes


def test_an_empty_file_is_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "latency.db").touch()
    found = validate(tmp_path / "latency.db")
    assert (found.version, found.rows, found.problems) == (0, 0, ())


def _bytes(values: object) -> str:
    return f"x'{zlib.compress(np.asarray(values, dtype='<f8').tobytes()).hex()}'"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("median_ms = 2.0", "low_ms <= median_ms <= high_ms"),
        ("low_ms = 1.05", "low_ms <= median_ms <= high_ms"),
        ("low_ms = -1.0", "0 <= low_ms"),
        ("low_ms = 9e999", "finite"),
        ("high_ms = NULL", "finite"),
        ("median_ms = 'fast'", "finite"),
        ("reason = 'it worked'", "no reason to have failed"),
        ("status = 'failed'", "has no latency"),
        ("status = 'failed'", "has a reason"),
        ("n = 4", "n = 4 raw samples are promised, but 3"),
        ("n = NULL", "n = None raw samples are promised, but 3"),
        ("samples = x''", "n = 3 raw samples are promised, but 0"),
        ("samples = x'0102'", "can not be unpacked"),
        ("samples = 'text'", "can not be unpacked"),
        (f"samples = {_bytes([1.0, 1.0, np.inf])}", "finite"),
        (f"samples = {_bytes([0.5, 0.9, 1.3])}", "the samples' median 0.9"),
        ("high_ms = 1.3", "within the samples"),
        ("low_ms = 0.8", "within the samples"),
        ("parameters = -1", "parameters must be a whole number"),
        ("flops = 1.5", "flops must be a whole number"),
        ("reference_drift = 9e999", "reference_drift"),
        ("conditions = '{'", "JSON object"),
        ("conditions = '[]'", "JSON object"),
        ("""conditions = '{"rounds": [1, 2]}'""", "every round must say"),
        ("""conditions = '{"rounds": [{"n": -1, "kept": true}, {"n": 4, "kept": true}]}'""", "every round must say"),
        ("created_at = 'yesterday'", "created_at"),
        ("created_at = '2026-01-01T00:00:00'", "created_at"),
        ("superseded_by = 99", "row 3: the measurement that it refers to is not there"),
        ("superseded_by = 3", "only a newer row may supersede it, but row 3"),
        ("superseded_by = 2", "only a row of its workload may supersede it, but row 2"),
        ("superseded_by = 4", "one row of its workload must be current, but 0 are"),
    ],
)
def test_what_is_wrong_with_a_row(path: Path, change: str, line: str) -> None:
    problems = tampered(path, f"UPDATE measurement SET {change} WHERE id = 3")
    assert any(line in problem and problem.startswith("row 3: ") for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_an_older_row_does_not_supersede(path: Path) -> None:
    problems = tampered(path, "UPDATE measurement SET created_at = '2100-01-01T00:00:00+00:00' WHERE id = 1")
    assert problems == ("row 1: only a newer row may supersede it, but row 2 does",)


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("DROP INDEX current_measurement", "schema: index current_measurement is missing"),
        ("CREATE VIEW fast AS SELECT name FROM measurement WHERE median_ms < 1", ""),
    ],
)
def test_the_schema(path: Path, statement: str, line: str) -> None:
    assert tampered(path, statement) == ((line,) if line else ())


def test_a_missing_column(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE measurement RENAME COLUMN conditions TO circumstances")
    connection.close()
    schema, file = validate(path).problems[0], validate(path).problems[-1]
    assert schema == "schema: table measurement is defined otherwise"
    assert file == "file: no such column: conditions"


def test_a_missing_trigger(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER measurement_never_goes")
    connection.close()
    assert validate(path).problems == ("schema: trigger measurement_never_goes is missing",)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_table(path: Path, share: float) -> None:
    with LatencyTable(path) as table:
        table.add_many(measured(f"block {number}") for number in range(300))
    with path.open("r+b") as stream:
        stream.truncate(int(path.stat().st_size * share))
    problems = validate(path).problems
    assert problems
    assert problems[0].startswith("file: ")
    assert all("\n" not in problem for problem in problems)


def test_overwritten_pages(path: Path) -> None:
    with LatencyTable(path) as table:
        table.add_many(measured(f"block {number}") for number in range(300))
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(b"\x00\xff" * 4096)
    assert any(problem.startswith("file: ") for problem in validate(path).problems)


def _text(path: Path) -> None:
    path.write_text("key,latency\n")


def _foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE trials (id INTEGER)")
    connection.close()


def _newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()


@pytest.mark.parametrize("make", [_text, _foreign, _newer, Path.unlink])
def test_what_is_no_table_is_refused(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    with pytest.raises(TableError, match="latency\\.db") as caught:
        validate(path)
    assert "\n" not in str(caught.value)


def test_current_rows_whose_rounds_disagree_are_named(path: Path) -> None:
    disagree = replace(measured("b"), stop_reason="rounds_disagree", conditions={"round_spread": 0.41})
    with LatencyTable(path) as table:
        table.add(replace(disagree, key="d", name="block d"))
        table.add(measured("d"))  # measured again, with success
        row = table.add(disagree)
    found = validate(path)
    assert found.problems == ()
    assert found.unsteady == (f"row {row.id}: the rounds of block b disagree, by up to 41%",)
