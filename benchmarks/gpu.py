"""What does this project do on a GPU? Twelve questions, one call of under ten minutes.

    python benchmarks/gpu.py --out DIR [--data COCO_FOLDER] [--device cuda|cpu] [--quick]

Each question runs in a process of its own under a time limit, its share of the remaining time, so that one that fails,
hangs or breaks the GPU's context costs the others nothing. Its findings, however it ended, become
``DIR/<question>-<backend>-<precision>-<torch>-<device>.json``; ``failed``, ``not_asked`` and ``skipped`` there say what
is missing, in one line. ``--only kernels`` gives one question all of the time. The project runs from its source folder
or installed (``pip install --no-deps --no-build-isolation --editable .`` needs no network).
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    # started by its path: the folders beside it must not hide packages of their names, and the project's must be found
    places = (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))
    os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]])

from benchmarks.common.answers import argument_parser, command, file_name, write_answer

OPTIONAL = ("pydantic", "pycocotools", "optuna", "onnx", "onnxscript", "onnxruntime", "PIL")
"""A question that lacks one of these is skipped, not failed."""
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
             "kernels.kernel_speed.run_operators", "eager", "fp32", 40),
    Question("training_step", "How fast is a training step in each precision and memory layout, and how large?",
             "training.training_step.run", "eager", "mixed", 100),
    Question("against_torchvision", "How many images per second does a training step process, beside torchvision's?",
             "training.step_against_torchvision.run", "eager", "mixed", 90),
    Question("kernels", "Are the kernels right on the device, and is each worth its place?",
             "kernels.kernel_speed.run", "triton", "mixed", 120),
    Question("profile", "Does the latency table predict whole detectors, and is it the same when profiled again?",
             "latency.profiling.run", "eager", "fp32", 160),
    Question("trained_ap", "Does a detector trained on the GPU end where one trained on the CPU does?",
             "training.trained.run", "eager", "fp32", 130),
    Question("exported", "Does the exported file of a detector trained on the device find what it finds there?",
             "deploy.exported.run", "onnxruntime", "fp32", 40),
    Question("onnxruntime", "Does ONNX Runtime run on the device, compute the same, and how fast?",
             "deploy.runtimes.run_onnxruntime", "onnxruntime", "fp32", 60),
    Question("clocks", "Do other clocks agree with ours, and what do other backends, cold caches and builds change?",
             "latency.clocks.run", "eager", "fp32", 60),
    Question("tensorrt", "Can TensorRT-RTX or TensorRT be imported here, and does an engine of each run?",
             "deploy.runtimes.run_tensorrt", "tensorrt_rtx", "fp32", 30),
    Question("engines", "Does a detector's engine find what the detector finds, how fast, and with what AP?",
             "deploy.engines.run", "tensorrt_rtx", "mixed", 90),
    Question("commands", "Do the commands that people come for work on this GPU, one after the other?",
             "reliability.commands.run", "mixed", "mixed", 120),
)  # fmt: skip


def parse_arguments(arguments: Sequence[str] | None) -> Namespace:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--data", type=Path, help="COCO folder to train on (default: the generated shapes)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="only check that everything runs; not for figures")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help=f"for all of it (default: {TOTAL_S:.0f})")
    parser.add_argument("--only", nargs="+", choices=[question.name for question in QUESTIONS], help="these questions")
    parser.add_argument("--commit", help="of the source, where there is no git")
    for hidden in ("--answer", "--scratch", "--deadline"):
        parser.add_argument(hidden, help=SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every question in its own process and write the answers."""
    args = parse_arguments(arguments)
    if args.answer is not None:
        return answer_one(args)
    began = time.monotonic()
    ended = {"answered": 0, "skipped": 0, "failed": 0}
    with tempfile.TemporaryDirectory(prefix="smnas-gpu-") as folder:
        scratch = Path(folder)
        facts = answer_in_process("machine", args, scratch, 90)
        if "failed" in facts:
            print(f"error: {facts['failed']}", file=sys.stderr)
            return 2
        device, torch = facts["machine"]["device"], facts["versions"]["torch"]
        print(f"{device}, torch {torch}", flush=True)
        questions = [question for question in QUESTIONS if not args.only or question.name in args.only]
        for number, question in enumerate(questions):
            started = datetime.now(UTC)
            left_s = args.seconds - (time.monotonic() - began) - _GRACE_S
            limit_s = left_s * question.share / sum(other.share for other in questions[number:])
            found: dict[str, Any] = {"not_asked": f"the {args.seconds:.0f} s of the whole are over"}
            if limit_s > 5:
                found = answer_in_process(question.name, args, scratch, limit_s)
            state = next((key for key in ("failed", "not_asked") if key in found), "summary")
            ended[{"failed": "failed", "not_asked": "skipped", "summary": "answered"}[state]] += 1
            head = {
                "question": question.text,
                "date": started.isoformat(timespec="seconds"),
                "command": command(),
                "quick": args.quick,
                "limit_s": round(limit_s, 1),
            }
            name = file_name(question.name, question.backend, question.precision, torch, device)
            write_answer(args.out / name, head | facts | found)
            seconds = (datetime.now(UTC) - started).total_seconds()
            label = {"failed": "FAILED: ", "not_asked": "skipped: ", "summary": ""}[state]
            print(f"{question.name} ({seconds:.0f} s): {label}{found.get(state)}", flush=True)
            for part in found.get("skipped", ()):
                print(f"  skipped {part['part']}: {part['reason']}", flush=True)
    counts = ", ".join(f"{count} {name}" for name, count in ended.items())
    print(f"{counts} in {time.monotonic() - began:.0f} s; answers are in {args.out}")
    return 0


def answer_in_process(name: str, args: Namespace, scratch: Path, limit_s: float) -> dict[str, Any]:
    """Run one question in a process of its own; its answer, or what is left of it and how the process ended."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--answer",
        name,
        "--out",
        str(args.out),
        "--scratch",
        str(scratch),
    ]
    words += ["--device", args.device, "--deadline", str(time.time() + limit_s)]
    words += ["--quick"] if args.quick else []
    words += ["--data", str(args.data)] if args.data else []
    words += ["--commit", args.commit] if args.commit else []
    environment = dict(os.environ)
    if name == "kernels" and args.device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    path, log = scratch / f"{name}.json", scratch / f"{name}.log"
    ending = ""
    with log.open("w") as output:
        try:
            code = subprocess.run(
                words, stdout=output, stderr=output, timeout=limit_s + _GRACE_S, env=environment, check=False
            ).returncode
            ending = f"the process ended with code {code}" if code else ""
        except subprocess.TimeoutExpired:
            ending = f"the process did not end within {limit_s:.0f} s and was killed"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if ending and "failed" not in found:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        found["failed"] = f"{ending}: {lines[-1][:300]}" if lines else ending
    return found


def answer_one(args: Namespace) -> int:
    """One question, in its own process: the answer goes to ``scratch/<name>.json``."""
    from benchmarks.common.gpu_question import Answer, OutOfTimeError, Setting, time_limit
    from benchmarks.common.machine import conditions, find_device, one_line, provenance
    from profiler.errors import BackendUnavailableError, UserError

    scratch = Path(args.scratch)
    answer = Answer(scratch / f"{args.answer}.json")
    try:
        device = find_device(args.device)
    except UserError as error:
        answer.put(failed=str(error))
        return 0
    if args.answer == "machine":
        answer.put(**provenance(device, args.commit))
        return 0
    try:
        question = next(question for question in QUESTIONS if question.name == args.answer)
        left_s = float(args.deadline) - time.time()
        setting = Setting(device, args.quick, args.data, scratch, time.monotonic() + 0.9 * left_s)
        answer.put(conditions_before=conditions(device))
        with time_limit(left_s):
            module, _, function = question.function.rpartition(".")
            answer.put(summary=getattr(importlib.import_module(f"benchmarks.{module}"), function)(setting, answer))
    except OutOfTimeError as error:
        answer.put(failed=f"{error}; what is here was found before")
    except BackendUnavailableError as error:
        answer.put(not_asked=str(error))
    except UserError as error:
        answer.put(failed=str(error))
    except Exception as error:  # noqa: BLE001 - the answer of a question that fails is its exception
        missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if missing in OPTIONAL:
            answer.put(not_asked=f"it needs {missing}, which is not installed")
        else:
            answer.put(failed=one_line(error))
    answer.put(conditions_after=conditions(device))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
