"""What does this project do on a GPU? Twelve questions, one call of under ten minutes.

    python benchmarks/gpu.py --out DIR [--data COCO_FOLDER] [--device cuda|cpu] [--quick]

Each question runs in a process of its own under a time limit, its share of what is left of the whole, so that one that
fails, hangs or breaks the GPU's context costs the others nothing. What it found, however it ended, becomes
``DIR/<question>-<backend>-<precision>-<torch>-<device>.json``; ``failed`` and ``skipped`` there say what is missing, in
one line. The project must be installed (``pip install --no-deps --no-build-isolation --editable .`` needs no network).
"""

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.common import record

OPTIONAL = ("pydantic", "pycocotools", "optuna", "onnx", "onnxscript", "onnxruntime", "PIL")
"""A question that lacks one of these is skipped, not failed."""
ROOT = Path(__file__).resolve().parents[1]
TOTAL_S = 540.0
_GRACE_S = 8.0  # a question that ignores its own limit is killed this much later


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        name: First part of its file's name.
        text: The question.
        function: ``topic.module.function`` in ``benchmarks``.
        backend: Second part of the file's name.
        precision: Third part.
        share: Of the time, relative to the others'.
    """

    name: str
    text: str
    function: str
    backend: str
    precision: str
    share: float


QUESTIONS = (
    Question("operators", "Do the operators compute on the device what their references compute on a CPU?",
             "kernels.operators.ask", "eager", "fp32", 40),
    Question("training_step", "How fast is a training step in each precision and memory layout, and how large?",
             "training.training_step.ask", "eager", "mixed", 100),
    Question("against_torchvision", "How many images per second does training take in, beside torchvision's own?",
             "training.step_against_torchvision.ask", "eager", "mixed", 90),
    Question("kernels", "Are the kernels right on the device, and is each worth its place?",
             "kernels.kernel_speed.ask", "triton", "mixed", 120),
    Question("profile", "Does the latency table predict whole detectors, and is it the same when profiled again?",
             "latency.profiling.ask", "eager", "fp32", 160),
    Question("trained_ap", "Does a detector trained on the GPU end where one trained on the CPU does?",
             "training.trained.ask", "eager", "fp32", 130),
    Question("exported", "Does the exported file of a detector trained on the device find what it finds there?",
             "deploy.exported.ask", "onnxruntime", "fp32", 40),
    Question("onnxruntime", "Does ONNX Runtime run on the device, compute the same, and how fast?",
             "deploy.runtimes.ask_onnxruntime", "onnxruntime", "fp32", 60),
    Question("clocks", "Do other clocks agree with ours, and what do other backends, cold caches and builds change?",
             "latency.clocks.ask", "eager", "fp32", 60),
    Question("tensorrt", "Can TensorRT-RTX or TensorRT be imported here, and does an engine of each run?",
             "deploy.runtimes.ask_tensorrt", "tensorrt_rtx", "fp32", 30),
    Question("engines", "Does a detector's engine find what the detector finds, how fast, and with what AP?",
             "deploy.engines.ask", "tensorrt_rtx", "mixed", 90),
    Question("commands", "Do the commands that people come for work on this GPU, one after the other?",
             "reliability.commands.ask", "mixed", "mixed", 120),
)  # fmt: skip


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--data", type=Path, help="COCO folder to train on (default: the generated shapes)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="only see whether everything runs; not for figures")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help=f"for all of it (default: {TOTAL_S:.0f})")
    parser.add_argument("--only", nargs="+", choices=[question.name for question in QUESTIONS], help="these questions")
    parser.add_argument("--commit", help="of the source, where git can not tell")
    for hidden in ("--ask", "--scratch", "--deadline"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Ask every question in its own process and write the answers."""
    settings = parse_arguments(arguments)
    if settings.ask is not None:
        return answer_one(settings)
    began = time.monotonic()
    settings.out.mkdir(parents=True, exist_ok=True)
    ended = {"answered": 0, "skipped": 0, "failed": 0}
    with tempfile.TemporaryDirectory(prefix="smnas-gpu-") as folder:
        scratch = Path(folder)
        machine = ask_in_process("machine", settings, scratch, 90)
        if "failed" in machine:
            print(f"error: {machine['failed']}", file=sys.stderr)
            return 2
        name = machine.pop("file_name")
        print(f"{name[1]}, torch {name[0]}", flush=True)
        asked = [question for question in QUESTIONS if not settings.only or question.name in settings.only]
        for number, question in enumerate(asked):
            started = datetime.now(UTC)
            left_s = settings.seconds - (time.monotonic() - began) - _GRACE_S
            limit_s = left_s * question.share / sum(other.share for other in asked[number:])
            found: dict[str, Any] = {"not_asked": f"the {settings.seconds:.0f} s of the whole are over"}
            if limit_s > 5:
                found = ask_in_process(question.name, settings, scratch, limit_s)
            state = next((key for key in ("failed", "not_asked") if key in found), "summary")
            ended[{"failed": "failed", "not_asked": "skipped", "summary": "answered"}[state]] += 1
            path = settings.out / f"{'-'.join((question.name, question.backend, question.precision, *name))}.json"
            record = {
                "question": question.text,
                "date": started.isoformat(timespec="seconds"),
                "command": shlex.join(["python", *sys.argv]),
                "quick": settings.quick,
                "limit_s": round(limit_s, 1),
                **machine,
                **found,
            }
            path.write_text(as_text(record))
            seconds = (datetime.now(UTC) - started).total_seconds()
            label = {"failed": "FAILED: ", "not_asked": "skipped: ", "summary": ""}[state]
            print(f"{question.name} ({seconds:.0f} s): {label}{found.get(state)}", flush=True)
            for part in found.get("skipped", ()):
                print(f"  skipped {part['part']}: {part['reason']}", flush=True)
    counts = ", ".join(f"{count} {name}" for name, count in ended.items())
    print(f"{counts} in {time.monotonic() - began:.0f} s; answers are in {settings.out}")
    return 0


def ask_in_process(name: str, settings: argparse.Namespace, scratch: Path, limit_s: float) -> dict[str, Any]:
    """Run one question in a process of its own; its answer, or what is left of it and how the process ended."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--ask",
        name,
        "--out",
        str(settings.out),
        "--scratch",
        str(scratch),
    ]
    command += ["--device", settings.device, "--deadline", str(time.time() + limit_s)]
    command += ["--quick"] if settings.quick else []
    command += ["--data", str(settings.data.resolve())] if settings.data else []
    command += ["--commit", settings.commit] if settings.commit else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    if name == "kernels" and settings.device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    path, log = scratch / f"{name}.json", scratch / f"{name}.log"
    ending = ""
    with log.open("w") as output:
        try:
            code = subprocess.run(
                command,
                stdout=output,
                stderr=output,
                timeout=limit_s + _GRACE_S,
                cwd=ROOT,
                env=environment,
                check=False,
            )
            ending = f"the process ended with code {code.returncode}" if code.returncode else ""
        except subprocess.TimeoutExpired:
            ending = f"the process did not end within {limit_s:.0f} s and was killed"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if ending and "failed" not in found:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        found["failed"] = f"{ending}: {lines[-1][:300]}" if lines else ending
    return found


def answer_one(settings: argparse.Namespace) -> int:
    """One question, in its own process: the answer goes to ``scratch/<name>.json``."""
    from benchmarks.common import record
    from profiler.errors import UserError

    scratch = Path(settings.scratch)
    answer = record.Answer(scratch / f"{settings.ask}.json")
    try:
        device = record.find_device(settings.device)
        if settings.ask == "machine":
            answer.put(**describe_machine(device, settings.commit))
            return 0
    except UserError as error:
        answer.put(failed=str(error))
        return 0
    question = next(question for question in QUESTIONS if question.name == settings.ask)
    left_s = float(settings.deadline) - time.time()
    setting = record.Setting(device, settings.quick, settings.data, scratch, time.monotonic() + 0.9 * left_s)
    answer.put(conditions_before=record.conditions(device))
    try:
        with record.time_limit(left_s):
            ask_caught(question, setting, answer)
    except record.OutOfTimeError as error:
        answer.put(failed=f"{error}; what is here was found before")
    answer.put(conditions_after=record.conditions(device))
    return 0


def ask_caught(question: Question, setting: "record.Setting", answer: "record.Answer") -> None:
    """Ask, and write down whatever is raised."""
    from benchmarks.common.record import one_line
    from profiler.errors import BackendUnavailableError, UserError

    try:
        module, _, function = question.function.rpartition(".")
        ask = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        answer.put(summary=ask(setting, answer))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OPTIONAL:
            answer.put(not_asked=f"it needs {missing}, which is not installed")
        else:
            answer.put(failed=one_line(error))
    except BackendUnavailableError as error:
        answer.put(not_asked=str(error))
    except UserError as error:
        answer.put(failed=str(error))
    except Exception as error:  # noqa: BLE001 - the answer of a question that fails is its exception
        answer.put(failed=one_line(error))


def as_text(record: dict[str, Any]) -> str:
    """JSON with a line for every value, and one for every row of a list of rows."""
    lines = []
    for key, value in record.items():
        rows = isinstance(value, list) and value and isinstance(value[0], dict)
        text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if rows else json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def describe_machine(device: Any, commit: str | None) -> dict[str, Any]:
    """What is the same for all answers, and the last two parts of their names."""
    import torch

    from benchmarks.common import record

    torch_version = re.sub(r"[^A-Za-z0-9.]+", "_", str(torch.__version__))
    name = re.sub(r"[^a-z0-9]+", "_", device.name.lower()).strip("_")
    return {
        "file_name": [torch_version, name],
        "device": device.name,
        "machine": record.read_machine(device),
        "versions": record.read_package_versions(),
        "commit": commit or read_commit(),
    }


def read_commit() -> str:
    """The commit of the source, ``+changes`` where the working tree differs from it."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        state = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no git here, and no --commit"
    return found.stdout.strip() + ("+changes" if state.stdout.strip() else "")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
