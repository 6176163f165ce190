"""Do the commands that people come for work on this GPU, one after the other, as they would be typed?"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common.gpu_question import Answer, Setting
from profiler.backends import get_backend
from profiler.errors import BackendUnavailableError, UserError
from smnas.data.coco import CocoFolder
from smnas.data.shapes import generate_shapes

_BACKENDS = ("tensorrt_rtx", "onnxruntime-cuda", "eager")
_TAIL = 400


def run(setting: Setting, answer: Answer) -> str:
    """Doctor, a search, its detector evaluated and detecting as a file and as an engine, and a profile with an audit.

    The backend is the first of those in :data:`_BACKENDS` that runs here; the search is as short as one can be.
    """
    backend, reasons = _first_backend(setting)
    for reason in reasons:
        answer.skip("backend", reason)
    quick = setting.quick
    gpu = "local" if setting.device.kind == "cuda" else "cpu"
    precision = "fp16" if backend == "tensorrt_rtx" else "fp32"
    measured = ["--gpu", gpu, "--backend", backend, "--precision", precision, "--table", "latency.db"]
    searched = ["--trials", "1,1" if quick else "2,2", "--epochs", "1", "--final-epochs", "2", "--top", "1"]
    budget = ["--budget", "5s" if quick else "15s", "--audit", "2" if quick else "8"]
    folder = CocoFolder(generate_shapes(setting.scratch / "few", train=32 if quick else 160, val=8 if quick else 40))
    data = ["--data", str(folder.root)]
    val = folder.split("val")
    some_images = [str(val.path(index)) for index in range(min(len(val), 16))]
    engine = ["--format", "tensorrt-rtx", "--precision", "fp16", "--out", "best.engine"]
    jobs: dict[str, list[str]] = {
        "doctor": ["doctor", "--json"],
        "search": ["search", "--preset", "nano", "--out", "run", *data, *measured, *searched, "--json"],
        "eval": ["eval", "--model", "run", *data, "--json"],
        "detect": ["detect", "--model", "run", "--json", *some_images],
        "export": ["export", "--model", "run", *data, *engine, "--json"],
        "eval the engine": ["eval", "--model", "best.engine", *data, "--json"],
        "detect with the engine": ["detect", "--model", "best.engine", "--json", *some_images],
        "profile": ["profile", "--preset", "nano", "--classes", "6", *measured, *budget, "--json"],
    }
    texts = []
    for name, words in jobs.items():
        if backend != "tensorrt_rtx" and "best.engine" in words:
            answer.skip(name, "engines need TensorRT-RTX")
            continue
        row = _run(words, setting.scratch, max(1.0, setting.left_s))
        answer.add("commands", {"command": " ".join(["smnas", *words[:20]]), **row})
        texts.append(f"{name} exit {row['exit_code']} in {row['seconds']:.0f} s")
        if row["exit_code"] != 0:
            texts[-1] += f" ({row['error_tail'][-200:]})"
    return "; ".join(texts)


def _first_backend(setting: Setting) -> tuple[str, list[str]]:
    reasons = []
    for name in _BACKENDS:
        try:
            get_backend(name, setting.device)
        except (BackendUnavailableError, UserError) as error:
            reasons.append(f"{name}: {error}")
        else:
            return name, reasons
    raise BackendUnavailableError("; ".join(reasons))


def _run(words: list[str], folder: Path, limit_s: float) -> dict[str, Any]:
    began = time.monotonic()
    command = [sys.executable, "-m", "smnas", *words]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    try:
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        tail = (error.stderr or b"").decode(errors="replace")[-_TAIL:]
        return {"exit_code": "none: the time was over", "seconds": time.monotonic() - began, "error_tail": tail}
    row: dict[str, Any] = {"exit_code": ended.returncode, "seconds": time.monotonic() - began}
    row["error_tail"] = ended.stderr[-_TAIL:]
    try:
        row["output"] = _shortened(json.loads(ended.stdout))
    except ValueError:
        row["output_tail"] = ended.stdout[-_TAIL:]
    return row


def _shortened(value: Any, most: int = 12) -> Any:
    """A document with its long lists cut."""
    if isinstance(value, dict):
        return {name: _shortened(item, most) for name, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item, most) for item in value[:most]] + (
            [f"and {len(value) - most} more"] * (len(value) > most)
        )
    return value
