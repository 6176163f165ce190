"""What a finished profile of a whole preset covered, beside its table, so that asking again takes seconds.

Reading the shapes of the thousands of detectors that cover a preset takes minutes, also when all their blocks are in
the table already. The record says which keys that came to. It holds for exactly the sources that it was made with.
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
    """A digest of ``facts`` and of everything that decides a preset's workloads: sources, presets, torch."""
    digest = hashlib.sha256(repr((torch.__version__, facts)).encode())
    for package in _SOURCES:
        files = [path for path in Path(str(resources.files(package))).rglob("*") if path.suffix in (".py", ".toml")]
        for path in sorted(files):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def read_record(table: Path, made_with: str) -> frozenset[str] | None:
    """The keys of the record beside a table; None where there is none, or one of other sources."""
    try:
        document = json.loads(_file(table).read_text(encoding="utf-8"))
        return frozenset(document[made_with])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def write_record(table: Path, made_with: str, keys: Collection[str]) -> None:
    """Replace the record beside a table."""
    _file(table).write_text(json.dumps({made_with: sorted(keys)}), encoding="utf-8")


def _file(table: Path) -> Path:
    return table.with_name(f"{table.name}.coverage.json")
