"""Profiling: what is missing is measured once, failures are rows, a killed run goes on where it stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from profiler.backends import get_backend
from profiler.devices import Device, cpu_device
from profiler.errors import UserError
from profiler.measuring.drift import reference_workload
from profiler.measuring.measured_row import Visits
from profiler.measuring.plan import Failure, missing
from profiler.measuring.profile import (
    Caches,
    ProfileReport,
    ProfileSettings,
    Progress,
    measurement_target,
    profile_workloads,
)
from profiler.table.latency_table import LatencyTable, Row, Target, pack_samples
from profiler.table.validate import validate
from profiler.timing import DEFAULT_ROUNDS
from profiler.timing.cold import cache_bytes, cold_key
from profiler.timing.measurement import TimingSettings, WallTimer
from profiler.workload import TensorSpec, Workload


class Lasting(nn.Module):
    """Takes as many nanoseconds as it says, on the pretended clock."""

    def __init__(self, duration_ns: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.duration_ns = duration_ns
        self.error = error
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class PretendBackend:
    """Runs nothing: its clock moves by the module's own duration, times ``slowdown``."""

    def __init__(self) -> None:
        self.name = "pretend"
        self.version = "1"
        self.precisions: tuple[str, ...] = ("fp32",)
        self.device = Device("pretended device", "cpu")
        self.threads = 1
        self.now = 0
        self.slowdown = 1.0
        self.prepared: list[float] = []

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor], precision: str = "fp32") -> "PretendSession":
        duration = getattr(module, "duration_ns", 1_000_000)
        self.prepared.append(duration)
        error = getattr(module, "error", None)
        if error is not None:
            raise error
        return PretendSession(self, duration)

    def prepare_many(
        self, items: Sequence[tuple[nn.Module, Sequence[Tensor]]], precision: str = "fp32"
    ) -> "list[Callable[[], PretendSession]]":
        return [partial(self.prepare, *item, precision) for item in items]


class PretendSession:
    def __init__(self, backend: PretendBackend, duration_ns: int) -> None:
        self._backend = backend
        self._duration_ns = duration_ns
        self.timer = WallTimer(lambda: backend.now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def run(self) -> None:
        self._backend.now += round(self._duration_ns * self._backend.slowdown)

    def outputs(self) -> tuple[NDArray[Any], ...]:
        return ()

    def describe(self) -> dict[str, Any]:
        return {"pretended": True}


def workload(milliseconds: int, error: BaseException | None = None) -> Workload:
    module = Lasting(milliseconds * 1_000_000, error)
    return Workload(f"block {milliseconds}", f"block|{milliseconds}", module, (TensorSpec((1, 3)),))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.measuring.profile.time.sleep", lambda _: None)


@pytest.fixture
def backend() -> PretendBackend:
    return PretendBackend()


@pytest.fixture
def table(tmp_path: Path) -> Any:
    with LatencyTable(tmp_path / "latency.db") as table:
        yield table


def profile(
    workloads: Sequence[Workload], table: LatencyTable, backend: PretendBackend, seed: int = 0, **options: Any
) -> ProfileReport:
    names = ("value", "reference", "on_progress", "waiting", "more")
    others = {name: options.pop(name) for name in names if name in options}
    settings = ProfileSettings(**{"rounds": 1, **options})
    return profile_workloads(workloads, table, backend, rng=np.random.default_rng(seed), settings=settings, **others)


def latencies(table: LatencyTable) -> dict[str, float | None]:
    return {row.key: row.median_ms for row in table.rows()}


def test_every_workload_gets_its_own_latency(table: LatencyTable, backend: PretendBackend) -> None:
    report = profile([workload(value) for value in (3, 1, 7)], table, backend)
    assert (report.measured, report.cached, report.failed, report.wide) == (3, 0, (), ())
    assert latencies(table) == {"block|3": 3.0, "block|1": 1.0, "block|7": 7.0}
    row = table.lookup("block|3", measurement_target(backend))
    assert row is not None
    assert row.target == Target("pretended device", "pretend", "1", "fp32", 1, 1)
    assert row.parameters == 3
    assert row.flops == 0
    assert row.stop_reason == "converged"
    assert set(row.samples_ms) == {3.0}
    assert row.conditions["session"] == {"pretended": True}
    assert row.conditions["versions"]["torch"] == torch.__version__
    assert row.conditions["before"]["cpus"] == row.conditions["after"]["cpus"] == os.cpu_count()
    assert row.reference_drift == 0.0


def test_a_hit_costs_no_measuring(table: LatencyTable, backend: PretendBackend) -> None:
    workloads = [workload(value) for value in range(1, 6)]
    profile(workloads[:3], table, backend)
    backend.prepared.clear()
    report = profile(workloads, table, backend, reference_every=0)
    assert (report.measured, report.cached) == (2, 3)
    assert sorted(backend.prepared) == [4_000_000, 5_000_000]
    backend.prepared.clear()
    report = profile(workloads, table, backend)
    assert (report.measured, report.cached) == (0, 5)
    assert report.drift is None
    assert backend.prepared == []


def test_one_key_is_measured_once(table: LatencyTable, backend: PretendBackend) -> None:
    report = profile([workload(2), workload(2), workload(3)], table, backend, reference_every=0)
    assert report.measured == 2
    assert len(backend.prepared) == 2


def test_a_cached_workload_needs_no_weights(table: LatencyTable, backend: PretendBackend) -> None:
    profile([workload(2)], table, backend)
    with torch.device("meta"):
        weightless = [workload(2), workload(3), workload(3)]
    assert [found.key for found in missing(weightless, table, measurement_target(backend))] == ["block|3"]
    with pytest.raises(ValueError, match=r"real weights.*block 3"):
        profile(weightless, table, backend)
    assert profile(weightless[:1], table, backend).cached == 1


def test_other_terms_are_measured_anew(table: LatencyTable, backend: PretendBackend) -> None:
    profile([workload(2)], table, backend)
    backend.version = "2"
    assert profile([workload(2)], table, backend).measured == 1
    assert profile([workload(2)], table, backend, batch=4).measured == 1
    assert table.count() == 3


def test_a_failure_is_a_row_and_the_rest_goes_on(table: LatencyTable, backend: PretendBackend) -> None:
    broken = workload(2, RuntimeError("no kernel for this shape\nwith pages of\nadvice"))
    starved = workload(3, MemoryError())
    report = profile([workload(1), broken, starved, workload(4)], table, backend)
    assert report.measured == 4
    assert set(report.failed) == {
        Failure("block|2", "block 2", "RuntimeError: no kernel for this shape"),
        Failure("block|3", "block 3", "MemoryError"),
    }
    assert latencies(table) == {"block|1": 1.0, "block|2": None, "block|3": None, "block|4": 4.0}


def test_inputs_that_no_memory_can_hold_are_a_failure_too(table: LatencyTable, backend: PretendBackend) -> None:
    huge = Workload("huge", "huge", Lasting(1), (TensorSpec((1 << 30, 1 << 30)),))
    report = profile([workload(1), huge, workload(4)], table, backend)
    assert [failure.key for failure in report.failed] == ["huge"]
    assert latencies(table) == {"block|1": 1.0, "huge": None, "block|4": 4.0}


def test_a_failure_is_remembered_until_asked_again(table: LatencyTable, backend: PretendBackend) -> None:
    profile([workload(2, RuntimeError("no memory"))], table, backend)
    report = profile([workload(2)], table, backend)
    assert (report.measured, report.cached) == (0, 1)
    assert report.failed == (Failure("block|2", "block 2", "RuntimeError: no memory"),)
    report = profile([workload(2)], table, backend, refresh=("failed",))
    assert (report.measured, report.cached, report.failed) == (1, 0, ())
    assert latencies(table) == {"block|2": 2.0}
    assert [row.status for row in table.rows(superseded=True)] == ["failed", "ok"]


def test_the_users_mistake_stops_the_run(table: LatencyTable, backend: PretendBackend) -> None:
    with pytest.raises(UserError, match="runs fp32, but got 'fp16'"):
        profile([workload(2)], table, backend, precision="fp16")
    with pytest.raises(UserError, match="licence"):
        profile([workload(2, UserError("a licence is needed"))], table, backend)
    assert table.count() == 0


def test_an_interrupt_keeps_what_was_finished(table: LatencyTable, backend: PretendBackend) -> None:
    workloads = [workload(value) for value in range(1, 6)]
    seen: list[Progress] = []

    def interrupt_after_two(progress: Progress) -> None:
        seen.append(progress)
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(workloads, table, backend, on_progress=interrupt_after_two)
    assert table.count() == 2
    report = profile(workloads, table, backend)
    assert (report.measured, report.cached) == (3, 2)


def test_progress_counts_up_and_time_left_ends_at_zero(table: LatencyTable, backend: PretendBackend) -> None:
    profile([workload(9), workload(8, RuntimeError("no"))], table, backend)
    events: list[Progress] = []
    broken = workload(4, RuntimeError("no"))
    profile([workload(9), workload(8), workload(1), broken, workload(5)], table, backend, on_progress=events.append)
    assert [event.done for event in events] == [2, 3, 4, 5]
    assert {event.total for event in events} == {5}
    assert {event.cached for event in events} == {2}
    assert events[0].failed == 1
    assert events[-1].failed == 2
    assert events[0].name == ""
    assert {event.name for event in events[1:]} == {"block 1", "block 4", "block 5"}
    assert events[0].seconds_left is None
    assert events[-1].seconds_left == 0.0
    done: list[Progress] = []
    profile([workload(9)], table, backend, on_progress=done.append)
    assert [(event.done, event.total, event.seconds_left) for event in done] == [(1, 1, 0.0)]


def test_the_order_is_random_and_seeded(tmp_path: Path) -> None:
    def order(seed: int) -> list[float]:
        backend = PretendBackend()
        with LatencyTable(tmp_path / f"{time.monotonic_ns()}.db") as table:
            profile([workload(value) for value in range(1, 13)], table, backend, seed=seed, reference_every=0)
        return backend.prepared

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != sorted(order(1))


def test_drift_of_the_reference_is_reported_and_stored(table: LatencyTable, backend: PretendBackend) -> None:
    def throttle(progress: Progress) -> None:
        if progress.done == 4:
            backend.slowdown = 1.25

    workloads = [workload(value) for value in range(1, 9)]
    report = profile(workloads, table, backend, reference_every=2, on_progress=throttle)
    assert report.drift == pytest.approx(0.25)
    drifts = [row.reference_drift for row in table.rows()]
    assert drifts[:4] == [0.0] * 4
    assert drifts[4:] == pytest.approx([0.25] * 4)
    readings = [row.conditions["reference_ms"] for row in table.rows()]
    assert readings[4:] == pytest.approx([1.25 * readings[0]] * 4)
    steady = profile([workload(20), workload(21)], table, backend)
    assert steady.drift == 0.0


def test_an_unsteady_measurement_is_named(table: LatencyTable, backend: PretendBackend) -> None:
    report = profile([workload(500)], table, backend, timing=TimingSettings(time_limit_s=1.2))
    assert report.wide == ("block 500",)
    row = table.lookup("block|500", measurement_target(backend))
    assert row is not None
    assert row.stop_reason == "time_limit"


def test_a_module_whose_operations_can_not_be_counted_is_still_measured(
    table: LatencyTable, backend: PretendBackend
) -> None:
    class Branching(Lasting):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    profile([Workload("branch", "branch", Branching(2_000_000), (TensorSpec((1, 3)),))], table, backend)
    row = table.lookup("branch", measurement_target(backend))
    assert row is not None
    assert (row.median_ms, row.flops) == (2.0, None)
    assert "flops_error" in row.conditions


def test_the_reference_workload_is_fixed_and_leaves_the_seed_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = reference_workload(), reference_workload()
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", "onnxruntime"])
def test_real_convolutions_cost_more_the_bigger_they_are(name: str, table: LatencyTable) -> None:
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (extra cpu or gpu)")
    backend = get_backend(name)
    small, large = (
        Workload(f"conv {c}", f"conv3x3 {c}|1x{c}x32x32", nn.Conv2d(c, c, 3, bias=False), (TensorSpec((1, c, 32, 32)),))
        for c in (8, 64)
    )
    wrong = Workload("wrong", "wrong", nn.Conv2d(8, 8, 3), (TensorSpec((1, 4, 32, 32)),))
    settings = ProfileSettings(timing=TimingSettings(time_limit_s=0.3))
    report = profile_workloads([small, large, wrong], table, backend, rng=np.random.default_rng(0), settings=settings)
    assert report.measured == 3
    assert [failure.key for failure in report.failed] == ["wrong"]
    assert "channels" in report.failed[0].reason
    found = {key: table.lookup(key, measurement_target(backend)) for key in (small.key, large.key)}
    rows = [row for row in found.values() if row is not None]
    assert len(rows) == 2
    assert rows[0].median_ms is not None
    assert rows[1].median_ms is not None
    assert rows[1].median_ms > 4 * rows[0].median_ms  # 64 times the work
    assert rows[1].flops == 64 * (rows[0].flops or 0)
    assert report.drift is not None


_PROFILER = """
import sys, time
import numpy as np
from torch import nn
from profiler.backends import get_backend
from profiler.measuring.profile import ProfileSettings, profile_workloads
from profiler.table.latency_table import LatencyTable
from profiler.timing.measurement import TimingSettings
from profiler.workload import TensorSpec, Workload
workloads = [Workload(str(n), str(n), nn.Linear(n, n), (TensorSpec((1, n)),)) for n in range(1, 61)]
with LatencyTable(sys.argv[1]) as table:
    profile_workloads(workloads, table, get_backend("eager"), rng=np.random.default_rng(0),
        settings=ProfileSettings(timing=TimingSettings(time_limit_s=0.02, warmup_s=0.005), rounds=1),
        on_progress=lambda p: print(p.name or "start", flush=True))
"""


@pytest.mark.slow
def test_a_killed_run_continues_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    process = subprocess.Popen([sys.executable, "-c", _PROFILER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "start\n"
    announced = [process.stdout.readline().strip() for _ in range(15)]
    os.kill(process.pid, signal.SIGKILL)
    announced += process.stdout.read().split()
    process.stdout.close()
    process.wait()
    with LatencyTable(path) as table:
        kept = {row.name for row in table.rows()}
        assert set(announced) <= kept
        assert len(kept) < 60
        workloads = [Workload(str(n), str(n), nn.Linear(n, n), (TensorSpec((1, n)),)) for n in range(1, 61)]
        measured: list[str] = []
        report = profile_workloads(
            workloads,
            table,
            get_backend("eager"),
            rng=np.random.default_rng(0),
            settings=ProfileSettings(timing=TimingSettings(time_limit_s=0.02, warmup_s=0.005), rounds=1),
            on_progress=lambda progress: measured.append(progress.name),
        )
    assert (report.cached, report.measured) == (len(kept), 60 - len(kept))
    assert not kept & set(measured), "nothing is done twice"


def test_the_most_valuable_come_first(table: LatencyTable, backend: PretendBackend) -> None:
    workloads = [workload(n) for n in range(1, 6)]
    value = {workloads[3].key: 5.0, workloads[1].key: 2.0}
    profile(workloads, table, backend, value=value, reference_every=0)
    names = [row.name for row in table.rows()]
    assert names[:2] == [workloads[3].name, workloads[1].name]
    assert sorted(names) == sorted(one.name for one in workloads)


def test_a_budget_keeps_what_was_measured_and_names_the_rest(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(range(1000))
    monkeypatch.setattr("profiler.measuring.profile.time.monotonic", lambda: float(next(moments)))
    workloads = [workload(n) for n in range(1, 9)]
    run = partial(profile, workloads, table, backend, reference_every=0)
    first = run(time_limit_s=4.0)
    assert 0 < first.measured < 8
    assert len(first.left) == 8 - first.measured
    assert {row.name for row in table.rows()} | set(first.left) == {one.name for one in workloads}
    rest = run()
    assert (rest.cached, rest.measured, rest.left) == (first.measured, 8 - first.measured, ())


def test_a_budget_that_ends_among_failures_names_what_is_left(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(range(1000))
    monkeypatch.setattr("profiler.measuring.profile.time.monotonic", lambda: float(next(moments)))
    huge = [
        Workload(f"huge {n}", f"huge|{n}", Lasting(1_000_000), (TensorSpec((2**50, 1)),)) if n % 2 else workload(n)
        for n in range(1, 9)
    ]
    report = profile(huge, table, backend, time_limit_s=4.0, reference_every=0, value={"block|8": 1.0})
    assert 0 < report.measured < 8
    assert {row.name for row in table.rows()} | set(report.left) == {one.name for one in huge}
    assert next(table.rows()).name == "block 8", "what is worth most comes first, also where others can not run"


def test_the_reference_is_read_last_also_where_a_budget_ends_the_run(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(range(1000))
    monkeypatch.setattr("profiler.measuring.profile.time.monotonic", lambda: float(next(moments)))

    def throttle(progress: Progress) -> None:
        if progress.done:
            backend.slowdown = 1.5

    workloads = [workload(n) for n in range(1, 9)]
    report = profile(workloads, table, backend, time_limit_s=8.0, on_progress=throttle)
    assert report.left
    assert report.drift == pytest.approx(0.5)


def test_cold_rows_stand_beside_the_hot_ones(table: LatencyTable) -> None:
    one = Workload("conv", "conv|1x3x8x8", nn.Conv2d(3, 4, 3), (TensorSpec((1, 3, 8, 8)),))
    quick = TimingSettings(time_limit_s=0.2, max_samples=20, warmup_s=0.0)
    backend = get_backend("eager")
    for caches in get_args(Caches):
        settings = ProfileSettings(timing=quick, caches=caches, reference_every=0)
        report = profile_workloads([one], table, backend, rng=np.random.default_rng(0), settings=settings)
        assert report.measured == 1
    hot, cold = table.rows()
    assert (hot.key, cold.key) == (one.key, cold_key(one.key))
    assert (hot.conditions["caches"], cold.conditions["caches"]) == ("hot", "cold")
    assert cold.conditions["flushed_bytes"] == 2 * cache_bytes(cpu_device())
    assert cold.inner_runs == 1


def test_the_size_of_the_caches_is_the_systems(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "36M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert cache_bytes(cpu_device(), tmp_path) == 36 * 2**20
    with pytest.raises(UserError, match="the size of the last cache"):
        cache_bytes(cpu_device(), tmp_path / "nowhere")


def on_each_visit(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> list[str]:
    """Names of the workloads in the order of their visits; ``act`` gets the number of the visit that begins."""
    names: list[str] = []
    measure = Visits.measure

    def noted(visits: Visits, *arguments: Any) -> None:
        names.append(visits.workload.name)
        act(len(names))
        measure(visits, *arguments)

    monkeypatch.setattr(Visits, "measure", noted)
    return names


def test_rounds_of_all_workloads_are_interleaved_in_orders_of_their_own(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    workloads = [workload(n) for n in range(1, 9)]
    visits = on_each_visit(monkeypatch, lambda _: None)
    report = profile(workloads, table, backend, rounds=4, reference_every=0)
    passes = [visits[start : start + 8] for start in range(0, len(visits), 8)]
    assert len(passes) == 4
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    assert (report.measured, report.wide, report.left) == (8, (), ())
    assert len(backend.prepared) == 8, "a session is kept from round to round"
    row = table.lookup("block|3", measurement_target(backend))
    assert row is not None
    assert (row.median_ms, row.n, row.stop_reason) == (3.0, 12, "converged")
    assert [len(samples) for samples in row.rounds_ms] == [3, 3, 3, 3]
    assert [set(one) for one in row.conditions["rounds"]] == [
        {"n", "median_ms", "wall_s", "cpu_s", "steal_s", "preemptions", "kept"}
    ] * 4


def test_a_neighbour_in_some_rounds_does_not_reach_the_latency(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturb(visits: int) -> None:
        backend.slowdown = 1.5 if visits <= 6 else 1.0  # of three workloads the first two rounds

    on_each_visit(monkeypatch, disturb)
    report = profile([workload(n) for n in (3, 4, 5)], table, backend, rounds=3, reference_every=0)
    assert latencies(table) == {"block|3": 3.0, "block|4": 4.0, "block|5": 5.0}
    assert report.wide == ()
    for row in table.rows():
        slow, quiet = row.rounds_ms[:2], row.rounds_ms[2:]
        assert [ms / (row.median_ms or 0) for samples in slow for ms in samples] == pytest.approx([1.5] * 8)
        assert {ms for samples in quiet for ms in samples} == {row.median_ms}
        assert len(quiet) == 3, "further rounds were taken until three agree"
        assert [one["kept"] for one in row.conditions["rounds"]] == [False, False, True, True, True]
    assert validate(table.path).problems == ()


def test_a_time_limit_keeps_the_rounds_that_there_are(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(range(1000))
    monkeypatch.setattr("profiler.measuring.profile.time.monotonic", lambda: float(next(moments)))
    report = profile([workload(n) for n in range(1, 5)], table, backend, rounds=5, reference_every=0, time_limit_s=14.0)
    assert report.measured + len(report.left) == 4
    assert report.measured == table.count() > 0
    assert {row.name for row in table.rows()}.isdisjoint(report.left)
    assert min(len(row.rounds_ms) for row in table.rows()) < 5


def test_rows_from_before_there_were_rounds_are_one_round(table: LatencyTable, backend: PretendBackend) -> None:
    samples = pack_samples(np.array([1.0, 2.0, 3.0]))
    old = Row("old", "old", measurement_target(backend), median_ms=2.0, low_ms=1.0, high_ms=3.0, samples=samples)
    assert [part.tolist() for part in table.add(old).rounds_ms] == [[1.0, 2.0, 3.0]]
    failed = Row("failed", "failed", measurement_target(backend), status="failed", reason="no memory")
    assert table.add(failed).rounds_ms == ()


def test_rows_whose_rounds_disagree_are_measured_again(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    workloads = [workload(3), workload(4)]
    target = measurement_target(backend)
    with monkeypatch.context() as patch:
        slower = iter(np.linspace(1.0, 3.0, 8).repeat(2))  # every round of a pass alike, every pass slower
        backend_slowdown = on_each_visit(patch, lambda _: setattr(backend, "slowdown", next(slower)))
        report = profile(workloads, table, backend, rounds=4, reference_every=0)
        assert len(backend_slowdown) == 16, "twice the rounds, and no more"
    assert set(report.wide) == {"block 3", "block 4"}
    found = [table.lookup(one.key, target) for one in workloads]
    assert [row and (row.trouble, row.conditions["round_spread"]) for row in found] == [("unsteady", 2.0)] * 2
    assert len(validate(table.path).unsteady) == 2
    backend.slowdown = 1.0
    assert profile(workloads, table, backend, rounds=4).measured == 0
    assert profile(workloads, table, backend, rounds=4, refresh=("unsteady",)).measured == 2
    assert latencies(table) == {"block|3": 3.0, "block|4": 4.0}
    assert validate(table.path).unsteady == ()


def test_an_interrupt_keeps_the_workloads_whose_rounds_agree(table: LatencyTable, backend: PretendBackend) -> None:
    rounds = 0

    def interrupt(progress: Progress) -> None:
        nonlocal rounds
        rounds += bool(progress.name)
        if rounds == 3 * 4 + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile([workload(n) for n in (1, 2, 3, 4)], table, backend, rounds=6, on_progress=interrupt)
    assert latencies(table) == {f"block|{n}": float(n) for n in (1, 2, 3, 4)}
    assert sorted(len(row.rounds_ms) for row in table.rows()) == [3, 3, 3, 4]


@pytest.fixture
def pretended_time(backend: PretendBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's clock is the backend's; preparing takes five seconds."""
    prepare = PretendBackend.prepare

    def slow(self: PretendBackend, *arguments: Any) -> PretendSession:
        self.now += 5_000_000_000
        return prepare(self, *arguments)

    def sleep(seconds: float) -> None:
        backend.now += round(seconds * 1e9)

    monkeypatch.setattr(PretendBackend, "prepare", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: backend.now / 1e9)
    monkeypatch.setattr(time, "sleep", sleep)


@pytest.mark.usefixtures("pretended_time")
def test_in_a_long_run_rounds_lie_apart_in_a_short_one_there_are_pauses(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[float] = []
    names = on_each_visit(monkeypatch, lambda _: moments.append(backend.now / 1e9))

    def gaps(name: str) -> list[float]:
        return np.diff([moment for one, moment in zip(names, moments, strict=True) if one == name]).tolist()

    profile([workload(n) for n in range(1, 101)], table, backend, rounds=6, reference_every=0)
    early = [gaps(name) for name in names[:20]]
    assert all(len(of_one) == 5 and min(of_one) >= 60 for of_one in early)
    profile([workload(400)], table, backend, rounds=6, reference_every=0)
    assert len(gaps("block 400")) == 5
    assert min(gaps("block 400")) >= 1.0


@pytest.mark.usefixtures("pretended_time")
def test_rounds_are_spread_over_calls_that_follow(table: LatencyTable, backend: PretendBackend) -> None:
    first, second = [workload(n) for n in range(1, 21)], [workload(n) for n in range(11, 61)]
    waiting: list[Visits] = []
    events: list[Progress] = []
    run = partial(profile, table=table, backend=backend, rounds=4, reference_every=0, waiting=waiting)
    report = run(first, more=True, on_progress=events.append)
    assert (report.measured, report.left, len(waiting), table.count()) == (0, (), 20, 0)
    assert 0.25 <= events[-1].fraction < 1
    report = run(second, on_progress=events.append)
    assert (report.measured, report.left, waiting) == (60, (), [])
    assert events[-1].fraction == 1.0
    assert {(row.median_ms, len(row.rounds_ms)) for row in table.rows()} == {(float(n), 4) for n in range(1, 61)}


@pytest.mark.parametrize("time_limit_s", [0.0, None])
def test_what_waits_is_kept_when_the_time_is_up(
    table: LatencyTable, backend: PretendBackend, time_limit_s: float | None
) -> None:
    waiting: list[Visits] = []
    profile([workload(n) for n in (1, 2)], table, backend, rounds=4, waiting=waiting, more=True)
    report = profile([], table, backend, rounds=4, waiting=waiting, time_limit_s=time_limit_s)
    assert (report.measured, waiting) == (2, [])
    assert {len(row.rounds_ms) for row in table.rows()} == {1 if time_limit_s == 0 else 4}


@pytest.mark.usefixtures("pretended_time")
def test_within_a_time_limit_what_has_begun_gets_its_rounds(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: backend.now / 1e9)
    report = profile(
        [workload(400 + n) for n in range(60)], table, backend, reference_every=0, rounds=6, time_limit_s=300
    )
    assert 20 <= report.measured < 40
    assert report.seconds <= 303, "a round that has begun ends"
    assert len(report.left) == 60 - report.measured
    assert [len(row.rounds_ms) for row in table.rows()].count(6) >= 0.9 * report.measured


def test_what_is_open_at_once_is_bounded(
    table: LatencyTable, backend: PretendBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiler.measuring.profile._WINDOW", 3 * 9)  # weights, inputs and outputs of three
    names = on_each_visit(monkeypatch, lambda _: None)
    profile([workload(n) for n in range(1, 13)], table, backend, rounds=4, reference_every=0)
    first = {name: names.index(name) for name in names}
    last = {name: len(names) - 1 - names[::-1].index(name) for name in names}
    assert max(sum(first[name] <= visit <= last[name] for name in first) for visit in range(len(names))) == 4


def test_whole_networks_are_measured_between_blocks(table: LatencyTable, backend: PretendBackend) -> None:
    blocks, networks = [workload(n) for n in range(1, 6)], [workload(50), workload(60)]
    settings = ProfileSettings(reference_every=0)
    profile_workloads(blocks, table, backend, networks=networks, rng=np.random.default_rng(0), settings=settings)
    assert {row.name for row in table.rows() if row.kind == "whole"} == {"block 50", "block 60"}
    assert {len(row.rounds_ms) for row in table.rows()} == {DEFAULT_ROUNDS}
