"""Exported rows are read back as the table holds them."""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.errors import UserError
from profiler.table.export import COLUMNS, export_rows
from profiler.table.latency_table import LatencyTable, Row, Target, pack_samples

CPU = Target("some \"CPU\", 2 cores\nof 'ä'", "onnxruntime", "1.0", batch=2, threads=3)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[LatencyTable]:
    path = tmp_path / "latency.db"
    rng = np.random.default_rng(0)
    with LatencyTable(path) as rows:
        for key in ("a", "b", "a"):
            samples = np.sort(rng.uniform(1, 2, 5))
            rows.add(
                Row(
                    key=key,
                    name=f"conv, {key}",
                    target=CPU,
                    median_ms=float(samples[2]),
                    low_ms=float(samples[1]),
                    high_ms=float(samples[4]),
                    n=5,
                    inner_runs=7,
                    stop_reason="converged",
                    samples=pack_samples(samples),
                    parameters=10**12,
                    flops=2**40,
                    conditions={"versions": {"torch": "2.11"}, "loadavg": [0.1, 0.2]},
                    reference_drift=-0.125,
                )
            )
        rows.add(Row(key="c", name="bad", target=CPU, kind="whole", status="failed", reason="Error: no, memory"))
    with LatencyTable(path, read_only=True) as rows:
        yield rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    def value(column: str, text: str) -> object:
        kind = COLUMNS[column]
        if column in ("samples_ms", "conditions"):
            return json.loads(text)
        if kind == "string":
            return text if text or column == "reason" else None
        return None if text == "" else {"int64": int, "float64": float}[kind](text)

    with path.open(newline="", encoding="utf-8") as stream:
        return [{column: value(column, text) for column, text in row.items()} for row in csv.DictReader(stream)]


def _read_json(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra `parquet`")
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return [{**row, "conditions": json.loads(row["conditions"])} for row in rows]


READERS = {".csv": _read_csv, ".json": _read_json, ".parquet": _read_parquet}


@pytest.mark.parametrize("superseded", [False, True])
@pytest.mark.parametrize(("suffix", "read"), READERS.items())
def test_an_export_read_back_equals_the_table(
    table: LatencyTable, tmp_path: Path, suffix: str, read: Callable[[Path], list[dict[str, Any]]], superseded: bool
) -> None:
    to = tmp_path / f"rows{suffix}"
    to.write_text("an older file")
    assert export_rows(table, to, superseded=superseded) == (4 if superseded else 3)
    found = read(to)
    expected = list(table.rows(superseded=superseded))
    assert [list(row) for row in found] == [list(COLUMNS)] * len(expected)
    for row, stored in zip(found, expected, strict=True):
        assert Target(*(row.pop(name) for name in Target.__dataclass_fields__)) == stored.target
        assert row.pop("samples_ms") == stored.samples_ms.tolist()
        assert row == {name: getattr(stored, name) for name in row}
    assert {path.name for path in tmp_path.iterdir()} == {"latency.db", to.name, "latency.db-shm", "latency.db-wal"}


@pytest.mark.parametrize("suffix", READERS)
def test_a_table_without_rows(tmp_path: Path, suffix: str) -> None:
    to = tmp_path / f"rows{suffix}"
    with LatencyTable(tmp_path / "empty.db") as table:
        assert export_rows(table, to) == 0
    assert READERS[suffix](to) == []


def test_parquet_keeps_types(table: LatencyTable, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra `parquet`")
    export_rows(table, tmp_path / "rows.parquet")
    types = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "rows.parquet")}
    assert types["flops"] == "int64"
    assert types["median_ms"] == "double"
    assert types["samples_ms"] in ("list<element: double>", "list<item: double>")
    # All of a column missing: still a column of its type.
    assert types["superseded_by"] == "int64"


def test_numbers_are_the_same_to_the_last_bit(table: LatencyTable, tmp_path: Path) -> None:
    export_rows(table, tmp_path / "rows.csv")
    medians = [row["median_ms"] for row in _read_csv(tmp_path / "rows.csv")]
    for found, row in zip(medians, table.rows(), strict=True):
        assert found == row.median_ms
        assert found is None or math.isfinite(found)


@pytest.mark.parametrize("name", ["rows", "rows.xlsx", "rows.db"])
def test_another_suffix_lists_the_known_ones(table: LatencyTable, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"\.csv, \.json, \.parquet"):
        export_rows(table, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_parquet_without_pyarrow_names_the_command(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'smnas\[parquet\]'"):
        export_rows(table, tmp_path / "rows.parquet")
    assert not (tmp_path / "rows.parquet").exists()


def test_a_place_that_can_not_be_written(table: LatencyTable, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for place in (tmp_path / "missing" / "rows.csv", tmp_path / "folder.csv"):
        with pytest.raises(UserError, match="must be writable"):
            export_rows(table, place)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_the_table_itself_is_not_overwritten(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "table.csv") as table, pytest.raises(UserError, match="own place"):
        export_rows(table, tmp_path / "table.csv")
