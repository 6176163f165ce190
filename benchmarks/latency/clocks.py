"""Do other clocks agree with ours on this GPU, and what do other backends, cold caches and new builds change?"""

import importlib
import statistics
from typing import Any

import numpy as np

from benchmarks.common.detectors import NANO_BASELINE, deployed
from benchmarks.common.gpu_question import Answer, Setting
from benchmarks.common.machine import one_line
from benchmarks.common.turns import largest_error
from profiler.backends import Backend, get_backend
from profiler.errors import BackendUnavailableError, UserError
from profiler.measuring.build_variance import build_variance
from profiler.timing.cold import flusher
from profiler.timing.measurement import TimingSettings, measure
from profiler.workload import Workload, random_inputs
from smnas.latency.workloads import end_to_end_workload, inference_workloads

_TIMING = TimingSettings(relative_half_width=0.005, time_limit_s=0.5, max_samples=600)
_OTHERS = ("compile", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt_rtx", "tensorrt")


def run(setting: Setting, answer: Answer) -> str:
    """Ten workloads by three clocks; then, of a few, cold runs, builds anew and the backends beside eager."""
    detector = deployed(NANO_BASELINE)
    workloads = [end_to_end_workload(detector), *inference_workloads(detector)][: 3 if setting.quick else 10]
    eager = get_backend("eager", setting.device)
    differences: dict[str, list[float]] = {}
    for workload in workloads:
        row = _by_clock(setting, eager, workload)
        answer.add("clocks", row)
        for name, difference in row["against_ours"].items():
            differences.setdefault(name, []).append(abs(difference))
    flush, size = flusher(setting.device)
    few = workloads[1 : 2 if setting.quick else 5]
    for workload in few:
        with eager.prepare(workload.module, random_inputs(workload.inputs, 0)) as session:
            hot = measure(session.run, timer=session.timer, settings=_TIMING)
            cold = measure(session.run, timer=session.timer, settings=_TIMING, before_each=flush)
        variance = build_variance(workload, eager, builds=3, timing=_TIMING)
        answer.add(
            "cold_and_builds",
            {
                "workload": workload.name,
                "flushed_bytes": size,
                "hot_ms": hot.median_ms,
                "cold_ms": cold.median_ms,
                "cold_against_hot": cold.median_ms / hot.median_ms,
                "builds_ms": variance.medians_ms,
                "build_spread": variance.spread,
                "builds_differ": variance.differs,
            },
        )
    others = [_beside_eager(setting, answer, name, eager, few[:1] if setting.quick else few) for name in _OTHERS]
    clocks = ", ".join(f"{name} within {max(found):.1%}" for name, found in differences.items())
    return f"{clocks}; {'; '.join(others)}"


def _by_clock(setting: Setting, eager: Backend, workload: Workload) -> dict[str, Any]:
    from torch.utils.benchmark import Timer

    with eager.prepare(workload.module, random_inputs(workload.inputs, 0)) as session:
        ours = [measure(session.run, timer=session.timer, settings=_TIMING).median_ms for _ in range(3)]
        timer = Timer("run()", globals={"run": session.run}, num_threads=1)
        found = {"torch.utils.benchmark": [timer.blocked_autorange(min_run_time=0.2).median * 1e3 for _ in range(3)]}
        try:
            do_bench: Any = (
                importlib.import_module("triton.testing").do_bench if setting.device.kind == "cuda" else None
            )
        except ImportError:
            do_bench = None
        if do_bench is not None:
            found["triton do_bench (flushes L2)"] = [float(do_bench(session.run, return_mode="median"))]
    middle = statistics.median(ours)
    return {
        "workload": workload.name,
        "ours_ms": ours,
        "others_ms": found,
        "against_ours": {name: statistics.median(times) / middle - 1 for name, times in found.items()},
    }


def _beside_eager(setting: Setting, answer: Answer, name: str, eager: Backend, workloads: list[Workload]) -> str:
    try:
        backend = get_backend(name, setting.device)
    except (BackendUnavailableError, UserError) as error:
        answer.skip(name, str(error))
        return f"{name} not here"
    ratios = []
    for workload in workloads:
        row: dict[str, Any] = {"backend": name, "version": backend.version, "workload": workload.name}
        inputs = random_inputs(workload.inputs, 0)
        try:
            with backend.prepare(workload.module, inputs) as ours, eager.prepare(workload.module, inputs) as reference:
                pairs = list(zip(ours.outputs(), reference.outputs(), strict=True))
                row["largest_error"] = max(largest_error(a, b) for a, b in pairs)
                row["largest_value"] = max(float(np.abs(b).max(initial=0.0)) for _, b in pairs)
                row["ms"] = measure(ours.run, timer=ours.timer, settings=_TIMING).median_ms
                row["eager_ms"] = measure(reference.run, timer=reference.timer, settings=_TIMING).median_ms
                row["session"] = ours.describe()
            ratios.append(row["eager_ms"] / row["ms"])
        except Exception as error:  # noqa: BLE001 - a workload that does not run is its own answer
            row["failed"] = one_line(error)
        answer.add("backends", row)
    speed = f"{np.median(ratios):.2f} times eager's speed" if ratios else "nothing ran"
    return f"{name}: {len(ratios)} of {len(workloads)} run, {speed}"
