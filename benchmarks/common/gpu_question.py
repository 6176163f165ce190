"""A question of ``gpu.py``: its settings, and its answer while it grows."""

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.common.answers import plain
from profiler.devices import Device


class OutOfTimeError(BaseException):
    """A question's time is up. No ``Exception``: what stores a module's failure as data must let it through."""


@dataclass(frozen=True)
class Setting:
    """Settings of a question.

    Attributes:
        device: Where its work runs.
        quick: Whether to check only that everything runs, on the smallest sizes.
        data: A COCO folder, or ``None`` for the generated shapes.
        scratch: A folder for tables, checkpoints and models; later questions read what earlier ones left there.
        deadline: When the question should be done, by :func:`time.monotonic`.
    """

    device: Device
    quick: bool
    data: Path | None
    scratch: Path
    deadline: float

    @property
    def place(self) -> torch.device:
        """The device as torch names it."""
        return torch.device(self.device.kind, self.device.index) if self.device.kind == "cuda" else torch.device("cpu")

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def synchronize(self) -> None:
        """Wait for all queued work of the device."""
        if self.device.kind == "cuda":
            torch.cuda.synchronize(self.device.index)


@dataclass
class Answer:
    """The findings so far, saved after every step: a process that dies leaves what it had.

    Attributes:
        path: The JSON file.
        values: Its content.
    """

    path: Path
    values: dict[str, Any] = field(default_factory=dict)

    def put(self, **values: Any) -> None:
        """Set values by name."""
        self.values |= values
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(plain(self.values), allow_nan=False))
        unfinished.replace(self.path)

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a list."""
        self.put(**{name: [*self.values.get(name, ()), dict(row)]})

    def skip(self, part: str, reason: str) -> None:
        """Record a part that was left out, and why."""
        self.add("skipped", {"part": part, "reason": reason})


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTimeError` inside the block when it takes longer, and again every 5 seconds until it ends.

    A call that never returns to Python is not stopped by this: the parent process kills it.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(f"the time limit of {seconds:.0f} s is over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
