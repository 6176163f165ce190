"""Records what a finished profile of a preset covered, beside its table, so that repeating it takes seconds.

Inferring the shapes of the thousands of detectors that cover a preset takes minutes even if the table holds all their
blocks. The record stores their keys, and is valid only for the sources that produced it.
"""

import hashlib
import json
from collections.abc import Collection
from importlib import resources
from pathlib import Path

import torch

__all__ = ["fingerprint", "read_record", "write_record"]

_SOURCES = ("smnas.space", "smnas.models", "smnas.latency", "kernels")


def fingerprint(*facts: object) -> str:
    """Digest of ``facts`` and everything that determines a preset's workloads: sources, presets, torch."""
    digest = hashlib.sha256(repr((torch.__version__, facts)).encode())
    for package in _SOURCES:
        files = [path for path in Path(str(resources.files(package))).rglob("*") if path.suffix in (".py", ".toml")]
        for path in sorted(files):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def read_record(table: Path, made_with: str) -> frozenset[str] | None:
    """The recorded keys; None without a record of the same fingerprint."""
    try:
        document = json.loads(_file(table).read_text(encoding="utf-8"))
        return frozenset(document[made_with])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def write_record(table: Path, made_with: str, keys: Collection[str]) -> None:
    """Replace the record of a table."""
    _file(table).write_text(json.dumps({made_with: sorted(keys)}), encoding="utf-8")


def _file(table: Path) -> Path:
    return table.with_name(f"{table.name}.coverage.json")
