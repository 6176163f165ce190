"""What the scripts of this folder share: where an answer came from, and where it is kept."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from profiler.backends import Session
from profiler.devices import resolve_device

__all__ = ["RESULTS", "keep_answer", "processor_ms", "result_path"]

RESULTS = Path(__file__).resolve().parent / "results"


def result_path(
    name: str, device: str, *, backend: str = "eager", precision: str = "fp32", version: str = torch.__version__
) -> Path:
    """Where the answer to a question is kept, see ``benchmarks/README.md``; ``version`` is torch's."""
    machine = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return RESULTS / f"{name}-{backend}-{precision}-{version.replace('+', '_')}-{machine}.json"


def processor_ms(sessions: Mapping[str, Session], rounds: int, *, at_least_s: float = 0.1) -> dict[str, list[float]]:
    """Processor time of one run, in milliseconds: every session once in each round, in random order.

    On a machine that does other work meanwhile the clock measures how long a run had to wait; for one thread processor
    time is what the clock would say on an idle one.
    """
    rng = np.random.default_rng(0)
    names = list(sessions)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for index in rng.permutation(len(names)).tolist():
            with sessions[names[index]] as session:
                session.run()
                runs, began = 0, time.process_time()
                while (spent := time.process_time() - began) < at_least_s or runs < 3:
                    session.run()
                    runs += 1
            found[names[index]].append(spent / runs * 1e3)
    return found


def keep_answer(
    name: str, question: str, found: Mapping[str, Any], *, backend: str = "eager", precision: str = "fp32"
) -> Path:
    """Write an answer of this process with the command that made it and where it came from.

    Args:
        name: Of the question, for the file.
        question: In words.
        found: The answer.
        backend: What ran, for the file.
        precision: Its number format, for the file.
    """
    device = resolve_device("local").name
    path = result_path(name, device, backend=backend, precision=precision)
    commit = ["git", "rev-parse", "HEAD"]
    answer = {
        "question": question,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": subprocess.run(commit, check=True, capture_output=True, text=True, cwd=RESULTS).stdout.strip(),
        "torch": torch.__version__,
        "machine": {"device": device, "cores": os.cpu_count(), "system": platform.system()},
        **found,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(answer, indent=1) + "\n")
    print(f"kept: {os.path.relpath(path)}")
    return path
