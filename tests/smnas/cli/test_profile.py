"""``smnas profile``: what it measures, what it finds in the table, audits and estimates."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import search_stub as stub
from narrow_space import narrowed

from profiler.backends import get_backend
from profiler.errors import UserError
from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.timing.measurement import TimingSettings
from smnas import api
from smnas.cli.main import application
from smnas.cli.terminal.exit_codes import run
from smnas.durations import duration, seconds_of
from smnas.latency import coverage_record, profiling
from smnas.latency.audit_file import read_audit
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.workloads import detector_workloads
from smnas.search.ranking.ranking import Ranking, RankingRow, write_ranking
from smnas.search.ranking.recommendation import Recommendation
from smnas.search.study.settings import prepare_run_folder
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space
from smnas.training.device import cpu_cores

ARCH = "basicblock_8_1-2-2+fpn_2-4_24+norpn+retina_32_1+64x64"
_QUICK = TimingSettings(relative_half_width=0.5, min_samples=3, max_samples=5, time_limit_s=0.2, warmup_s=0.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing that is done at once: these tests are about what is measured, not about how well."""
    monkeypatch.setattr(api, "profile", partial(api.profile, timing=_QUICK))


def _profile(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    capsys.readouterr()
    code = run(application("profile"), "smnas-profile", [*map(str, words), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    document = json.loads(captured.out)
    assert isinstance(document, dict)
    return document


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_several_numbers_of_threads_fill_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if cpu_cores() < 2:
        pytest.skip("needs two cores")
    table = tmp_path / "table.db"
    words = ("--gpu", "cpu", "--backend", "eager", "--arch", ARCH, "--classes", "3", "--end-to-end", "--table", table)
    first, second = _profile(capsys, *words, "--threads", "1,2")["by_threads"]  # type: ignore[misc]
    assert (first["threads"], second["threads"]) == (1, 2)
    assert first["measured"] == second["measured"] > 0
    with LatencyTable(table, read_only=True) as rows:
        assert {target.threads for target in rows.targets()} == {1, 2}
    assert run(application("profile"), "smnas-profile", [*map(str, words), "--threads", "1,2"]) == 0
    assert re.search(r"1 threads +2 threads +detector", capsys.readouterr().out)


@pytest.mark.parametrize("threads", ["0", "1,1", "one", "1,", "-1"])
def test_threads_are_distinct_numbers(threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(application("profile"), "smnas-profile", ["--gpu", "cpu", "--arch", ARCH, f"--threads={threads}"]) == 2
    assert f"as in 1,2, but got '{threads}'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_second_run_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.db"
    words = ("--gpu", "cpu", "--backend", "eager", "--arch", ARCH, "--classes", "3", "--table", table)
    keys = {workload.key for workload in detector_workloads(Architecture.parse(ARCH), 3)}
    first = _profile(capsys, *words)
    assert (first["measured"], first["cached"], first["failed"]) == (len(keys), 0, {})
    second = _profile(capsys, *words)
    assert (second["measured"], second["cached"]) == (0, len(keys))
    with LatencyTable(table) as rows:
        assert {row.key for row in rows.rows()} == keys
    # another number of classes: other blocks at the head only
    other = _profile(capsys, *words[:-3], "4", "--table", table)
    assert 0 < int(str(other["measured"])) < len(keys)
    assert run(application("profile"), "smnas-profile", list(map(str, words))) == 0
    assert f"0 measured now, {len(keys)} found in the table" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_what_a_search_ended_with_is_measured_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, table = tmp_path / "run", tmp_path / "table.db"
    settings = stub.settings(backend="eager")
    classes = len(settings.data.classes)
    prepare_run_folder(folder, settings)
    words = ("--device", "cpu", "--for", folder, "--table", table)
    assert run(application("profile"), "smnas-profile", list(map(str, words))) == 2
    assert "holds ranking.json" in capsys.readouterr().err
    row = RankingRow(1, ARCH, "0", "candidate", "final", True, 0.1, None, (0.1,), None, (0,), 1, 1.0, None, None)
    behind = replace(row, architecture=ARCH.replace("8_1-2-2", "12_1-2-2"), stage="structural", on_front=False)
    write_ranking(folder, settings, Ranking((row, behind), Recommendation(ARCH, "it is there")))
    found = _profile(capsys, *words)
    assert (found["backend"], found["classes"], found["detectors"]) == ("eager", classes, 1)
    with LatencyTable(table, read_only=True) as rows:
        (whole,) = [one for one in rows.rows() if one.kind == "whole"]
        blocks = {one.key for one in rows.rows() if one.kind == "part"}
    assert found["end_to_end_ms"] == {ARCH: whole.median_ms}
    assert blocks == {workload.key for workload in detector_workloads(Architecture.parse(ARCH), classes)}
    assert run(application("profile"), "smnas-profile", [*map(str, words), "--classes", "9"]) == 2
    assert "--classes and --for exclude each other" in capsys.readouterr().err
    assert run(application("profile"), "smnas-profile", list(map(str, words))) == 0
    assert f"end to end: {ARCH}: {whole.median_ms:.4g} ms" in capsys.readouterr().out


def test_estimates_are_labelled_and_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.db"
    words = ("--gpu", "v100", "--estimate", "--arch", ARCH, "--classes", "3", "--table", table)
    document = _profile(capsys, *words)
    assert document["kind"] == "estimate (roofline), not measured"
    (row,) = document["architectures"]  # type: ignore[misc]
    assert 0 < row["low_ms"] <= row["sum_ms"] <= row["high_ms"]
    with LatencyTable(table) as rows:
        assert {target.backend for target in rows.targets()} == {"estimate-roofline"}
    assert _profile(capsys, *words)["added"] == 0


@pytest.mark.slow
def test_a_table_of_an_absent_gpu_is_read_and_nothing_else_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "latency.db"
    words = ["--gpu", "V100", "--classes", "3", "--table", str(file)]
    _profile(capsys, *words, "--arch", ARCH, "--estimate")
    assert run(application("profile"), "smnas-profile", words) == 2, "an estimate is no measurement"
    assert "latency.db must hold measurements of v100" in capsys.readouterr().err
    target = Target("Tesla V100-SXM2-16GB", "tensorrt", "10.4.0", "fp16", 1, 1)
    keys = [part.key for part in detector_workloads(Architecture.parse(ARCH), 3)]
    with LatencyTable(file) as table:
        for key in dict.fromkeys(keys):
            table.add(Row(key, "part", target, median_ms=0.25, low_ms=0.24, high_ms=0.26))
        other = replace(target, device="NVIDIA A100-SXM4-40GB")
        table.add(Row(keys[0], "part", other, median_ms=9.0, low_ms=9.0, high_ms=9.0))
    found: Any = _profile(capsys, *words, "--arch", ARCH)
    (of_v100,) = found["targets"]
    assert (of_v100["device"], of_v100["blocks"], of_v100["failed"]) == (target.device, len(set(keys)), 0)
    assert of_v100["sums_ms"] == {ARCH: pytest.approx(0.25 * len(keys))}
    assert run(application("profile"), "smnas-profile", words) == 0
    assert target.device in capsys.readouterr().out.replace("\n", "")
    assert run(application("profile"), "smnas-profile", [*words, "--audit", "8"]) == 2, "measuring needs the GPU"


def test_a_sample_depends_on_the_seed_alone() -> None:
    space = load_space("paper")
    first = profiling.structures_of(space, 12, 5)
    assert first == profiling.structures_of(space, 12, 5)
    assert first != profiling.structures_of(space, 12, 6)
    assert len(set(first)) == 12


@pytest.mark.slow
def test_a_complete_preset_is_known_without_reading_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [Architecture.parse(ARCH)]
    with LatencyTable(tmp_path / "table.db") as table:
        latency = DetectorLatency(3, get_backend("eager"), table, timing=_QUICK)

        def cover(architectures: list[Architecture]) -> tuple[int, int]:
            found = profiling.measure_preset("nano", architectures, latency, lambda done, total, text: None)
            return found.measured, found.cached

        blocks = len({workload.key for workload in detector_workloads(some[0], 3)})
        assert cover(some) == (blocks, 0)
        with monkeypatch.context() as patch:
            patch.delattr(DetectorLatency, "measure_blocks")
            assert cover(some) == (0, blocks)  # nothing is read: the record alone answers
        record = tmp_path / "table.db.coverage.json"
        keys = json.loads(record.read_text())
        record.write_text(json.dumps({name: [*found, "a block that is not there"] for name, found in keys.items()}))
        assert cover(some) == (0, blocks)  # a record that the table does not hold is not believed
        record.write_text(json.dumps({"other sources": []}))
        assert cover(some) == (0, blocks)


def test_the_record_holds_for_its_facts_only(tmp_path: Path) -> None:
    table = tmp_path / "t.db"
    made_with = coverage_record.fingerprint("nano", 3)
    coverage_record.write_record(table, made_with, {"a", "b"})
    assert coverage_record.read_record(table, coverage_record.fingerprint("nano", 3)) == {"a", "b"}
    assert coverage_record.read_record(table, coverage_record.fingerprint("nano", 4)) is None
    (tmp_path / "t.db.coverage.json").write_text("[]")
    assert coverage_record.read_record(table, made_with) is None


def test_an_audit_holds_out_what_it_does_not_calibrate_on() -> None:
    space = load_space("nano")
    calibration, held_out = profiling.audited(space, 30, 0)
    assert (len(set(calibration)), len(set(held_out))) == (15, 30)
    assert not set(calibration) & set(held_out)
    assert (calibration, held_out) == profiling.audited(space, 30, 0)
    assert (calibration, held_out) != profiling.audited(space, 30, 1)
    structures = set(space.structures)
    assert 10 <= sum(architecture in structures for architecture in held_out) <= 20  # the others are modular variants
    with pytest.raises(UserError, match="an audit of 9999 needs"):
        profiling.audited(space, 9999, 0)


@pytest.mark.slow
def test_an_audit_compares_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_CALIBRATION_WHOLES", 2)
    text = "basicblock_8_1-2-2+fpn_2-4_32+norpn+retina_32_1+96x96"
    space = narrowed(load_space("nano"), text, rpns=["norpn"], heads=["retina_32_1"], inputs=["96x96"])
    backend = get_backend("eager")
    with LatencyTable(tmp_path / "table.db") as table:
        latency = DetectorLatency(3, backend, table, timing=_QUICK)
        seen: list[tuple[float, float]] = []
        found = profiling.audit(space, 3, latency, 0, lambda done, total, text: seen.append((done, total))).as_dict()
        kept = read_audit(table.path, latency.target)
        wholes = [row for row in table.rows() if row.kind == "whole"]
        parts = {row.key: row for row in table.rows() if row.kind == "part"}
    assert found["calibrated_on"] == 2
    assert len(found["detectors"]) == 3
    assert len(wholes) == 5
    for row in found["detectors"]:
        measured = next(one.median_ms for one in wholes if one.key.startswith(f"{row['architecture']}|"))
        assert row["measured_ms"] == measured
        assert row["error"] == pytest.approx(row["predicted_ms"] / measured - 1)
        assert row["inside"] == (row["low_ms"] <= measured <= row["high_ms"])
        keys = [workload.key for workload in detector_workloads(Architecture.parse(row["architecture"]), 3)]
        assert row["naive_sum_ms"] == pytest.approx(sum(parts[key].median_ms or 0.0 for key in keys))
    errors = [abs(row["error"]) for row in found["detectors"]]
    assert errors == sorted(errors, reverse=True)  # the worst first
    assert found["accuracy"]["prediction"]["mape"] == pytest.approx(sum(errors) / 3)
    assert set(found["accuracy"]) == {"prediction", "naive sum", "FLOPs", "roofline"}
    assert seen[-1] == (5, 5)
    assert [(point.architecture, point.measured_ms) for point in kept] == [
        (row["architecture"], row["measured_ms"]) for row in found["detectors"]
    ]


@pytest.mark.slow
def test_an_audit_keeps_to_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_CALIBRATION_WHOLES", 2)
    text = "basicblock_8_1-2-2+fpn_2-4_32+norpn+retina_32_1+96x96"
    space = narrowed(load_space("nano"), text, rpns=["norpn"], heads=["retina_32_1"], inputs=["96x96"])
    with LatencyTable(tmp_path / "table.db") as table:
        latency = DetectorLatency(3, get_backend("eager"), table, timing=_QUICK)

        found = [
            profiling.audit(space, 3, latency, 0, lambda *_: None, left_s=lambda s=left_s: s).as_dict()
            for left_s in (0.0, 600.0)
        ]
    assert [one["left"] for one in found] == [5, 0]
    for one in found:
        assert one["calibrated_on"] + len(one["detectors"]) == 5 - one["left"]
    assert found[-1]["inside_interval_over_splits"]["splits"] == 200


def test_the_calibration_set_is_the_baseline_and_depends_on_the_seed_alone() -> None:
    space = load_space("nano")
    chosen = profiling.calibration_set(space, 1, 3)
    assert chosen == profiling.calibration_set(space, 1, 3)
    assert chosen != profiling.calibration_set(space, 2, 3)
    assert profiling.calibration_set(space, 1, 1) == chosen[:2], "the most telling first"
    assert chosen[0] == space.baseline_architecture
    assert all(space.contains_structural(one) for one in chosen[1:])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800)]
)
def test_a_time_is_read_as_it_is_written(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert seconds_of(duration(seconds).replace("00m", "")) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "-5s", "0s", "8 hours", ".h", "30m1h"])
def test_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="as in 90s, 10m, 1h30m or 2d"):
        seconds_of(text)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_time_as_a_number_is_finite_and_not_negative(seconds: float) -> None:
    with pytest.raises(UserError, match="a number of seconds, 0 or above"):
        seconds_of(seconds)


def test_a_time_of_no_seconds_starts_nothing() -> None:
    assert seconds_of(0) == 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_measured_within_a_budget_then_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, page = tmp_path / "table.db", tmp_path / "page.html"
    words = ("--gpu", "cpu", "--backend", "eager", "--arch", ARCH, "--classes", "3", "--table", table)
    found = _profile(capsys, *words, "--budget", "1h", "--cold", "--builds", "2")
    assert found["left"] == {"blocks": 0, "detectors": 0}
    assert found["cold"]["measured"] == found["measured"]  # type: ignore[index]
    assert 0 < len(found["builds"]) <= 12  # type: ignore[arg-type]
    words = ("report", table, "--out", page, "--arch", ARCH, "--classes", "3", "--json")
    assert run(application("table"), "smnas-table", list(map(str, words))) == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == found["measured"]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_rows_whose_rounds_disagree_are_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "table.db"
    words = ("--device", "cpu", "--backend", "eager", "--arch", ARCH, "--classes", "3", "--table", file)
    _profile(capsys, *words, "--end-to-end")
    chosen: set[str] = set()

    def as_if(unsteady: bool) -> None:  # this machine may disturb the rounds of any row
        with LatencyTable(file) as table:
            chosen.update({row.kind: row.key for row in table.rows()}.values())
            for row in list(table.rows()):
                reason = "rounds_disagree" if unsteady and row.key in chosen else "converged"
                table.add(replace(row, stop_reason=reason, created_at="", id=None))

    as_if(unsteady=True)
    assert _profile(capsys, *words, "--refresh", "unsteady")["measured"] == len(chosen) == 2
    as_if(unsteady=False)
    assert run(application("profile"), "smnas-profile", [*map(str, words), "--refresh", "unsteady"]) == 0
    assert capsys.readouterr().out.replace("\n", "") == f"no rounds of a row in {file} disagree"
    assert run(application("profile"), "smnas-profile", [*map(str, words), "--refresh", "all"]) == 2
    assert "--refresh must be unsteady, but got 'all'" in capsys.readouterr().err
    mistyped = [*map(str, words[:-1]), str(tmp_path / "mistyped.db")]
    assert run(application("profile"), "smnas-profile", [*mistyped, "--refresh", "unsteady"]) == 2
    assert "but there is no file" in capsys.readouterr().err
    assert not (tmp_path / "mistyped.db").exists()


def test_options_that_exclude_each_other_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["--estimate", "--gpu", "v100", "--budget", "10m"],
        ["--build-engines", "engines", "--table", "t.db"],
        ["--arch", ARCH, "--audit", "3"],
        ["--arch", ARCH, "--preset", "nano"],
    ):
        assert run(application("profile"), "smnas-profile", words) == 2
        assert re.fullmatch(
            r"error: --[a-z-]+ and --[a-z-]+ exclude each other, but got both\n", capsys.readouterr().err
        )
