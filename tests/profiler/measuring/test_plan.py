"""The plan of a profiling run, as literals: nothing is measured here."""

import numpy as np
import pytest
import torch
from torch import nn

from profiler.measuring.plan import Failure, Plan, plan_profile
from profiler.measuring.profile import Progress, progress_of, report_of
from profiler.table.latency_table import Row, Target
from profiler.workload import TensorSpec, Workload

TARGET = Target("device", "backend", "1")


def workload(name: str, device: str = "cpu") -> Workload:
    return Workload(name.upper(), name, nn.Linear(1, 1, device=device), (TensorSpec((1, 1)),))


def ok(name: str, stop_reason: str = "converged", **conditions: object) -> Row:
    return Row(
        name,
        name.upper(),
        TARGET,
        median_ms=1.0,
        low_ms=1.0,
        high_ms=1.0,
        stop_reason=stop_reason,
        conditions=conditions,
    )


def failed(name: str) -> Row:
    return Row(name, name.upper(), TARGET, status="failed", reason=f"{name} ran out of memory")


def plan(names: str, *known: Row, seed: int = 0, value: dict[str, float] | None = None, retry: bool = False) -> Plan:
    workloads = [workload(name) for name in names]
    rows = {row.key: row for row in known}
    return plan_profile(
        workloads, rows, rng=np.random.default_rng(seed), value=value, refresh=("failed",) if retry else ()
    )


def keys(found: Plan) -> str:
    return "".join(one.key for one in found.schedule)


def test_what_the_table_holds_is_not_scheduled() -> None:
    found = plan("abcab", ok("b"), ok("z"), failed("c"), failed("y"))
    assert (keys(found), found.cached) == ("a", 2)
    assert found.failed == (Failure("c", "C", "c ran out of memory"),)


def test_failures_are_scheduled_again_on_demand() -> None:
    found = plan("abc", ok("b"), failed("c"), retry=True)
    assert (sorted(keys(found)), found.cached, found.failed) == (["a", "c"], 1, ())


def test_the_most_valuable_come_first_and_the_rest_in_the_drawn_order() -> None:
    drawn = keys(plan("abcdefgh", seed=3))
    assert sorted(drawn) == sorted("abcdefgh")
    assert drawn == "".join("abcdefgh"[index] for index in np.random.default_rng(3).permutation(8))
    rest = drawn.replace("f", "").replace("b", "")
    assert keys(plan("abcdefgh", seed=3, value={"b": 1.0, "f": 2.0})) == f"fb{rest}"


def test_the_same_draw_is_spent_whatever_is_valuable() -> None:
    rng = np.random.default_rng(0)
    plan_profile([workload(name) for name in "abc"], {}, rng=rng, value={"a": 1.0})
    other = np.random.default_rng(0)
    other.permutation(3)
    assert rng.random() == other.random()


def test_only_what_is_cached_may_be_weightless() -> None:
    workloads = [workload("a", "meta"), workload("b")]
    assert keys(plan_profile(workloads, {"a": ok("a")}, rng=np.random.default_rng(0))) == "b"
    with pytest.raises(ValueError, match=r"real weights.*A is on meta"):
        plan_profile(workloads, {}, rng=np.random.default_rng(0))


def test_progress_and_report_are_read_off_the_rows() -> None:
    found = plan("abcdef", ok("a"), failed("b"))
    assert progress_of(found, [], 9.0) == Progress(2, 6, 2, 1, "", None, 2 / 6)
    measured = [failed("c"), ok("d", "time_limit", disturbances=["load 3.0 on 2 cores"])]
    assert progress_of(found, measured, 3.0, 0.0, "D") == Progress(4, 6, 2, 2, "D", 3.0, 4 / 6)
    assert progress_of(found, measured, 3.0, 1.0, "E") == Progress(4, 6, 2, 2, "E", 1.0, 5 / 6)
    report = report_of(found, measured, 0.02, 3.0)
    assert [one.key for one in report.failed] == ["b", "c"]
    assert (report.measured, report.cached, report.drift, report.seconds) == (2, 2, 0.02, 3.0)
    assert (report.wide, report.disturbed) == (("D",), ("D",))
    assert report.left == tuple(one.name for one in found.schedule if one.key in "ef")


def test_nothing_to_do_has_no_time_left() -> None:
    assert progress_of(plan("a", ok("a")), [], 1.0) == Progress(1, 1, 1, 0, "", 0.0, 1.0)


def test_a_schedule_keeps_its_workloads_as_they_are() -> None:
    one = workload("a")
    (scheduled,) = plan_profile([one, workload("a")], {}, rng=np.random.default_rng(0)).schedule
    assert scheduled is one
    assert torch.equal(scheduled.module.weight, one.module.weight)
