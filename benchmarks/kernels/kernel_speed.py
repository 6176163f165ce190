"""Are the kernels right on the device, and is each worth its place?

Every way of doing the same work takes turns with the others in random order, so a ratio is of neighbours in time. The
share of the bandwidth is what a kernel has to read and write at least, over its time and over the bandwidth of a copy
that was timed in the same turns.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from benchmarks.common.detectors import NANO_BASELINE, TINY_DENSE, prepared_batch
from benchmarks.common.gpu_question import Answer, Setting
from benchmarks.common.machine import one_line
from benchmarks.common.turns import interval, ratios, take_turns
from benchmarks.kernels.box_kernel_cases import nms_cases, pooling_cases
from benchmarks.kernels.kernel_cases import Case, norm_cases, standardization_cases
from benchmarks.training.training_step import Trainer
from kernels.dispatch import Choice
from profiler.timing.measurement import CudaTimer, Timer, WallTimer
from smnas.space.architecture import Architecture

AIMS = {
    "kernel against eager": 2.0,
    "share of bandwidth": 0.7,
    "training step against eager": 1.3,
    "RoIAlign against torchvision": 3.0,
    "NMS against torchvision": 2.0,
}
"""What a kernel must reach to become the default."""
_SPAN_MS = 2.0  # runs of one turn together, so that the clock's own cost does not count
_ROUNDS = 9


def run(setting: Setting, answer: Answer) -> str:
    """Check and time every case, then whether training ends the same."""
    answer.put(aims=AIMS, interpreted=setting.device.kind == "cpu")
    cases = _time_cases(setting, answer, setting.deadline - 0.15 * setting.left_s)
    return f"{cases}; {_train_alike(setting, answer)}"


def run_operators(setting: Setting, answer: Answer) -> str:
    """The same cases with the default choice of kernels: are values and gradients those of the references?"""
    largest: dict[str, float] = {}
    failed = 0
    for case in _cases(setting, answer, setting.deadline):
        row: dict[str, Any] = {"operator": case.operator, "shape": case.shape, "dtype": case.dtype}
        try:
            row["relative_error"] = case.compare("measured")
            if case.dtype == "float32":
                largest[case.operator] = max(largest.get(case.operator, 0.0), *row["relative_error"].values())
        except Exception as error:  # noqa: BLE001 - an operator that does not run is this case's answer
            failed += 1
            row["failed"] = one_line(error)
        answer.add("rows", row)
    errors = ", ".join(f"{operator} {error:.1e}" for operator, error in largest.items())
    return f"largest float32 errors: {errors}; {failed} cases failed"


def _cases(setting: Setting, answer: Answer, deadline: float) -> Iterator[Case]:
    """One case of every operator, then the next ones, until the deadline."""
    kinds = [
        cases(setting.place, quick=setting.quick)
        for cases in (nms_cases, standardization_cases, pooling_cases, norm_cases)
    ]
    left = 0
    for case in (case for of_each in zip_longest(*kinds) for case in of_each if case is not None):
        if time.monotonic() < deadline:
            yield case
        else:
            left += 1
    if left:
        answer.skip(f"{left} cases", "the time was over")


def _time_cases(setting: Setting, answer: Answer, deadline: float) -> str:
    timer: Timer = CudaTimer(setting.device.index) if setting.device.kind == "cuda" else WallTimer()
    source = torch.empty((1 if setting.quick else 256) * 2**20 // 4, device=setting.place)
    target = torch.empty_like(source)
    reached: dict[str, list[float]] = {}
    failed = 0
    worst = 0.0
    for case in _cases(setting, answer, deadline):
        row: dict[str, Any] = {"operator": case.operator, "shape": case.shape, "dtype": case.dtype}
        try:
            row["relative_error"] = case.compare("triton")
            runs = {**case.runs, "copy": lambda: target.copy_(source)}
            times = _in_turns(runs, timer, rounds=2 if setting.quick else _ROUNDS)
            row |= _figures(case, times, 2 * source.numel() * 4)
            if case.dtype == "float32":
                worst = max(worst, *row["relative_error"].values())
            reached.setdefault(case.operator, []).append(row["kernel_against"]["eager"]["median"])
        except Exception as error:  # noqa: BLE001 - a case that does not run is its own answer
            failed += 1
            row["failed"] = one_line(error)
        answer.add("rows", row)
    speeds = ", ".join(f"{operator} {min(found):.2f} to {max(found):.2f}" for operator, found in reached.items())
    return f"times eager's speed: {speeds}; largest float32 error {worst:.1e}; {failed} cases failed"


def _in_turns(runs: dict[str, Callable[[], object]], timer: Timer, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of one run of each, turn by turn."""
    counts = {}
    for name, run in runs.items():
        run()  # compiles
        counts[name] = max(1, round(_SPAN_MS * 1e6 / max(timer.elapsed_ns(_quiet(run), 1), 1)))

    def timed(name: str) -> float:
        return timer.elapsed_ns(_quiet(runs[name]), counts[name]) / counts[name] / 1e6

    return take_turns({name: partial(timed, name) for name in runs}, rounds)


def _quiet(run: Callable[[], object]) -> Callable[[], None]:
    def quiet() -> None:
        run()

    return quiet


def _figures(case: Case, times: dict[str, list[float]], copied_bytes: int) -> dict[str, Any]:
    kernel = times["kernel"]
    found: dict[str, Any] = {"ms": {name: statistics.median(each) for name, each in times.items()}, "raw_ms": times}
    found["kernel_against"] = {
        name: interval(ratios(each, kernel)) for name, each in times.items() if name not in ("kernel", "copy")
    }
    if case.least_bytes:
        # of the bytes a second that the copy moved in the same turn
        shares = [
            case.least_bytes / ours / (copied_bytes / copy) for ours, copy in zip(kernel, times["copy"], strict=True)
        ]
        found["share_of_bandwidth"] = interval(shares)
    return found


def _train_alike(setting: Setting, answer: Answer) -> str:
    """Losses of one run with and without kernels, beside those of the same run twice without."""
    architecture, batch_size, steps = (TINY_DENSE, 1, 3) if setting.quick else (NANO_BASELINE, 8, 200)
    parsed = Architecture.parse(architecture)
    batch = prepared_batch(parsed, batch_size)
    variants: dict[str, Choice] = {"without": "torch", "with": "triton", "without again": "torch"}
    trainers = {
        name: Trainer(
            setting,
            parsed,
            "small",
            batch_size,
            "off",
            channels_last=False,
            batch=batch,
            steps=1,
            kernels=kernels,
            learning_rate=0.01,
        )
        for name, kernels in variants.items()
    }
    losses: dict[str, list[float]] = {name: [] for name in trainers}
    for done in range(steps):
        if done >= 3 and setting.left_s < 2:
            break
        for name, trainer in trainers.items():
            losses[name] += trainer.losses(1)
    steps = len(losses["with"])
    base = np.array(losses["without"])
    apart = {name: float(np.abs(np.array(each) / base - 1).max()) for name, each in losses.items() if name != "without"}
    tail = {name: float(np.mean(each[-20:])) for name, each in losses.items()}
    answer.put(trained_alike={"architecture": architecture, "steps": steps, "losses": losses, "largest_apart": apart})
    return (
        f"after {steps} steps the loss is {tail['with']:.4f} with kernels, {tail['without']:.4f} and "
        f"{tail['without again']:.4f} without"
    )
