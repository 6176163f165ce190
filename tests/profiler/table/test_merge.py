"""Merging latency tables: nothing lost, nothing twice, and the newest is current, in whichever order they come."""

import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.devices import gpu_sheets, matching_names
from profiler.prediction.predict import LatencyModel, sum_parts
from profiler.table.latency_table import LatencyTable, Row, TableError, Target, pack_samples
from profiler.table.merge import Merged, merge
from profiler.table.validate import validate

CPU = Target("some CPU", "onnxruntime", "1.0")
GPU = Target("Tesla V100-SXM2-16GB", "onnxruntime", "1.0")


def measured(key: str, median_ms: float = 1.0, target: Target = CPU, *, created_at: str = "") -> Row:
    samples = np.array([median_ms * 0.99, median_ms, median_ms * 1.02])
    return Row(
        key=key,
        name=f"block {key}",
        target=target,
        median_ms=median_ms,
        low_ms=float(samples[0]),
        high_ms=float(samples[2]),
        n=3,
        inner_runs=1,
        stop_reason="converged",
        samples=pack_samples(samples),
        created_at=created_at,
    )


def failed(key: str, reason: str, target: Target = CPU, *, created_at: str = "") -> Row:
    return Row(key=key, name=f"block {key}", target=target, status="failed", reason=reason, created_at=created_at)


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02d}.000000+00:00"


def written(path: Path, rows: Sequence[Row]) -> Path:
    with LatencyTable(path) as table:
        for row in rows:
            table.add(row)
    return path


def merged(path: Path, *others: Path) -> tuple[Merged, ...]:
    with LatencyTable(path) as table:
        return merge(table, others)


def content(path: Path) -> set[tuple[Row, Row | None]]:
    """Every measurement with the one that superseded it, free of the numbers that a table gives its rows."""
    with LatencyTable(path, read_only=True) as table:
        rows = {row.id: row for row in table.rows(superseded=True)}
    bare = {number: replace(row, id=None, superseded_by=None, conditions={}) for number, row in rows.items()}
    pairs = [(bare[row.id], bare.get(row.superseded_by)) for row in rows.values()]
    return {(_hashable(row), None if newer is None else _hashable(newer)) for row, newer in pairs}


def _hashable(row: Row) -> Row:
    return replace(row, conditions=())  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "into.db"


def test_rows_of_both_tables_are_there(path: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other.db", [measured("a", 2.0, GPU), failed("b", "out of memory")])
    before = other.read_bytes()
    written(path, [measured("a", 1.0)])
    assert merged(path, other) == (Merged(other, 2, 2),)
    assert other.read_bytes() == before
    with LatencyTable(path) as table:
        assert {(row.key, row.target.device, row.median_ms) for row in table.rows()} == {
            ("a", CPU.device, 1.0),
            ("a", GPU.device, 2.0),
            ("b", CPU.device, None),
        }
        broken = table.lookup("b", CPU)
    assert broken is not None
    assert broken.reason == "out of memory"
    assert validate(path).problems == ()


def test_the_newest_measurement_is_current_wherever_it_comes_from(path: Path, tmp_path: Path) -> None:
    old, new, between = (measured("a", ms, created_at=at(second)) for ms, second in ((1.0, 1), (3.0, 3), (2.0, 2)))
    written(path, [old, new])
    assert merged(path, written(tmp_path / "other.db", [between])) == (Merged(tmp_path / "other.db", 1, 1),)
    with LatencyTable(path) as table:
        current = table.lookup("a", CPU)
        rows = {row.median_ms: row for row in table.rows(superseded=True)}
    assert current is not None
    assert current.median_ms == 3.0
    # What the table held is as it was; only who superseded whom has got a step in between.
    assert (rows[1.0].superseded_by, rows[2.0].superseded_by) == (rows[2.0].id, rows[3.0].id)
    assert validate(path).problems == ()


def test_a_failure_is_superseded_by_a_later_success_and_the_other_way_round(path: Path, tmp_path: Path) -> None:
    written(path, [failed("a", "no memory", created_at=at(1)), measured("b", created_at=at(1))])
    others = [measured("a", created_at=at(2)), failed("b", "driver gone", created_at=at(2))]
    merged(path, written(tmp_path / "other.db", others))
    with LatencyTable(path) as table:
        assert {row.key: row.status for row in table.rows()} == {"a": "ok", "b": "failed"}


def test_times_are_compared_as_moments(path: Path, tmp_path: Path) -> None:
    written(path, [measured("a", 1.0, created_at="2026-01-01T12:00:00.000+00:00")])
    later_elsewhere = measured("a", 2.0, created_at="2026-01-01T08:00:00.000-05:00")  # 13:00 UTC
    merged(path, written(tmp_path / "other.db", [later_elsewhere]))
    with LatencyTable(path) as table:
        assert [row.median_ms for row in table.rows()] == [2.0]


def test_what_is_wrong_with_one_table_is_said_before_anything_is_written(path: Path, tmp_path: Path) -> None:
    good = written(tmp_path / "good.db", [measured("a")])
    bad = tmp_path / "bad.db"
    bad.write_text("key,latency\n")
    for wrong in (bad, tmp_path / "missing.db"):
        with LatencyTable(path) as table, pytest.raises(TableError, match=wrong.name):
            merge(table, [good, wrong])
        with LatencyTable(path) as table:
            assert table.count() == 0


def test_a_table_of_an_older_version_is_merged_and_stays_one(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    written(other, [measured("a")])
    connection = sqlite3.connect(other)
    connection.executescript(
        "DROP INDEX measurement_history; DROP TRIGGER measurement_never_changes; DROP TRIGGER measurement_never_goes;"
        "PRAGMA user_version = 1"
    )
    connection.close()
    before = other.read_bytes()
    assert merged(path, other) == (Merged(other, 1, 1),)
    assert other.read_bytes() == before
    assert validate(path).problems == ()


def test_merging_a_table_into_itself_changes_nothing(path: Path) -> None:
    written(path, [measured("a", 1.0), measured("a", 2.0)])
    before = content(path)
    assert merged(path, path) == (Merged(path, 2, 0),)
    assert content(path) == before


_rows = st.builds(
    lambda key, target, second, ms: (
        failed(key, "reason", target, created_at=at(second))
        if ms is None
        else measured(key, ms, target, created_at=at(second))
    ),
    st.sampled_from("ab"),
    st.sampled_from([CPU, GPU]),
    st.integers(0, 3),
    st.sampled_from([None, 1.0, 2.0, 3.0]),
)
_tables = st.lists(_rows, max_size=5)


@settings(max_examples=20)
@given(st.lists(_tables, min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_merging_is_idempotent_and_its_order_decides_nothing(tables: list[list[Row]], rng: object) -> None:
    # Where files are kept in memory nothing is waited for: this is about what is written, not about the disk.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        paths = [written(Path(folder) / f"{number}.db", rows) for number, rows in enumerate(tables)]
        everything = {replace(row, conditions=()) for rows in tables for row in rows}  # type: ignore[arg-type]
        one_by_one, at_once, onto_the_last = (Path(folder) / f"{name}.db" for name in ("one", "once", "last"))
        for table in paths:
            merged(one_by_one, table)
        shuffled = list(reversed(paths))
        rng.shuffle(shuffled)  # type: ignore[attr-defined]
        merged(at_once, *shuffled)
        written(onto_the_last, tables[-1])
        merged(onto_the_last, *paths[:-1])
        wanted = content(one_by_one)
        assert {row for row, _ in wanted} == everything
        assert content(at_once) == content(onto_the_last) == wanted
        assert all(part.added == 0 for part in merged(at_once, *paths, one_by_one))
        assert content(at_once) == wanted
        assert validate(at_once).problems == ()
        # Slow and obvious: the newest of every key and target is current.
        with LatencyTable(at_once) as table:
            for row in table.rows():
                of_its_kind = [one for one in everything if (one.key, one.target) == (row.key, row.target)]
                assert row.created_at == max(one.created_at for one in of_its_kind)


def test_a_table_of_another_machine_predicts_for_its_device(tmp_path: Path) -> None:
    parts = ["stem", "block", "block", "head"]
    rows = [measured("stem", 1.0, GPU), measured("block", 2.0, GPU), measured("head", 0.5, GPU)]
    there = written(tmp_path / "there" / "latency.db", rows)
    here = tmp_path / "another folder" / "v100 100%.db"
    here.parent.mkdir()
    there.rename(here)
    with LatencyTable(here, read_only=True) as table:
        (name,) = matching_names(gpu_sheets()["v100"], [target.device for target in table.targets()])
        (target,) = (target for target in table.targets() if target.device == name)
        predicted = LatencyModel().predict(sum_parts(parts, table.current(target)))
        assert table.current(CPU) == {}  # nothing of it is taken for this machine's
    assert predicted.ms == pytest.approx(1.0 + 2.0 + 2.0 + 0.5)
    # Merged with what was measured here, both devices keep their own.
    mine = written(tmp_path / "mine.db", [measured("stem", 7.0)])
    merged(mine, here)
    with LatencyTable(mine) as table:
        assert LatencyModel().predict(sum_parts(parts, table.current(target))) == predicted
        assert {row.median_ms for row in table.current(CPU).values()} == {7.0}


def test_the_operations_load_no_torch() -> None:
    names = "profiler.table.merge, profiler.table.diff, profiler.table.validate, profiler.table.export"
    code = f"import sys, {names}; print([m for m in ('torch', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
