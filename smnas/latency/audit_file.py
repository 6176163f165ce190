"""The last audit of each target, stored as JSON beside the latency table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.atomic import write_atomic
from profiler.errors import UserError
from profiler.table.latency_table import Target

__all__ = ["AuditPoint", "read_audit", "write_audit"]


@dataclass(frozen=True)
class AuditPoint:
    """Predicted and measured end-to-end latency of one detector."""

    architecture: str
    predicted_ms: float
    low_ms: float
    high_ms: float
    measured_ms: float


def write_audit(table: Path, target: Target, audit: Mapping[str, Any]) -> None:
    """Store the last audit of a target."""
    path = _audit_file(table)
    kept = _read(path)
    kept[_name(target)] = dict(audit)
    write_atomic(path, json.dumps(kept, indent=1) + "\n")


def read_audit(table: Path, target: Target) -> tuple[AuditPoint, ...]:
    """The last audit of a target; empty if there is none."""
    detectors = _read(_audit_file(table)).get(_name(target), {}).get("detectors", [])
    return tuple(
        AuditPoint(row["architecture"], row["predicted_ms"], row["low_ms"], row["high_ms"], row["measured_ms"])
        for row in detectors
    )


def _audit_file(table: Path) -> Path:
    return table.with_name(f"{table.name}.audit.json")


def _name(target: Target) -> str:
    return "|".join(map(str, vars(target).values()))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"an audit beside a table must be JSON, but {path} is not ({error}): remove it") from None
    return found if isinstance(found, dict) else {}
