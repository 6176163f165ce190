"""Training curves read back."""

import json
from pathlib import Path

from smnas.training.curve import EpochLog

__all__ = ["read_curve"]


def read_curve(path: Path) -> list[EpochLog]:
    """The epochs of a ``curve.jsonl``."""
    return [EpochLog.from_dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
