"""Searches with shared weights: trained once, scored by evaluation, finalists fine-tuned."""

import json
from pathlib import Path

import pytest
import torch
from narrow_space import narrowed

import smnas.supernet.training as training
from profiler.errors import UserError
from profiler.timing.measurement import TimingSettings
from smnas import api
from smnas.data.coco import CocoFolder
from smnas.data.shapes import generate_shapes
from smnas.evaluation.predict import eager_detect, evaluate
from smnas.scoring.base import ScoringFailedError
from smnas.scoring.shared_ap import FineTunedAP, SharedAP
from smnas.search.study.optuna_study import Study
from smnas.search.study.settings import read_settings
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space, space_toml
from smnas.supernet.training import load_supernet
from smnas.training.checkpoint import load_checkpoint
from smnas.training.recipe import load_recipe

SPACE = narrowed(
    load_space("nano"),
    "basicblock_8_1-2-2+fpn_3-4_16+norpn+fcos_16_1+64x64",
    {"blocks": ("basicblock",), "bases": (8,), "stages": (3,), "max_blocks": 4, "fpn_widths": (8, 16)},
    backbones=("basicblock_8_1-2-2",),
    necks=("fpn_3-4_16",),
    rpns=("norpn",),
    heads=("fcos_16_1",),
    inputs=("64x64",),
)
OPTIONS = {
    "device": "cpu",
    "backend": "eager",
    "scorer": "shared-ap",
    "trials": (3, 0),
    "recipe": load_recipe("nano").with_(batch_size=2),
    "epochs": 1,
    "supernet_epochs": 1,
    "final_epochs": 1,
    "top": 1,
    "workers": 1,
    "calibration": 0,
    "timing": TimingSettings(relative_half_width=0.5, min_samples=3, max_samples=5, time_limit_s=0.2, warmup_s=0.0),
    "rounds": 1,
    "deploy": False,
}


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("space") / "own.toml"
    file.write_text(space_toml(SPACE), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes"), train=6, val=3, width=64, height=64)


@pytest.mark.slow
@pytest.mark.parametrize("final", ["fine-tune", "scratch"])
def test_a_search_trains_shared_weights_once_and_then_the_finalists(
    final: str, preset: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "run", {**OPTIONS, "preset": preset, "final": None if final == "fine-tune" else final}
    done: list[tuple[str, float]] = []
    run = api.search(out, data, **options, on_progress=lambda phase, far, *_: done.append((phase, far or 0.0)))
    settings = read_settings(out)
    assert (settings.strategy, settings.final, settings.trains) == ("nsga2", final, False)
    assert [far for phase, far in done if phase == "training shared weights, %"][-1] == 100
    assert [row.stage for row in run.ranking.rows] == ["final"] * 2  # the baseline and one candidate
    assert any("fine-tuned every detector" in note for note in run.ranking.notes) == (final == "fine-tune")

    folder, supernet = CocoFolder(data), load_supernet(out / "supernet", SPACE)
    with Study(out, None, settings.study, settings.metric) as study:
        scored = [c for c in study.candidates if c.metric == "AP with shared weights"]
        assert len(scored) == 4
        for candidate in scored:
            detect = eager_detect(supernet.extract(candidate.architecture), "cpu")
            assert candidate.score == pytest.approx(evaluate(detect, folder.split("val"), 64, 64, 2).ap, abs=1e-6)
        tuned = next(c for c in study.candidates if c.stage == "final")
    info = load_checkpoint(out / str(tuned.checkpoint)).info
    assert (info.pretrained is not None) == (final == "fine-tune")
    assert info.started_from.startswith("the supernet of nano") == (final == "fine-tune")

    monkeypatch.setattr(training, "fit_batches", None)  # nothing is trained again
    assert api.search(out, data, **options).ranking == run.ranking


def test_a_score_is_read_back_and_a_strange_detector_has_none(data: Path, tmp_path: Path) -> None:
    scorer = SharedAP(CocoFolder(data), load_recipe("nano"))
    with pytest.raises(RuntimeError, match="`prepare` must be called"):
        scorer.score(SPACE.baseline_architecture, seed=0, epochs=1, out_dir=tmp_path)
    with torch.random.fork_rng(devices=[]):
        scorer._supernet = training.Supernet(SPACE, 6)
    first = scorer.score(SPACE.baseline_architecture, seed=0, epochs=1, out_dir=tmp_path / "one")
    file = tmp_path / "one" / "shared-ap.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "ap": 0.5}))
    assert first.value != scorer.score(SPACE.baseline_architecture, seed=0, epochs=1, out_dir=file.parent).value == 0.5
    strange = Architecture.parse("bottleneck_8_1-2-2+fpn_3-4_16+norpn+fcos_16_1+64x64")
    with pytest.raises(ScoringFailedError, match="shared weights must be those of the detector's space"):
        scorer.score(strange, seed=0, epochs=1, out_dir=tmp_path / "two")


def test_fine_tuning_starts_from_the_slices(data: Path) -> None:
    scorer = FineTunedAP(CocoFolder(data), load_recipe("nano"))
    with torch.random.fork_rng(devices=[]):
        scorer._supernet = training.Supernet(SPACE, 6)
    detector = scorer._build(SPACE.baseline_architecture, 0)
    scorer._start(detector)
    for name, weight in scorer._supernet.extract(SPACE.baseline_architecture).state_dict().items():
        assert torch.equal(detector.state_dict()[name], weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final": "both"}, "--final must be fine-tune or scratch with --scorer shared-ap, but got 'both'"),
        ({"scorer": "ap", "final": "fine-tune"}, "--final must be scratch with --scorer ap, but got 'fine-tune'"),
        (
            {"scorer": "ap", "supernet_epochs": 2},
            "--supernet-epochs goes with a scorer with shared weights, .* but got 'ap'",
        ),
        ({"supernet_epochs": 0}, "--supernet-epochs: .* 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, object], message: str, preset: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        api.search(tmp_path / "run", data, **{**OPTIONS, "preset": preset, **options})
    assert not (tmp_path / "run").exists()
