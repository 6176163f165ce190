"""The Python door: what the commands do, as functions that return values, resume and print nothing."""

import importlib.util
import inspect
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import smnas
from profiler.errors import UserError
from profiler.timing.measurement import TimingSettings
from smnas import api
from smnas.cli.detect import DetectOptions
from smnas.cli.export import ExportOptions
from smnas.cli.profile import ProfileOptions
from smnas.cli.search import SearchOptions
from smnas.cli.train import TrainOptions
from smnas.data.shapes import generate_shapes
from smnas.search.progress import SearchEvent

ARCH = "basicblock_8_1-1-2+fpn_3-4_16+norpn+retina_16_1+64x64"
QUICK = TimingSettings(relative_half_width=0.5, min_samples=3, max_samples=5, time_limit_s=0.2, warmup_s=0.0)
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("data") / "images", train=4, val=2, width=64, height=64)


class Phases(list[str]):
    """Records which phases were reported."""

    def __call__(self, phase: str, done: float, total: float | None, text: str = "") -> None:
        assert total is None or 0 <= done <= total
        if phase not in self:
            self.append(phase)


def test_importing_smnas_loads_nothing_heavy_and_names_come_when_they_are_used() -> None:
    code = (
        "import sys, smnas\n"
        "assert 'torch' not in sys.modules and 'optuna' not in sys.modules and 'numpy' not in sys.modules\n"
        f"smnas.Architecture.parse({ARCH!r}); smnas.load_space('nano')\n"
        "assert 'torch' not in sys.modules\n"
        "import smnas.search.run, smnas.report.page  # packages that are functions as well\n"
        "assert callable(smnas.search) and callable(smnas.report)\n"
        "assert all(getattr(smnas, name) is not None for name in smnas.__all__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        smnas.serach  # type: ignore[attr-defined]  # noqa: B018
    assert set(smnas.__all__) <= set(dir(smnas))


@pytest.mark.parametrize(
    ("function", "options", "apart"),
    [
        (api.search, SearchOptions, {"trials"}),
        # `--supernet PRESET` instead of `--arch` is a function of its own
        (api.train, TrainOptions, {"arch", "supernet"}),
        (api.export, ExportOptions, set()),
        (api.detect, DetectOptions, set()),
        # `--threads 1,2` is a call for each
        (api.profile, ProfileOptions, {"estimate", "build_engines", "compute_capability", "workers", "threads"}),
    ],
)
def test_arguments_are_the_options(function: Any, options: Any, apart: set[str]) -> None:
    """By name, and with the options' defaults: what the shell does, Python does."""
    parameters = inspect.signature(function).parameters
    for one in fields(options):
        if one.name in {"as_json", "quiet", *apart}:
            continue
        assert one.name in parameters
        default = parameters[one.name].default
        if one.default is None:
            assert default in (None, ())
        elif isinstance(one.default, str | int | float):
            assert default == one.default, one.name


@pytest.mark.slow
def test_train_evaluate_export_and_detect(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    phases, epochs = Phases(), []
    run = smnas.train(
        ARCH, images, tmp_path / "run", epochs=1, on_epoch=lambda log: epochs.append(log.epoch), on_progress=phases
    )
    assert (run.epochs, epochs, run.folder) == (1, [1], tmp_path / "run")
    assert run.checkpoint == tmp_path / "run" / "checkpoint.pt"
    assert 0 <= run.ap == run.metrics["ap"] <= 1
    assert phases == ["checking validation images", "epoch", "evaluating, %"]

    again = Phases()
    same = smnas.train(ARCH, images, tmp_path / "run", epochs=1, on_progress=again)
    assert same.metrics == pytest.approx(run.metrics, nan_ok=True)
    assert again == [], "what is finished is read"

    evaluating = Phases()
    found = smnas.evaluate(tmp_path / "run", images, on_progress=evaluating)
    assert (found.ap, found.images, evaluating) == (pytest.approx(run.ap), 2, ["evaluating"])

    exported = smnas.export(tmp_path / "run", tmp_path / "model.onnx")
    assert exported.path.is_file()
    detector = smnas.Detector(exported.path, score=0.0)
    paths = sorted((images / "val").iterdir())
    here, there = detector(paths), run.detector(score=0.0)(paths)
    assert [len(one) for one in here] == [len(one) for one in there]
    report = smnas.detect(exported.path, [images / "val"], score=0.0)
    assert [image.path for image in report.images] == paths
    assert [image.detections for image in report.images] == [tuple(one) for one in here]
    with pytest.raises(UserError, match="an existing file or run folder, but got nowhere"):
        smnas.Detector("nowhere")
    assert capfd.readouterr() == ("", "")


def test_build_takes_a_string_or_an_architecture() -> None:
    network = smnas.build(ARCH, 3, device="meta")
    assert str(network.architecture) == ARCH
    assert repr(network) == repr(smnas.build(smnas.Architecture.parse(ARCH), 3, device="meta"))
    with pytest.raises(UserError, match="at least one class"):
        smnas.build(ARCH, 0)


def test_profile_measures_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table, phases = tmp_path / "table.db", Phases()
    options: dict[str, Any] = {"arch": [ARCH], "device": "cpu", "backend": "eager", "classes": 3, "table": table}
    first = smnas.profile(**options, timing=QUICK, on_progress=phases)
    assert first.blocks.measured > 0
    assert (first.table, first.backend, first.detectors, phases) == (table, "eager", 1, ["detectors covered"])
    assert (first.cold, first.builds, first.audit) == (None, None, None)
    second = smnas.profile(**options)
    assert (second.blocks.measured, second.blocks.cached) == (0, first.blocks.measured)
    stopped = smnas.profile(**{**options, "classes": 4}, time_limit=0)
    assert stopped.blocks.left == {"blocks": 0, "detectors": 1}
    estimate = smnas.estimate("v100", arch=[ARCH], classes=3, table=table)
    assert estimate["architectures"][0]["low_ms"] <= estimate["architectures"][0]["sum_ms"]
    assert capfd.readouterr() == ("", "")


def _search(out: Path, images: Path | None, **options: Any) -> api.SearchRun:
    usual: dict[str, Any] = {
        "device": "cpu", "backend": "eager", "epochs": 1, "final_epochs": 0, "top": 1, "workers": 1, "trials": (1, 0),
        "calibration": 0, "timing": QUICK, "deploy": False,
    }  # fmt: skip
    return smnas.search(out, images, **{**usual, **options})


@pytest.mark.slow
def test_search_gives_its_run_and_resumes(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    events: list[SearchEvent] = []
    phases = Phases()
    run = _search(tmp_path / "run", images, strategy="random", on_event=events.append, on_progress=phases)
    assert "checking validation images" in phases
    assert [event.stage for event in events if event.state == "complete"] == ["baseline", "structural"]
    assert run.recommendation is not None
    assert run.recommendation.architecture in {row.architecture for row in run.front}
    assert {row.role for row in run.ranking.rows} == {"baseline", "candidate"}
    assert (run.folder / "report.html").is_file()
    assert run.report(tmp_path / "page.html") == tmp_path / "page.html"
    assert len(run.detector(score=0.0)([next((images / "val").iterdir())])) == 1
    events.clear()
    again = _search(tmp_path / "run", images, strategy="random", on_event=events.append)
    assert again.ranking == run.ranking == api.SearchRun(str(tmp_path / "run")).ranking
    assert events == []
    with pytest.raises(UserError, match="seed = 0"):
        _search(tmp_path / "run", images, strategy="random", seed=1)
    copy = Path(shutil.copytree(images, tmp_path / "copy"))
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert _search(moved, copy, strategy="random", on_event=events.append).ranking == run.ranking
    assert _search(moved, None, strategy="random", on_event=events.append).ranking == run.ranking, (
        "where they were last"
    )
    assert events == []
    assert not (moved / "data").exists()
    assert len(smnas.Detector(moved)([next((copy / "val").iterdir())])) == 1
    assert capfd.readouterr() == ("", "")


INVERTED = """
name = "inverted"
description = "Inverted residuals only."
recipe = "nano"
baseline = "mobilenetv2_25+fpn_3-4_16+norpn+retina_16_1+64x64"
[structural]
backbones = ["mobilenetv2_25", "inverted_8_1-2-2", "mbconv_8_12k3e3-16k5e3-24k3e4"]
necks = ["fpn_3-4_16"]
rpns = ["norpn"]
heads = ["retina_16_1"]
inputs = ["64x64"]
[modular]
stages = [3]
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import torchvision

    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(torchvision.models.mobilenet_v2(width_mult=0.25).state_dict(), path)
    return path


@pytest.mark.slow
def test_all_detectors_of_a_search_start_from_the_same_weights(images: Path, weights: Path, tmp_path: Path) -> None:
    from profiler.table.latency_table import LatencyTable
    from smnas.latency.prediction import LatencyPredictor
    from smnas.space.architecture import Architecture
    from smnas.training.checkpoint import load_checkpoint

    (tmp_path / "inverted.toml").write_text(INVERTED)
    options: dict[str, Any] = {"preset": str(tmp_path / "inverted.toml"), "strategy": "random", "trials": (2, 0)}
    options |= {"workers": 2, "final_epochs": 1}
    run = _search(tmp_path / "run", images, pretrained=weights, **options)
    infos = [load_checkpoint(path).info for path in (run.folder / "models").rglob("checkpoint.pt")]
    assert len({info.architecture for info in infos}) == 3
    (digest,) = {info.pretrained for info in infos}
    assert {(info.norm, info.stem) for info in infos} == {("bn", "deep")}
    with LatencyTable(run.folder / "latency.db", read_only=True) as table:
        (target,) = table.targets()
        exact = LatencyPredictor(table.current(target), len(infos[0].classes), norm="bn")
        assert all(exact.parts_sum(Architecture.parse(info.architecture)).ms > 0 for info in infos)
    assert any(f"started from mobilenet.pth ({digest})" in note for note in run.ranking.notes)
    events: list[SearchEvent] = []
    moved = Path(shutil.copy(weights, tmp_path / "elsewhere.pth"))
    assert _search(run.folder, images, pretrained=moved, **options, on_event=events.append).ranking.rows
    assert events == []
    with pytest.raises(UserError, match=rf"pretrained_digest = '{digest}' in .*, but got None"):
        _search(run.folder, images, **options)
    with pytest.raises(
        UserError, match=r"same data, recipe, epochs, scorer, pretrained_digest, norm, but .* pretrained_digest"
    ):
        _search(tmp_path / "scratch", images, warm_start=run.folder, **options)
    again = _search(tmp_path / "again", images, pretrained=run.folder, **{**options, "trials": (1, 0), "workers": 1})
    assert any(f"{digest}" not in note and "started from" in note for note in again.ranking.notes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"same kind of block, but .*mobilenet\.pth has inverted and basicblock_8_1-2-2 has basicblock"),
        ({"scorer": "entropy"}, "mae-det proposes super-blocks"),
        ({"pretrained": "absent.pth"}, "there is no file .*absent.pth"),
        ({"pretrained": "imagenet"}, r"lie in .*checkpoints, but for resnet18-f37072fd\.pth got: no network"),
    ],
)
def test_weights_that_a_search_cannot_start_from_are_refused_at_once(
    options: dict[str, Any], says: str, images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(UserError, match=says):
        smnas.search(tmp_path / "run", images, **({"device": "cpu", "pretrained": weights} | options))
    assert not (tmp_path / "run").exists()


def _example(name: str) -> Any:
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 30
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_strategy_of_ones_own(images: Path, tmp_path: Path) -> None:
    events: list[SearchEvent] = []
    strategy = _example("own_strategy").hill_climbing
    run = _search(tmp_path / "run", images, strategy=strategy, on_event=events.append)
    assert [event.stage for event in events if event.state == "complete"] == ["baseline", "structural"]
    assert run.recommendation is not None


@pytest.mark.slow
def test_a_scorer_of_ones_own(images: Path, tmp_path: Path) -> None:
    events: list[SearchEvent] = []
    scorer = _example("own_scorer").ManyFlops()
    options: dict[str, Any] = {"scorer": scorer, "strategy": "random", "final_epochs": 1, "trials": (2, 0)}
    run = _search(tmp_path / "run", images, **options, on_event=events.append)
    scored = [event for event in events if event.state == "complete" and event.stage == "structural"]
    assert [event.metric for event in scored] == ["GFLOPs"] * 2
    assert all(event.score is not None and event.score > 0 for event in scored)
    assert run.recommendation is not None, "the final phase trains"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"trials": "1,0"}, r"trials must be two whole numbers as in \(20, 20\), the first above 0, but got '1,0'"),
        ({"trials": (1,)}, r"two whole numbers .* but got \(1,\)"),
        ({"trials": (0, 0)}, r"the first above 0, but got \(0, 0\)"),
        ({"trials": (1, -1)}, r"the first above 0, but got \(1, -1\)"),
        ({"latency_ms": "5"}, "--latency-ms must be a number above 0, but got '5'"),
        ({"latency_ms": 0}, "--latency-ms must be a number above 0, but got 0"),
        ({"latency_ms": float("nan")}, "--latency-ms must be a number above 0, but got nan"),
        ({"latency_confidence": 1}, "--latency-confidence must be a number between 0 and 1, but got 1"),
        ({"max_parameters": 1.5}, "--max-parameters must be a whole number above 0, but got 1.5"),
        ({"rounds": "6"}, "--rounds must be a whole number above 0, but got '6'"),
        ({"threads": (1, 2)}, r"--threads must be a whole number above 0, but got \(1, 2\)"),
        ({"pretrained": 5}, "--pretrained must be imagenet, a file or a folder, but got 5"),
        ({"pretrained": ""}, "--pretrained must be imagenet, a file or a folder, but got ''"),
        ({"top": 0}, "--top: input should be greater than or equal to 1, but got 0"),
        ({"top": 2.5}, "--top: .* but got 2.5"),
        ({"final_epochs": -1}, "--final-epochs: .* but got -1"),
        ({"seed": -1}, "--seed: .* but got -1"),
        ({"device": "v100", "table": "absent.db"}, "latencies of v100 .*; --table absent.db is no file"),
    ],
)
def test_a_wrong_argument_is_one_line_and_leaves_nothing(
    wrong: dict[str, Any], says: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        smnas.search(tmp_path / "run", images, **({"device": "cpu"} | wrong))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_run_to_start_from_is_a_path(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        smnas.search(tmp_path / "run", images, device="cpu", warm_start=str(tmp_path / "absent"))


def test_a_search_in_this_process_leaves_its_threads_as_they_were() -> None:
    import torch

    from smnas.api.searches import _in_process

    outside = torch.get_num_threads()
    with _in_process(None, outside + 1):  # type: ignore[arg-type]
        assert torch.get_num_threads() == outside + 1
    assert torch.get_num_threads() == outside
