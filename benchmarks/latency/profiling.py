"""Does the latency table predict whole detectors on a GPU, and does profiling twice give the same table?"""

import statistics
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.common.detectors import NANO_BASELINE, SMALL_BASELINE, deployed
from benchmarks.common.gpu_question import Answer, Setting
from profiler.backends import get_backend
from profiler.measuring.profile import ProfileSettings, measurement_target, profile_workloads
from profiler.prediction.predict import LatencyModel, sum_parts
from profiler.table.latency_table import LatencyTable, Row
from profiler.timing.measurement import TimingSettings
from profiler.workload import Workload
from smnas.latency.workloads import end_to_end_workload, inference_workloads

NANO_CANDIDATES = (
    "basicblock_8_1-21-21-21+c4+rpn+rcnn_128+96x96",
    "basicblock_24_11-21-2+fpn_3-5_32+rpn+rcnn_128+128x128",
    "basicblock_24_1-2-2+fpn_2-4_48+rpn+rcnn_128+128x128",
    "basicblock_12_11-21-21+fpn_2-5_32+norpn+retina_32_2+160x160",
    "basicblock_16_1-2-2+fpn_2-4_32+rpn+cascade_3_64+128x128",
    "basicblock_8_1-2-2+fpn_3-5_48+norpn+retina_64_1+160x160",
)
"""The first six draws of ``sample_structural(load_space("nano"), np.random.default_rng(0))``, written out."""


def run(setting: Setting, answer: Answer) -> str:
    """Profile blocks and detectors twice, predict each detector from a fit on the others, compare the two tables."""
    names: tuple[str, ...] = (*NANO_CANDIDATES, SMALL_BASELINE)
    if setting.quick:
        names = (NANO_CANDIDATES[0], NANO_CANDIDATES[2], NANO_BASELINE)
        answer.skip("four of the candidates and the small baseline", "--quick profiles three detectors")
    backend = get_backend("eager", setting.device)
    detectors = [deployed(name) for name in names]
    parts = [inference_workloads(detector) for detector in detectors]
    networks = [end_to_end_workload(detector) for detector in detectors]
    part_timing = TimingSettings(time_limit_s=0.05 if setting.quick else 0.25, max_samples=400)
    whole_timing = TimingSettings(time_limit_s=0.3 if setting.quick else 1.0, max_samples=400)
    answer.put(
        part_timing=vars(part_timing),
        whole_timing=vars(whole_timing),
        timer="CudaTimer" if setting.device.kind == "cuda" else "WallTimer",
    )

    jobs: tuple[tuple[Literal["part", "whole"], list[Workload], TimingSettings], ...] = (
        ("part", [part for of_one in parts for part in of_one], part_timing),
        ("whole", networks, whole_timing),
    )
    tables: list[dict[str, Row]] = []
    target = measurement_target(backend)
    prediction = ""
    for number in (1, 2):
        path = setting.scratch / f"latency-{number}.db"
        path.unlink(missing_ok=True)
        with LatencyTable(path) as table:
            rng = np.random.default_rng(number)
            for kind, workloads, timing in jobs:
                blocks, whole = ([], workloads) if kind == "whole" else (workloads, [])
                settings = ProfileSettings(timing=timing)
                report = profile_workloads(blocks, table, backend, networks=whole, rng=rng, settings=settings)
                answer.add(
                    "profiles",
                    {
                        "table": number,
                        "kind": kind,
                        **vars(report),
                        "failed": len(report.failed),
                        "failures": [vars(failure) for failure in report.failed],
                    },
                )
            tables.append(table.current(target))
        answer.put(**{f"table_{number}": [_described(row) for row in tables[-1].values()]})
        if number == 1:
            prediction = _predict(answer, names, parts, networks, tables[0])
    return f"{prediction}; {_compare(answer, *tables)}"


def _described(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "key": row.key,
        "kind": row.kind,
        "reason": row.reason,
        "median_ms": row.median_ms,
        "low_ms": row.low_ms,
        "high_ms": row.high_ms,
        "stop_reason": row.stop_reason,
        "inner_runs": row.inner_runs,
        "flops": row.flops,
        "samples_ms": [float(f"{sample:.4g}") for sample in row.samples_ms],
    }


def _predict(
    answer: Answer,
    names: Sequence[str],
    parts: Sequence[Sequence[Workload]],
    networks: Sequence[Workload],
    rows: dict[str, Row],
) -> str:
    """Each detector from a fit on all the others."""
    usable = [
        (name, sum_parts([part.key for part in of_one], rows), rows[whole.key])
        for name, of_one, whole in zip(names, parts, networks, strict=True)
        if rows[whole.key].status == "ok" and all(rows[part.key].status == "ok" for part in of_one)
    ]
    for name in set(names) - {name for name, _, _ in usable}:
        answer.add("predictions", {"architecture": name, "failed": "the detector or one of its blocks has no latency"})
    measured = [row.median_ms or 0.0 for _, _, row in usable]
    errors, inside = [], 0
    for index, (name, total, row) in enumerate(usable):
        others = [place for place in range(len(usable)) if place != index]
        model = LatencyModel.fit([usable[place][1] for place in others], [measured[place] for place in others])
        predicted = model.predict(total)
        error = predicted.ms / measured[index] - 1
        errors.append(abs(error))
        inside += predicted.low_ms <= measured[index] <= predicted.high_ms
        answer.add(
            "predictions",
            {
                "architecture": name,
                "parts": total.count,
                "sum_ms": total.ms,
                "scale": model.scale,
                "per_part_ms": model.per_part_ms,
                "predicted_ms": predicted.ms,
                "predicted_low_ms": predicted.low_ms,
                "predicted_high_ms": predicted.high_ms,
                "measured_ms": row.median_ms,
                "measured_low_ms": row.low_ms,
                "measured_high_ms": row.high_ms,
                "relative_error": error,
            },
        )
    answer.put(
        median_abs_relative_error=statistics.median(errors) if errors else None,
        inside_their_interval=inside,
        predicted=len(usable),
    )
    worst = f", at most {max(errors):.1%}" if errors else ""
    middle = f"{np.median(errors):.1%}" if errors else "none"
    return f"{len(usable)} detectors predicted, median error {middle}{worst}, {inside} inside their intervals"


def _compare(answer: Answer, first: dict[str, Row], second: dict[str, Row]) -> str:
    """How far the second table is from the first, row by row."""
    texts = []
    for kind in ("part", "whole"):
        changes = [
            other.median_ms / row.median_ms - 1
            for key, row in first.items()
            if row.kind == kind
            and (other := second.get(key)) is not None
            and row.median_ms is not None
            and other.median_ms is not None
        ]
        sizes = [abs(change) for change in changes]
        answer.add(
            "profiled_again",
            {
                "kind": kind,
                "rows": len(changes),
                "median_change": statistics.median(changes) if changes else None,
                "median_abs_change": statistics.median(sizes) if sizes else None,
                "largest_abs_change": max(sizes, default=None),
                "within_2_percent": sum(size <= 0.02 for size in sizes),
            },
        )
        if sizes:
            texts.append(f"{len(sizes)} {kind}s change by {np.median(sizes):.1%} (median), {max(sizes):.1%} at most")
    return "profiled again: " + ", ".join(texts)
