"""Searches for a device that is not in this machine, from a small table that was measured on another one.

``elsewhere/table.db`` holds all structures of ``elsewhere/space.toml``, by block and end to end, in ONNX Runtime on one
core of the CPU that it names. That machine was busy, so what was measured is processor time.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import search_stub as stub

import smnas
from profiler.backends.eager import EagerBackend
from profiler.devices import cpu_device
from profiler.errors import UserError
from profiler.measuring.profile import ProfileReport
from profiler.prediction.predict import LatencyModel
from profiler.table.latency_table import LatencyTable, Row, Target
from smnas.cli.main import application
from smnas.cli.terminal.exit_codes import run
from smnas.data.coco import CocoFolder
from smnas.data.scene import CLASSES
from smnas.data.shapes import generate_shapes
from smnas.deploy.latency import FileLatency
from smnas.deploy.ranked import deploy_ranking
from smnas.latency.elsewhere import DeviceElsewhere, TableTooThinError
from smnas.latency.prediction import LatencyFailedError, LatencyPredictor
from smnas.search.ranking.ranking import complete_ranking, read_ranking
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.settings import read_settings
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space
from smnas.space.sampling import sample_modular

TIMED = SimpleNamespace(median_ms=7.0, low_ms=6.9, high_ms=7.1)
HERE = Path(__file__).parent / "elsewhere"
SPACE = load_space(str(HERE / "space.toml"))


class ThatDevice(EagerBackend):
    """The table's own device and backend, on which everything is measured already."""

    target: Target

    def __init__(self, target: Target) -> None:
        super().__init__(replace(cpu_device(), name=target.device), target.threads)
        self.name, self.version = target.backend, target.backend_version

    def prepare(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("measured, though the table holds it")


@pytest.fixture(autouse=True)
def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is not the one that the table is from."""
    monkeypatch.setattr("profiler.devices.cpu_name", lambda _: "A server")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return Path(shutil.copy(HERE / "table.db", tmp_path / "table.db"))


@pytest.fixture(scope="module")
def target() -> Target:
    with LatencyTable(HERE / "table.db", read_only=True) as rows:
        (target,) = rows.targets()
    return target


@pytest.fixture(scope="module")
def rows(target: Target) -> dict[str, Row]:
    with LatencyTable(HERE / "table.db", read_only=True) as table:
        return table.current(target)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes") / "data", train=1, val=1)


@pytest.fixture
def search(data: Path, table: Path, target: Target, tmp_path: Path) -> Callable[..., smnas.SearchRun]:
    """A search of a few structures with a stub instead of training, into ``run`` of the test's folder."""

    def search(name: str = "run", **arguments: Any) -> smnas.SearchRun:
        known: dict[str, Any] = {
            "device": target.device[:12],
            "table": table,
            "accept_version": target.backend_version,
            "preset": str(HERE / "space.toml"),
            "strategy": "random",
            "scorer": stub.StubScorer(),
            "trials": (6, 0),
            "final_epochs": 0,
            "workers": 1,
            "deploy": False,
        }
        return smnas.search(tmp_path / name, data, **(known | arguments))

    return search


def test_this_machines_own_processor_is_not_elsewhere(
    table: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LatencyTable(table, read_only=True) as rows:
        found = DeviceElsewhere(
            rows, target.device[:12], target.backend, target.precision, target.threads, 6, target.backend_version
        )
        assert found.target([]) == target
        monkeypatch.setattr("profiler.devices.cpu_name", lambda _: target.device)
        with pytest.raises(UserError, match=r"--device must be cpu for this machine's own processor"):
            found.target([])


@pytest.mark.slow
def test_a_search_without_the_device_ends_as_one_with_it(
    search: Callable[..., smnas.SearchRun],
    rows: dict[str, Row],
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    away = search("away")
    wholes = list(LatencyPredictor(rows, len(CLASSES)).measured_detectors())
    monkeypatch.setattr("smnas.api.searches.backend_of", lambda *_: ThatDevice(target))
    monkeypatch.setattr("smnas.latency.profiling.calibration_set", lambda *_: wholes)
    here = search("here", device="cpu", accept_version=None)
    assert [row.architecture for row in away.front] == [row.architecture for row in here.front]
    there = {row.architecture: row for row in here.ranking.rows}
    assert len(there) == len(away.ranking.rows)
    for one in away.ranking.rows:
        other = there[one.architecture]
        assert (one.measured_latency_ms, other.measured_latency_ms) == (
            _whole(rows, Architecture.parse(one.architecture)),
            None,
        )
        assert one.predicted_latency_ms == pytest.approx(other.predicted_latency_ms)
        assert one.predicted_latency_high_ms == pytest.approx(other.predicted_latency_high_ms)
        assert (one.predicted_latency_measured, other.predicted_latency_measured) == (1.0, None)
    settings = read_settings(tmp_path / "away")
    assert (settings.device, settings.backend_version) == (target.device, target.backend_version)
    assert settings.versions[target.backend] == target.backend_version
    assert read_settings(tmp_path / "here").backend_version is None


@pytest.mark.slow
def test_what_was_interpolated_is_marked_and_a_search_resumes(
    search: Callable[..., smnas.SearchRun], table: Path, tmp_path: Path
) -> None:
    remove(table, 0.3, seed=0)
    remove(table, 0.5, seed=0, kind="whole")
    with LatencyTable(table, read_only=True) as left:
        wholes = {row.median_ms for row in left.rows() if row.kind == "whole"}
    found = search()
    parts = [row.predicted_latency_measured for row in found.ranking.rows]
    assert all(part is not None and 0 < part <= 1 for part in parts)
    assert min(part or 0 for part in parts) < 1
    times = {row.measured_latency_ms for row in found.ranking.rows}
    assert times <= wholes | {None}  # of that device, or none
    assert len(times) > 1
    assert "of it measured" in str([pick.reason for pick in found.picks])
    assert any("nothing was timed" in note for note in found.ranking.notes)
    assert "predicted_latency_measured" in (tmp_path / "run" / "ranking.csv").read_text().splitlines()[0]
    assert "of it measured" in (tmp_path / "run" / "report.html").read_text()
    before = read_candidates(tmp_path / "run", read_settings(tmp_path / "run"))
    scorer = stub.StubScorer()
    assert search(scorer=scorer).ranking == found.ranking
    assert scorer.calls == []
    assert read_candidates(tmp_path / "run", read_settings(tmp_path / "run")) == before
    with pytest.raises(UserError, match=r"latency_confidence = 0\.9"):
        search(latency_confidence=0.8)


@pytest.mark.slow
def test_a_limit_is_kept_at_the_upper_end(search: Callable[..., smnas.SearchRun], tmp_path: Path) -> None:
    free = search("free").ranking.rows
    limit = float(np.median([row.predicted_latency_ms for row in free]))
    limited = search("limited", latency_ms=limit)
    ends = {row.architecture: row.predicted_latency_high_ms for row in limited.ranking.rows}
    assert limited.recommendation is not None
    assert (ends[limited.recommendation.architecture] or 0) <= limit
    pruned = [
        c for c in read_candidates(tmp_path / "limited", read_settings(tmp_path / "limited")) if c.state == "pruned"
    ]
    slow = [c for c in pruned if (c.reason or "").startswith("over the latency limit")]
    assert slow
    assert all((c.latency_high_ms or 0) > limit for c in slow)
    surer = search("surer", latency_confidence=0.99).ranking.rows
    widths = [{row.architecture: row.predicted_latency_high_ms or 0 for row in found} for found in (free, surer)]
    shared = widths[0].keys() & widths[1].keys()
    assert shared
    assert all(widths[1][name] > widths[0][name] for name in shared)


def remove(table: Path, share: float, seed: int, kind: str = "part") -> None:
    """Leave a random share of the rows of one kind out of a table."""
    with LatencyTable(table, read_only=True) as whole:
        rows = [replace(row, id=None, superseded_by=None) for row in whole.rows()]
    table.unlink()
    with LatencyTable(table) as left:
        left.add_many(kept(rows, share, seed, kind))


def kept(rows: list[Row], share: float, seed: int, kind: str = "part") -> list[Row]:
    """The rows without a random share of one kind."""
    some = [index for index, row in enumerate(rows) if row.kind == kind]
    gone = set(np.random.default_rng(seed).permutation(some)[: round(share * len(some))].tolist())
    return [row for index, row in enumerate(rows) if index not in gone]


@pytest.mark.slow
def test_without_a_third_of_the_blocks_predictions_stay_close(rows: dict[str, Row]) -> None:
    """Against what was measured end to end, each detector left out of the calibration in turn.

    The table is of a busy machine: with all rows predictions are off by 15%. Interpolation may add 6 points.
    """
    error, inside = left_out(rows)
    assert error == pytest.approx(0.155, abs=0.001)
    assert inside >= 0.85
    found = [left_out({row.key: row for row in kept(list(rows.values()), 0.3, seed)}) for seed in range(2)]
    assert np.mean([one[0] for one in found]) < error + 0.06
    assert min(one[1] for one in found) >= 0.85


def left_out(rows: dict[str, Row]) -> tuple[float, float]:
    """Mean absolute relative error, and the fraction of 90% intervals that hold the measured latency."""
    predictor = LatencyPredictor(rows, len(CLASSES), interpolates=True)
    measured = {one: _whole(rows, one) for one in predictor.measured_detectors()}
    sums = {one: predictor.parts_sum(one) for one in measured}
    errors, inside = [], []
    for one, ms in measured.items():
        others = [other for other in measured if other != one]
        model = LatencyModel.fit([sums[other] for other in others], [measured[other] for other in others], level=0.9)
        found = model.predict(sums[one])
        errors.append(abs(found.ms / ms - 1))
        inside.append(found.low_ms <= ms <= found.high_ms)
    return float(np.mean(errors)), float(np.mean(inside))


def _whole(rows: dict[str, Row], architecture: Architecture) -> float:
    row = LatencyPredictor(rows, len(CLASSES)).end_to_end_row(architecture)
    assert row is not None
    assert row.median_ms is not None
    return row.median_ms


def test_exact_blocks_are_exact_and_variants_are_interpolated(rows: dict[str, Row]) -> None:
    predictor = LatencyPredictor(rows, len(CLASSES), interpolates=True)
    structure = SPACE.structures[0]
    exact = predictor.parts_sum(structure)
    assert exact.ms == sum(rows[key].median_ms or 0 for key in predictor.keys(structure))
    assert exact.measured == 1.0
    rng = np.random.default_rng(0)
    variants = [sample_modular(SPACE, structure, rng) for _ in range(8)]
    assert all(0.3 < predictor.predict(one).ms / predictor.predict(structure).ms < 3 for one in variants)
    unseen = next(one for one in variants if any(key not in rows for key in predictor.keys(one)))
    guessed = predictor.parts_sum(unseen)
    known = sum(rows[key].median_ms or 0 for key in predictor.keys(unseen) if key in rows)
    assert guessed.measured == pytest.approx(known / guessed.ms)
    assert guessed.half_ms > exact.half_ms
    failed = next(key for key in predictor.keys(unseen) if key in rows)
    broken = replace(
        rows[failed], status="failed", reason="no kernel", median_ms=None, low_ms=None, high_ms=None, samples=b""
    )
    with pytest.raises(LatencyFailedError, match="has no latency: no kernel"):
        replace(predictor, rows={**rows, failed: broken}).parts_sum(unseen)


COMMAND = (
    "smnas profile --device local --backend onnxruntime --precision fp32 --threads 1 --classes 3 --end-to-end --table"
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "Cortex"}, "must hold Cortex, but holds .*: measure there, most valuable first .*: smnas profile"),
        ({"backend": "eager"}, "must hold backend eager of .*, but holds onnxruntime: measure there"),
        ({"precision": "int8"}, "must hold precision int8 of .*, but holds fp32: measure there"),
        ({"threads": 2}, "must hold threads 2 of .*, but holds 1: measure there"),
        ({"classes": 3}, f"must hold 2 whole detectors of .* with 3 classes to calibrate on, but holds 0: .*{COMMAND}"),
        ({"accept_version": "0.1"}, "--accept-version must be one that .* holds, .*, but got 0.1"),
        ({"accept_version": None}, "installed here, 0.2, but holds .*: --accept-version [0-9.]+ takes those"),
    ],
)
def test_what_a_table_lacks_is_one_line(
    table: Path, target: Target, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("smnas.latency.elsewhere._installed", lambda _: "0.2")
    known = {
        "device": target.device,
        "backend": target.backend,
        "precision": "fp32",
        "threads": 1,
        "classes": len(CLASSES),
        "accept_version": target.backend_version,
    }
    probe = [SPACE.baseline_architecture, SPACE.structures[1]]

    def read() -> None:
        with LatencyTable(table, read_only=True) as rows:
            described = DeviceElsewhere(rows, **(known | changes))
            described.predictor(described.target(probe), probe, 0.9)

    with pytest.raises(UserError, match=message) as error:
        read()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_table_too_thin_says_what_to_measure_and_measuring_that_is_enough(
    table: Path, target: Target, rows: dict[str, Row]
) -> None:
    with LatencyTable(table.with_name("empty.db")) as empty:
        described = DeviceElsewhere(empty, target.device, target.backend, "fp32", 1, len(CLASSES))
        with pytest.raises(TableTooThinError, match=r"must hold measurements, but holds none: measure there") as thin:
            described.target(SPACE.structures[:4])
        named = [word for word in str(thin.value).split() if "+fpn" in word]
        assert len(named) == 3
        few = [row for row in rows.values() if row.kind == "part"][:5]
        empty.add_many(replace(row, id=None) for row in few)
        found = replace(described, accept_version=target.backend_version)
        with pytest.raises(TableTooThinError, match=r"enough blocks of .* to interpolate from, but holds 5"):
            found.predictor(found.target([]), SPACE.structures[:4], 0.9)
        predictor = LatencyPredictor(rows, len(CLASSES))
        wholes = list(predictor.measured_detectors())[:2]
        wanted = {key for one in wholes for key in predictor.keys(one)} | {
            row.key for one in wholes if (row := predictor.end_to_end_row(one))
        }
        empty.add_many(replace(row, id=None) for key, row in rows.items() if key in wanted)
        fitted, count = found.predictor(found.target([]), SPACE.structures[:4], 0.9)
        assert count == 2
        assert fitted.predict(SPACE.structures[5]).calibrated


def test_mistakes_end_before_any_training(
    table: Path, data: Path, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--data", str(data), "--out", str(out), "--table", str(table), "--preset", str(HERE / "space.toml")]
    cases = {
        ("--device", "v100"): "must hold v100, but holds",
        ("--device", target.device[:9], "--scorer", "entropy"): "mae-det measures on the device itself",
        ("--device", "cpu", "--accept-version", "1"): "for a device that is not in this machine, but got --device cpu",
    }
    for more, message in cases.items():
        assert run(application("search"), "smnas-search", [*words, *more]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error.splitlines()[-1]
        assert not out.exists()


@pytest.mark.slow
def test_exported_files_are_timed_on_their_device_alone(
    search: Callable[..., smnas.SearchRun], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    search()
    folder = tmp_path / "run"
    row = read_ranking(folder).rows[0]
    (folder / "model.onnx").write_bytes(b"")
    values = {"model": "model.onnx", "exported_ap": 0.1}
    complete_ranking(folder, read_settings(folder), {row.architecture: values})
    monkeypatch.setattr("smnas.deploy.ranked._deploy_row", lambda *given: given[5].skipped.append(given[2]))
    monkeypatch.setattr("smnas.deploy.ranked.measure_files", lambda files, **_: dict.fromkeys(files, TIMED))
    monkeypatch.setattr("smnas.deploy.ranked.load_model", lambda *_, **__: SimpleNamespace(input_size=(96, 96)))
    dataset = CocoFolder(data).split("val")
    before = read_ranking(folder)
    assert deploy_ranking(folder, dataset, top=1).ranking == before
    assert f"{target.device} was not in this machine: nothing was timed here." in before.notes[0]
    there = replace(cpu_device(), name=target.device)
    (timed,) = [r for r in deploy_ranking(folder, dataset, top=1, device=there).ranking.rows if r.model is not None]
    assert timed.measured_latency_ms == TIMED.median_ms


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, target: Target, rows: dict[str, Row]) -> list[str]:
    """That device, where measuring takes the row from the whole table; the keys that were measured there."""
    asked: list[str] = []

    def measure(workloads: Any, table: LatencyTable, _: Any, *, networks: Any = (), **__: Any) -> ProfileReport:
        keys = [one.key for one in (*workloads, *networks)]
        lacking = [key for key in dict.fromkeys(keys) if key not in table.current(target)]
        asked.extend(lacking)
        table.add_many(replace(rows[key], id=None, superseded_by=None, created_at="") for key in lacking)
        return ProfileReport(len(lacking), len(keys) - len(lacking), (), (), None, 0.0)

    monkeypatch.setattr("smnas.api.latency.backend_of", lambda *_: ThatDevice(target))
    monkeypatch.setattr("smnas.latency.detector_latency.profile_workloads", measure)
    return asked


@pytest.mark.slow
def test_the_loop_closes_on_the_device(
    search: Callable[..., smnas.SearchRun],
    table: Path,
    tmp_path: Path,
    device: list[str],
    rows: dict[str, Row],
) -> None:
    """Rows removed, predicted, what is asked for measured, ranked again: as the search that had all rows."""
    full, folder = search("full").ranking, tmp_path / "run"
    remove(table, 0.3, seed=0)
    remove(table, 0.3, seed=1, kind="whole")
    first = search().ranking
    request = Path(shutil.copy(folder / "request.json", tmp_path))  # neither the run nor the images are there
    there = Path(shutil.copy(table, tmp_path / "there.db"))
    found = smnas.profile(run=request, table=there)
    assert found.blocks.measured + 2 == len(device)  # and two whole detectors
    wanted = {row.architecture for row in first.rows if row.on_front or row.role == "baseline"}
    assert (found.end_to_end_ms or {}).keys() == wanted
    assert smnas.profile(run=request, table=there).blocks.measured == 0

    trained, scorer = read_candidates(folder, read_settings(folder)), stub.StubScorer()
    again = search(table=there, scorer=scorer)
    assert scorer.calls == []
    assert read_candidates(folder, read_settings(folder)) == trained
    ranked = {row.architecture: row for row in again.ranking.rows}
    for name in wanted:
        assert ranked[name].predicted_latency_measured == 1.0
        assert ranked[name].measured_latency_ms == _whole(rows, Architecture.parse(name))
    old = {row.architecture: row for row in first.rows}
    changes = {one.architecture: one for one in again.ranking.changes}
    assert changes.keys() <= old.keys()
    for name in wanted & {row.architecture for row in first.rows if row.measured_latency_ms is None}:
        assert (changes[name].kind_before, changes[name].kind) == ("predicted", "measured")
        assert (changes[name].before_ms, changes[name].ms) == (
            old[name].predicted_latency_ms,
            ranked[name].measured_latency_ms,
        )
    assert again.recommendation is not None
    assert f"and {again.recommendation.architecture} is still recommended." in again.ranking.notes[-1]
    assert "What the device has measured since" in (folder / "report.html").read_text()

    # What is on the front now may not have been before: the next request has it.
    for _ in range(3):
        smnas.profile(run=folder, table=there)
        smnas.rank(folder, there)
    done = smnas.rank(folder, there)
    assert read_ranking(folder) == done.ranking
    assert {row.architecture for row in done.front} == {row.architecture for row in full.rows if row.on_front}
    assert done.recommendation is not None
    assert full.recommendation is not None
    assert done.recommendation.architecture == full.recommendation.architecture
    measured = {row.architecture: row.measured_latency_ms for row in full.rows}
    assert all(row.measured_latency_ms == measured[row.architecture] for row in done.front)


@pytest.mark.slow
def test_mistakes_of_the_loop_are_one_line(
    search: Callable[..., smnas.SearchRun],
    table: Path,
    tmp_path: Path,
    device: list[str],
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    search()
    search("other", seed=1)
    run_folder, grown, empty = tmp_path / "run", tmp_path / "grown.db", tmp_path / "empty.db"
    LatencyTable(empty).close()
    request = json.loads((run_folder / "request.json").read_text())

    def refused(path: Path, message: str, *more: str) -> None:
        words = ["--device", "cpu", "--for", str(path), "--table", str(grown), *more]
        assert run(application("profile"), "smnas-profile", words) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(message, error), error
        assert not grown.exists()

    def changed(**values: Any) -> Path:
        (tmp_path / "request.json").write_text(json.dumps(request | values))
        return tmp_path / "request.json"

    shutil.copy(run_folder / "request.json", tmp_path / "other")
    refused(tmp_path / "other" / "request.json", "must be a request of the run that it lies in, .*, but is of")
    refused(tmp_path / "nothing.json", "--for is a run folder or its request, but got .*: No such file")
    refused(changed(classes=0), "is damaged: classes: Input should be greater than or equal to 1")
    refused(changed(detectors=[]), "is damaged: detectors: ")
    cut = changed()
    cut.write_text(cut.read_text()[:99])
    refused(cut, "must be a request as in a run folder, but it is damaged: the file: Invalid JSON")
    refused(
        changed(device="Orin"), f"must be a run for the device here, {re.escape(target.device)}, but it is for Orin"
    )
    refused(changed(backend_version="0.1"), "its table has 0.1: --accept-version [0-9.]+ measures with the one here")
    (tmp_path / "model.onnx").write_bytes(b"another run's")
    wanted = {**request["detectors"][0], "file": "model.onnx", "sha256": "0"}
    refused(changed(detectors=[wanted]), "must have the SHA-256 0 of the request, but has")
    words = ["--device", "cpu", "--arch", request["detectors"][0]["architecture"], "--accept-version", "1"]
    assert run(application("profile"), "smnas-profile", words) == 2
    assert "--accept-version is for --for" in capsys.readouterr().err
    with pytest.raises(UserError, match="must hold measurements, but holds none: measure there"):
        smnas.rank(run_folder, empty)
    with pytest.raises(UserError, match=r"--accept-version must be one that .* holds, .* but got 0\.1"):
        smnas.rank(run_folder, table, accept_version="0.1")
    monkeypatch.setattr("smnas.api.searches.backend_of", lambda *_: ThatDevice(target))
    search("here", device="cpu", accept_version=None)
    with pytest.raises(UserError, match=r"must be for a device elsewhere, but .* was for .* here"):
        smnas.rank(tmp_path / "here", table)


@pytest.mark.slow
def test_an_exported_file_counts_for_more_than_fresh_weights(
    search: Callable[..., smnas.SearchRun],
    table: Path,
    tmp_path: Path,
    device: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search()
    folder = tmp_path / "run"
    row = read_ranking(folder).rows[-1]
    (folder / "model.onnx").write_bytes(b"weights")
    complete_ranking(folder, read_settings(folder), {row.architecture: {"model": "model.onnx", "exported_ap": 0.1}})
    timed = FileLatency(7.0, 6.9, 7.1, (6.9, 7.0, 7.1))
    files: list[str] = []

    def measure(given: Any, **_: Any) -> dict[str, FileLatency]:
        files.extend(given)
        assert all(canvas.shape[:2] == (1, 3) for _, canvas in given.values())
        return dict.fromkeys(given, timed)

    monkeypatch.setattr("smnas.deploy.request.measure_files", measure)
    found = smnas.profile(run=folder, table=table)
    assert (found.end_to_end_ms or {})[f"{row.architecture} as exported"] == 7.0
    assert smnas.profile(run=folder, table=table).end_to_end_ms == found.end_to_end_ms
    assert files == [row.architecture]
    again = {one.architecture: one for one in smnas.rank(folder, table).ranking.rows}[row.architecture]
    assert (again.measured_latency_ms, again.measured_latency_low_ms, again.measured_latency_high_ms) == (7, 6.9, 7.1)
    (folder / "model.onnx").write_bytes(b"other weights")  # those have not been measured
    again = {one.architecture: one for one in smnas.rank(folder, table).ranking.rows}[row.architecture]
    assert again.measured_latency_ms == row.measured_latency_ms
