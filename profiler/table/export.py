"""Export a latency table as CSV, JSON or Parquet."""

import csv
import importlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from profiler.errors import UserError
from profiler.table.latency_table import LatencyTable, Row
from profiler.table.schema import migrate

__all__ = ["COLUMNS", "export_rows", "record"]

_TYPES = {"INTEGER": "int64", "TEXT": "string", "REAL": "float64", "BLOB": "list of float64"}


def _columns() -> dict[str, str]:
    with closing(sqlite3.connect(":memory:")) as connection:
        migrate(connection)
        found = connection.execute("PRAGMA table_info(measurement)").fetchall()
    return {"samples_ms" if name == "samples" else name: _TYPES[kind] for _, name, kind, *_ in found}


COLUMNS: Mapping[str, str] = _columns()
"""Exported columns in order, with their types: the table's own, the samples unpacked."""

Record = dict[str, Any]


def export_rows(table: LatencyTable, to: Path | str, *, superseded: bool = False) -> int:
    """Write the rows of a table to a ``.csv``, ``.json`` or ``.parquet`` file, replacing an older one.

    CSV cells hold samples and conditions as JSON, and nothing for a missing number. JSON is a list of objects. Parquet
    has samples as lists and conditions as JSON. ``superseded`` includes superseded rows.

    Returns:
        Number of rows.

    Raises:
        UserError: unknown suffix, pyarrow is missing for Parquet, or the file can not be written.
    """
    to = Path(to)
    write = _WRITERS.get(to.suffix.lower())
    if write is None:
        raise UserError(f"rows are exported to a file that ends in {', '.join(_WRITERS)}, but got {to}")
    if to.resolve() == table.path.resolve():
        raise UserError(f"an export must not take the table's own place, but got {to}")
    records = [record(row) for row in table.rows(superseded=superseded)]
    # Written beside and renamed once complete: a reader never sees half a file.
    unfinished = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        try:
            write(records, unfinished)
            unfinished.replace(to)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"an export must be writable, but {to} gave: {error.strerror or error}") from error
    return len(records)


def record(row: Row) -> Record:
    """Return a row as plain values by column, samples as a list of milliseconds."""
    values = {
        **{name: getattr(row, name) for name in COLUMNS if hasattr(row, name)},
        **asdict(row.target),
        "samples_ms": row.samples_ms.tolist(),
        "conditions": dict(row.conditions),
    }
    return {name: values[name] for name in COLUMNS}


def _write_csv(records: Sequence[Record], to: Path) -> None:
    with to.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(
            {**one, "samples_ms": json.dumps(one["samples_ms"]), "conditions": _json(one["conditions"])}
            for one in records
        )


def _write_json(records: Sequence[Record], to: Path) -> None:
    # One row per line, for line tools; the file is one JSON document all the same.
    lines = ",\n".join(json.dumps(one) for one in records)
    to.write_text(f"[\n{lines}\n]\n" if records else "[]\n", encoding="utf-8")


def _write_parquet(records: Sequence[Record], to: Path) -> None:
    try:
        pyarrow: Any = importlib.import_module("pyarrow")  # untyped
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError("Parquet is written by pyarrow, which is missing: pip install 'smnas[parquet]'") from error
    types = {
        "string": pyarrow.string(),
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
        "list of float64": pyarrow.list_(pyarrow.float64()),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    rows = [{**one, "conditions": _json(one["conditions"])} for one in records]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), to)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


_WRITERS: Mapping[str, Callable[[Sequence[Record], Path], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".parquet": _write_parquet,
}
