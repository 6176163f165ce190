"""A run folder's ranking becomes files that were measured, and survives being interrupted."""

import csv
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest

from profiler.errors import UserError
from smnas.data.coco import CocoFolder, DetectionDataset
from smnas.deploy import ranked as ranked_module
from smnas.deploy.export import ExportMismatchError
from smnas.deploy.latency import FileLatency
from smnas.deploy.ranked import DeployEvent, deploy_ranking
from smnas.evaluation.predict import evaluate
from smnas.inference.detector import Detector
from smnas.inference.runtime import EagerDetector, OnnxDetector, OpenVinoDetector, load_model
from smnas.report.page import write_report
from smnas.report.run_folder import read_run_folder
from smnas.report.samples import sample_detections
from smnas.search.ranking.notes import search_notes
from smnas.search.ranking.ranking import Ranking, RankingRow, read_ranking, write_ranking
from smnas.search.study.settings import SearchSettings, StageTrials, data_facts, prepare_run_folder, read_settings
from smnas.space.architecture import Architecture

BASELINE = "basicblock_8_1-1-2+fpn_3-4_16+rpn+rcnn_16+96x64"
BEST = "basicblock_8_1-1-2+fpn_3-4_16+norpn+retina_16_1+64x64"
OTHER = "basicblock_8_1-1-1+fpn_3-4_16+norpn+retina_16_1+64x64"


def row(
    architecture: str, role: Literal["baseline", "candidate"], ap: float, latency: float, checkpoint: str
) -> RankingRow:
    return RankingRow(
        rank=0,
        architecture=architecture,
        id=Architecture.parse(architecture).id,
        role=role,
        stage="final",
        on_front=True,
        ap=ap,
        ap_std=None,
        ap_per_seed=(ap,),
        ap50=None,
        seeds=(0,),
        epochs=2,
        predicted_latency_ms=latency,
        predicted_latency_low_ms=None,
        predicted_latency_high_ms=None,
        checkpoint=checkpoint,
    )


def make_run(
    folder: Path,
    data: CocoFolder,
    make_checkpoint: Callable[..., Path],
    precision: str = "fp32",
    **values: Any,
) -> SearchSettings:
    """A ranking of three detectors with real checkpoints: best, baseline, and one over any latency."""
    settings = SearchSettings(
        smnas="0.1.0",
        preset="nano",
        data=data_facts(data, folder),
        device="a processor",
        backend="onnxruntime",
        precision=precision,
        recipe={},
        epochs=2,
        scorer="trained-ap",
        trials=StageTrials(structural=1, modular=1),
        top=1,
        **values,
    )
    prepare_run_folder(folder, settings)
    rows = []
    for architecture, role, ap, latency in (
        (BEST, "candidate", 0.3, 2.0),
        (BASELINE, "baseline", 0.2, 5.0),
        (OTHER, "candidate", 0.1, 1.0),
    ):
        relative = Path("models") / architecture / "seed-0-epochs-2" / "checkpoint.pt"
        (folder / relative).parent.mkdir(parents=True)
        make_checkpoint(folder / relative, architecture, data.classes, data.category_ids)
        rows.append(row(architecture, role, ap, latency, str(relative)))  # type: ignore[arg-type]
    write_ranking(folder, settings, Ranking(tuple(rows), None, notes=("A note of the search.",)))
    return settings


def forget_latencies(folder: Path) -> None:
    document = json.loads((folder / "ranking.json").read_text())
    for one in document["rows"]:
        one.update(measured_latency_ms=None, measured_latency_low_ms=None, measured_latency_high_ms=None)
    (folder / "ranking.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def data(aquarium_mini: Path) -> CocoFolder:
    return CocoFolder(aquarium_mini)


@pytest.fixture(scope="module")
def dataset(data: CocoFolder) -> DetectionDataset:
    return data.split("val")


@pytest.fixture(scope="module")
def deployed(
    tmp_path_factory: pytest.TempPathFactory, data: CocoFolder, make_checkpoint: Callable[..., Path]
) -> tuple[Path, list[DeployEvent]]:
    folder = tmp_path_factory.mktemp("deployed") / "run"
    make_run(folder, data, make_checkpoint)
    events: list[DeployEvent] = []
    report = deploy_ranking(folder, data.split("val"), rounds=3, on_event=events.append)
    assert set(report.exported) == {BEST, BASELINE}
    assert (report.skipped, report.failed) == ((), ())
    return folder, events


def test_the_best_and_the_baseline_are_files_with_their_own_numbers(
    deployed: tuple[Path, list[DeployEvent]], dataset: DetectionDataset
) -> None:
    folder, _ = deployed
    rows = {one.architecture: one for one in read_ranking(folder).rows}
    for architecture in (BEST, BASELINE):
        one = rows[architecture]
        assert one.model == f"models/{architecture}/model.onnx"
        model = OnnxDetector(folder / str(one.model))
        assert model.metadata.architecture == architecture
        checkpoint = EagerDetector(folder / str(one.checkpoint))
        expected = evaluate(checkpoint, dataset, *checkpoint.input_size, batch_size=4)
        assert one.exported_ap == pytest.approx(expected.ap, abs=1e-3)
        assert one.exported_ap50 == pytest.approx(expected.ap50, abs=1e-3)
        assert one.measured_latency_ms is not None
        assert one.measured_latency_low_ms is not None
        assert one.measured_latency_high_ms is not None
        assert 0 < one.measured_latency_low_ms <= one.measured_latency_ms <= one.measured_latency_high_ms
    assert rows[OTHER].model is None
    assert rows[OTHER].measured_latency_ms is None


def test_openvino_gives_the_files_the_same_numbers(
    deployed: tuple[Path, list[DeployEvent]], dataset: DetectionDataset
) -> None:
    pytest.importorskip("openvino")
    folder, _ = deployed
    for one in read_ranking(folder).rows:
        if one.model is not None:
            model = load_model(folder / one.model, runtime="openvino", threads=1)
            metrics = evaluate(model, dataset, *model.input_size, batch_size=1)
            assert metrics.ap == pytest.approx(one.exported_ap, abs=1e-3)
            assert metrics.ap50 == pytest.approx(one.exported_ap50, abs=1e-3)


def test_the_files_of_a_search_in_openvino_run_there_by_default(
    deployed: tuple[Path, list[DeployEvent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    folder, _ = deployed
    assert isinstance(Detector(folder).model, OnnxDetector)
    in_openvino = read_settings(folder).model_copy(update={"backend": "openvino"})
    monkeypatch.setattr("smnas.search.study.settings.read_settings", lambda _: in_openvino)
    assert isinstance(Detector(folder).model, OpenVinoDetector)
    assert isinstance(Detector(folder, runtime="onnxruntime").model, OnnxDetector)


def test_the_table_for_people_says_the_same(deployed: tuple[Path, list[DeployEvent]]) -> None:
    folder, _ = deployed
    with (folder / "ranking.csv").open(newline="") as file:
        lines = {line["architecture"]: line for line in csv.DictReader(file)}
    for one in read_ranking(folder).rows:
        written = lines[one.architecture]["measured_latency_ms"]
        assert (float(written) if written else None) == one.measured_latency_ms


def test_other_numbers_than_at_training_are_noted(deployed: tuple[Path, list[DeployEvent]]) -> None:
    # The ranking's APs were invented.
    notes = read_ranking(deployed[0]).notes
    assert notes[0] == "A note of the search."
    assert any("its checkpoint had 0.3000" in note for note in notes)


def test_progress_covers_every_step(deployed: tuple[Path, list[DeployEvent]], dataset: DetectionDataset) -> None:
    _, events = deployed
    assert {event.step for event in events} == {"export", "evaluate", "time"}
    assert [e.done for e in events if e.step == "evaluate" and e.architecture == BEST] == list(
        range(1, len(dataset) + 1)
    )
    assert [(e.done, e.total) for e in events if e.step == "time"] == [(n, 6) for n in range(1, 7)]


def test_a_second_call_does_nothing(
    deployed: tuple[Path, list[DeployEvent]], dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = deployed
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(ranked_module, "export_detector", None)
    monkeypatch.setattr(ranked_module, "measure_files", None)
    report = deploy_ranking(folder, dataset)
    assert (report.exported, set(report.skipped)) == ((), {BEST, BASELINE})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_interrupted_call_is_finished(
    deployed: tuple[Path, list[DeployEvent]],
    dataset: DetectionDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between the exports and the timing: nothing is exported again."""
    folder = tmp_path / "run"
    shutil.copytree(deployed[0], folder)
    forget_latencies(folder)
    monkeypatch.setattr(ranked_module, "export_detector", None)
    report = deploy_ranking(folder, dataset, rounds=1)
    assert set(report.skipped) == {BEST, BASELINE}
    assert sum(one.measured_latency_ms is not None for one in report.ranking.rows) == 2


@pytest.mark.slow
def test_what_can_not_be_exported_is_noted_and_the_rest_goes_on(
    data: CocoFolder,
    dataset: DetectionDataset,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    make_run(folder, data, make_checkpoint, latency_ms=10.0)
    cut = folder / "models" / BASELINE / "seed-0-epochs-2" / "checkpoint.pt"
    cut.write_bytes(cut.read_bytes()[:1000])

    def mismatch(checkpoint: Path, out: Path, **_: object) -> None:
        if BEST in str(out):
            raise ExportMismatchError("two lines\nof differences")
        real(checkpoint, out)

    real = ranked_module.export_detector
    monkeypatch.setattr(ranked_module, "export_detector", mismatch)
    report = deploy_ranking(folder, dataset, top=3, rounds=1)
    failed = dict(report.failed)
    assert failed[BEST] == "two lines of differences"
    assert "cut off" in failed[BASELINE]
    assert report.exported == (OTHER,)
    notes = read_ranking(folder).notes
    assert f"{BEST} could not be exported: two lines of differences" in notes
    assert read_ranking(folder).rows[0].model is None


def test_measured_latencies_decide_who_is_recommended(
    deployed: tuple[Path, list[DeployEvent]],
    dataset: DetectionDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best one misses the limit once it is measured: the next one is recommended, exported and measured."""
    folder = tmp_path / "run"
    shutil.copytree(deployed[0], folder)
    document = json.loads((folder / "settings.json").read_text())
    document["latency_ms"] = 3.0
    (folder / "settings.json").write_text(json.dumps(document))
    forget_latencies(folder)
    times = {BEST: 50.0, BASELINE: 60.0, OTHER: 2.0}

    def measure(files: dict[str, Any], **_: object) -> dict[str, FileLatency]:
        return {name: FileLatency(times[name], times[name], times[name], (times[name],)) for name in files}

    monkeypatch.setattr(ranked_module, "measure_files", measure)
    report = deploy_ranking(folder, dataset)
    assert report.exported == (OTHER,)
    assert report.ranking.recommendation is not None
    assert report.ranking.recommendation.architecture == OTHER
    assert "measured" in report.ranking.recommendation.reason


def test_the_best_of_all_is_a_file_though_it_is_ranked_behind_the_baseline(
    deployed: tuple[Path, list[DeployEvent]], dataset: DetectionDataset, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(deployed[0], folder)
    ranking = read_ranking(folder)
    slow = {"ap": 0.9, "ap_per_seed": (0.9,), "predicted_latency_ms": 500.0}
    rows = [replace(one, **slow) if one.architecture == OTHER else one for one in ranking.rows]  # type: ignore[arg-type]
    written = write_ranking(folder, read_settings(folder), replace(ranking, rows=tuple(rows)))
    assert [one.architecture for one in written.rows] == [BEST, BASELINE, OTHER]
    assert deploy_ranking(folder, dataset, top=1, rounds=1).exported == (OTHER,)


@pytest.mark.slow
def test_a_search_in_int8_ends_with_files_in_int8(
    data: CocoFolder, dataset: DetectionDataset, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    settings = make_run(tmp_path, data, make_checkpoint, precision="int8")
    report = deploy_ranking(tmp_path, dataset, calibration=data.split("train"), rounds=1)
    assert set(report.exported) == {BEST, BASELINE}
    for one in report.ranking.rows:
        if one.model is not None:
            model = OnnxDetector(tmp_path / one.model)
            assert model.metadata.precision == "int8"
            nodes = Counter(node.op_type for node in onnx.load(tmp_path / one.model).graph.node)
            assert nodes["QuantizeLinear"] > 0
            assert one.exported_ap == pytest.approx(evaluate(model, dataset, *model.input_size, batch_size=1).ap)
            assert one.measured_latency_ms is not None
    (note,) = search_notes((), settings, {}, True)
    assert note == (
        "Latencies and exported files are of int8. AP is that of the training, in fp32; a file's own AP stands beside "
        "it."
    )


def test_int8_without_images_to_calibrate_on_is_noted(
    data: CocoFolder, dataset: DetectionDataset, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    make_run(tmp_path, data, make_checkpoint, precision="int8")
    report = deploy_ranking(tmp_path, dataset, rounds=1)
    assert report.exported == ()
    assert "int8 needs images to calibrate on" in dict(report.failed)[BEST]


def test_images_of_other_classes_are_refused(
    deployed: tuple[Path, list[DeployEvent]], dataset: DetectionDataset, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(deployed[0], folder)
    document = json.loads((folder / "settings.json").read_text())
    document["data"]["classes"] = ["boat"]
    (folder / "settings.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="must have the search's classes, boat"):
        deploy_ranking(folder, dataset)


def test_the_report_shows_the_deployed_winner(deployed: tuple[Path, list[DeployEvent]]) -> None:
    folder, _ = deployed
    run = read_run_folder(folder)
    samples = sample_detections(run, count=3)
    assert len(samples) == 3
    assert len({sample.caption for sample in samples}) == 3
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 6
    assert run.winner is not None
    assert run.winner.measured_latency_ms is not None
    assert f"{run.winner.measured_latency_ms:.2f} ms" in page
    assert not math.isnan(run.winner.exported_ap or 0.0)
    known = run.settings.data
    for facts, says in (
        ({"root": "absent"}, "no folder"),
        ({"val_images": 9}, "it holds 16 validation images instead of 9"),
    ):
        settings = run.settings.model_copy(update={"data": known.model_copy(update=facts)})
        with pytest.raises(UserError, match=says):
            sample_detections(replace(run, settings=settings))


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ((2.1, 5.1, 1.0), None),
        ((2.3, 5.1, 1.0), None),  # one of three 90% intervals misses in 27 of 100 cases
        ((2.3, 5.9, 1.0), None),  # two in 3
        ((2.3, 5.9, 1.3), "Of 3 exported files 3 took longer or shorter than"),
        ((6.4, 5.1, 1.0), "one 3.2 times its prediction"),
        ((2.0, 5.0, 0.4), "one 0.4 times its prediction"),
    ],
)
def test_predictions_that_do_not_hold_are_noted_with_what_to_do(
    measured: tuple[float, float, float], said: str | None
) -> None:
    settings = SearchSettings.model_construct(backend="onnxruntime", latency_confidence=0.9)
    rows = [
        replace(
            one,
            predicted_latency_low_ms=0.9 * one.predicted_latency_ms,
            predicted_latency_high_ms=1.1 * one.predicted_latency_ms,
        )
        for one in (
            row(BEST, "candidate", 0.3, 2.0, ""),
            row(BASELINE, "baseline", 0.2, 5.0, ""),
            row(OTHER, "candidate", 0.1, 1.0, ""),
        )
    ]
    notes = ranked_module._latency_notes(settings, rows, dict(zip((BEST, BASELINE, OTHER), measured, strict=True)))
    assert len(notes) == (said is not None)
    if said is not None:
        assert said in notes[0]
        assert "`smnas doctor --measure`" in notes[0]
