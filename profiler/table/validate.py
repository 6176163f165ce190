"""Validate a latency table: its file, its schema, and the consistency of its rows."""

import json
import math
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiler.table.file import file_errors, open_for_reading, refuse_foreign_file
from profiler.table.latency_table import TARGET_COLUMNS
from profiler.table.schema import schema_differences
from profiler.timing.measurement import StopReason

__all__ = ["Validation", "validate"]

_ROUNDING = 1e-9  # a median stored in milliseconds, of samples taken in nanoseconds
_LATENCIES = ("median_ms", "low_ms", "high_ms")
_COUNTS = ("n", "inner_runs", "parameters", "flops")
_WORKLOAD = (*TARGET_COLUMNS, "key")
_OTHERS = (
    "id",
    "name",
    "status",
    "reason",
    "stop_reason",
    "samples",
    "conditions",
    "reference_drift",
    "created_at",
    "superseded_by",
)


@dataclass(frozen=True)
class Validation:
    """Contents of a table, and its problems.

    Attributes:
        version: of the file's schema; an older one than today's is no problem.
        rows: number of measurements and failures, superseded ones too.
        current: number of those not superseded.
        problems: one line each; none for a valid table.
        unsteady: one line for each current row whose rounds disagree.
    """

    path: Path
    version: int
    rows: int
    current: int
    problems: tuple[str, ...]
    unsteady: tuple[str, ...] = ()


def validate(path: Path | str) -> Validation:
    """Check a table without changing it: file pages, schema, every row's numbers, and the chains of superseded rows.

    Raises:
        TableError: the file is missing, is something else, or is a table of a newer version.
    """
    path = Path(path)
    refuse_foreign_file(path, create=False)
    with file_errors(path):
        try:
            connection, version = open_for_reading(path)
        except sqlite3.OperationalError:
            raise  # locked or unreadable: its contents are unknown
        except sqlite3.DatabaseError as error:
            return Validation(path, 0, 0, 0, (f"file: {error}",))
        try:
            return _validated(path, connection, version)
        finally:
            connection.close()


def _validated(path: Path, connection: sqlite3.Connection, version: int) -> Validation:
    problems: list[str] = []
    rows: list[sqlite3.Row] = []
    try:
        problems += (f"file: {line}" for line in _integrity(connection))
        problems += (f"schema: {line}" for line in schema_differences(connection))
        problems += (
            f"row {row_id}: the {parent} that it refers to is not there"
            for _, row_id, parent, _ in connection.execute("PRAGMA foreign_key_check").fetchall()
        )
        # by name, so that SQLite names a missing column itself
        columns = ", ".join((*_OTHERS, *_WORKLOAD, *_LATENCIES, *_COUNTS))
        rows = connection.execute(f"SELECT {columns} FROM measurement ORDER BY id").fetchall()
    except sqlite3.DatabaseError as error:
        problems.append(f"file: {error}")
    for row in rows:
        problems += (f"row {row['id']}: {line}" for line in _row_problems(dict(row)))
    problems += _chain_problems(rows)
    current = [row for row in rows if row["superseded_by"] is None]
    unsteady = [_unsteady(dict(row)) for row in current if row["stop_reason"] == StopReason.ROUNDS_DISAGREE]
    return Validation(path, version, len(rows), len(current), tuple(problems), tuple(unsteady))


def _unsteady(row: Mapping[str, Any]) -> str:
    spread = (_conditions(row["conditions"]) or {}).get("round_spread")
    by = f", by up to {spread:.0%}" if isinstance(spread, float) else ""
    return f"row {row['id']}: the rounds of {row['name']} disagree{by}"


def _integrity(connection: sqlite3.Connection) -> Iterator[str]:
    for (answer,) in connection.execute("PRAGMA integrity_check"):
        # The pages of one B-tree are one answer of several lines under a heading between stars.
        yield from (line for line in answer.splitlines() if line != "ok" and not line.startswith("***"))


def _row_problems(row: Mapping[str, Any]) -> Iterator[str]:
    latencies = [row[column] for column in _LATENCIES]
    if row["status"] == "failed":
        if not row["reason"]:
            yield "a failure has a reason, but this one has none"
        if any(value is not None for value in latencies):
            yield f"a failure has no latency, but this one has {latencies}"
    elif all(isinstance(value, float) and math.isfinite(value) for value in latencies):
        median, low, high = latencies
        if not 0 <= low <= median <= high:
            yield f"0 <= low_ms <= median_ms <= high_ms must hold, but it has {low}, {median} and {high}"
        if row["reason"]:
            yield f"a measurement has no reason to have failed, but this one has {row['reason']!r}"
    else:
        yield f"{', '.join(_LATENCIES)} must be finite numbers, but it has {latencies}"
    for column in _COUNTS:
        if row[column] is not None and not (isinstance(row[column], int) and row[column] >= 0):
            yield f"{column} must be a whole number, but it has {row[column]!r}"
    drift = row["reference_drift"]
    if drift is not None and not (isinstance(drift, float) and math.isfinite(drift)):
        yield f"reference_drift must be a finite number, but it has {drift!r}"
    yield from _sample_problems(row)
    if _conditions(row["conditions"]) is None:
        yield "the conditions must be a JSON object, but they are not"
    if _moment(row["created_at"]) is None:
        yield f"created_at must be a time with its offset from UTC, but it has {row['created_at']!r}"


def _sample_problems(row: Mapping[str, Any]) -> Iterator[str]:
    promised, packed = row["n"], row["samples"]
    samples = _unpacked(packed)
    if samples is None:
        yield "the raw samples can not be unpacked"
    elif len(samples) != (promised or 0):
        yield f"n = {promised} raw samples are promised, but {len(samples)} are there"
    elif not np.isfinite(samples).all():
        yield "raw samples must be finite, but some are not"
    elif len(samples) and all(isinstance(row[column], float) for column in _LATENCIES):
        found = (_conditions(row["conditions"]) or {}).get("rounds")
        rounds = found if isinstance(found, list) else []
        if len(rounds) > 1:
            try:
                kept = np.repeat([bool(one["kept"]) for one in rounds], [one["n"] for one in rounds])
            except (KeyError, TypeError, ValueError):
                yield "every round must say its number of samples and whether it was kept, but some do not"
                return
            if len(kept) != len(samples) or not kept.any():
                yield f"the rounds must add up to n = {promised} samples and some be kept, but {len(kept)} are there"
                return
            samples = samples[kept]
        median, least, most = float(np.median(samples)), float(samples.min()), float(samples.max())
        if not math.isclose(median, row["median_ms"], rel_tol=_ROUNDING):
            yield f"median_ms must be the samples' median {median}, but it is {row['median_ms']}"
        outside = row["low_ms"] < least * (1 - _ROUNDING) or row["high_ms"] > most * (1 + _ROUNDING)
        if outside and len(rounds) < 2:  # the spread between rounds gives its own interval
            yield f"the interval must lie within the samples, but it is {row['low_ms']} to {row['high_ms']}"


def _unpacked(packed: object) -> NDArray[np.float64] | None:
    if not isinstance(packed, bytes):
        return None
    try:
        return np.frombuffer(zlib.decompress(packed) if packed else b"", dtype="<f8").astype(np.float64)
    except (zlib.error, ValueError):
        return None


def _conditions(text: object) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _chain_problems(rows: list[sqlite3.Row]) -> Iterator[str]:
    """Yield rows that do not lead, through newer ones of the same workload and target, to the current one."""
    by_id = {row["id"]: row for row in rows}
    current = Counter(tuple(row[column] for column in _WORKLOAD) for row in rows if row["superseded_by"] is None)
    for row in rows:
        workload = tuple(row[column] for column in _WORKLOAD)
        if current[workload] != 1:
            yield f"row {row['id']}: one row of its workload must be current, but {current[workload]} are"
        newer = by_id.get(row["superseded_by"])
        if newer is None:
            continue  # the current one, or a missing row that the foreign keys' check has named
        if tuple(newer[column] for column in _WORKLOAD) != workload:
            yield f"row {row['id']}: only a row of its workload may supersede it, but row {newer['id']} does"
            continue
        here, there = _moment(row["created_at"]), _moment(newer["created_at"])
        if newer["id"] == row["id"] or (here is not None and there is not None and there < here):
            yield f"row {row['id']}: only a newer row may supersede it, but row {newer['id']} does"


def _moment(created_at: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(created_at) if isinstance(created_at, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None
