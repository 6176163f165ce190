"""What the scripts of this folder share: where an answer came from, and where it is kept."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from profiler.devices import resolve_device

__all__ = ["RESULTS", "keep_answer", "result_path"]

RESULTS = Path(__file__).resolve().parent / "results"


def result_path(
    name: str, device: str, *, backend: str = "eager", precision: str = "fp32", version: str = torch.__version__
) -> Path:
    """Where the answer to a question is kept, see ``benchmarks/README.md``; ``version`` is torch's."""
    machine = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return RESULTS / f"{name}-{backend}-{precision}-{version.replace('+', '_')}-{machine}.json"


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
