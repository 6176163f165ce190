"""The AP score on a small generated data set: resumable, reproducible, and every failure a reason."""

import json
import math
from pathlib import Path

import pytest
import torch
from curves import read_curve

import smnas.scoring.trained_ap as module
from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.data.shapes import generate_shapes
from smnas.evaluation.predict import eager_detect, evaluate
from smnas.scoring.base import Score, Scorer, ScoringFailedError, ScoringProgress
from smnas.scoring.by_name import SCORERS, UnknownScorerError, get_scorer
from smnas.scoring.trained_ap import TrainedAP
from smnas.space.architecture import Architecture
from smnas.training.checkpoint import load_detector_checkpoint
from smnas.training.recipe import load_recipe

TINY = Architecture.parse("basicblock_8_1-2-2+fpn_3-4_16+norpn+retina_16_1+64x64")
RECIPE = load_recipe("nano").with_(batch_size=8)
NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
NAMES += ["ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoFolder:
    return CocoFolder(generate_shapes(tmp_path_factory.mktemp("shapes"), train=24, val=8))


@pytest.fixture(scope="module")
def scored(data: CocoFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Score, Path, list[ScoringProgress]]:
    folder = tmp_path_factory.mktemp("run") / "seed-1-epochs-2"
    events: list[ScoringProgress] = []
    score = TrainedAP(data, RECIPE).score(TINY, seed=1, epochs=2, out_dir=folder, on_progress=events.append)
    return score, folder, events


@pytest.mark.slow
def test_a_score_is_the_ap_of_the_stored_weights(
    scored: tuple[Score, Path, list[ScoringProgress]], data: CocoFolder
) -> None:
    score, folder, _ = scored
    assert score.checkpoint == folder / "checkpoint.pt"
    detector, info = load_detector_checkpoint(score.checkpoint)
    again = evaluate(eager_detect(detector, "cpu"), data.split("val"), 64, 64, 5)
    assert score.value == score.metrics["ap"] == pytest.approx(again.ap, abs=1e-6)
    assert list(score.metrics) == NAMES
    assert info.metrics == score.metrics or any(map(math.isnan, score.metrics.values()))
    assert (info.architecture, info.seed, info.epoch) == (str(TINY), 1, 2)
    assert info.classes == data.classes
    assert info.category_ids == data.category_ids
    assert not detector.training


def test_the_folder_holds_what_the_report_reads(scored: tuple[Score, Path, list[ScoringProgress]]) -> None:
    score, folder, _ = scored
    assert sorted(file.name for file in folder.iterdir()) == ["checkpoint.pt", "curve.jsonl", "metrics.json"]
    written = json.loads((folder / "metrics.json").read_text())
    for name in NAMES:
        assert written[name] == (None if math.isnan(score.metrics[name]) else score.metrics[name])
    curve = read_curve(folder / "curve.jsonl")
    assert [log.epoch for log in curve] == [1, 2]
    assert score.seconds == pytest.approx(sum(log.seconds for log in curve))


def test_progress_goes_from_training_to_evaluation(scored: tuple[Score, Path, list[ScoringProgress]]) -> None:
    events = scored[2]
    assert [event.phase for event in events] == ["train"] * 6 + ["evaluate"]
    assert [event.done for event in events] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0, 1.0])
    assert all(event.images_per_s > 0 and event.eta_s >= 0 for event in events)


def test_a_complete_score_is_read_back(
    scored: tuple[Score, Path, list[ScoringProgress]], data: CocoFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, folder, _ = scored

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done twice")

    monkeypatch.setattr(module, "evaluate", never)
    (folder / "metrics.json").unlink()  # killed between the checkpoint and this file
    again = TrainedAP(data, RECIPE).score(TINY, seed=1, epochs=2, out_dir=folder, on_progress=never)
    assert again.value == score.value
    assert again.seconds == score.seconds
    assert again.metrics.keys() == score.metrics.keys()
    assert (folder / "metrics.json").is_file()


class Killed(BaseException):
    pass


def test_killed_anywhere_the_score_is_the_same(
    scored: tuple[Score, Path, list[ScoringProgress]], data: CocoFolder, tmp_path: Path
) -> None:
    for moment in (2, 4, 1):  # mid epoch 1, after epoch 1 is stored, then at the end of evaluation
        seen = 0

        def die(event: ScoringProgress) -> None:
            nonlocal seen
            seen += 1
            if seen == moment or event.phase == "evaluate":  # noqa: B023 - called within the iteration
                raise Killed

        with pytest.raises(Killed):
            TrainedAP(data, RECIPE).score(TINY, seed=1, epochs=2, out_dir=tmp_path, on_progress=die)
    result = TrainedAP(data, RECIPE).score(TINY, seed=1, epochs=2, out_dir=tmp_path)
    assert result.value == scored[0].value
    ours, theirs = load_detector_checkpoint(result.checkpoint)[0], load_detector_checkpoint(scored[0].checkpoint)[0]
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_another_seed_is_another_detector(
    scored: tuple[Score, Path, list[ScoringProgress]], data: CocoFolder, tmp_path: Path
) -> None:
    score = TrainedAP(data, RECIPE).score(TINY, seed=2, epochs=2, out_dir=tmp_path)
    ours, theirs = load_detector_checkpoint(score.checkpoint)[0], load_detector_checkpoint(scored[0].checkpoint)[0]
    assert any(not torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    with pytest.raises(UserError, match="one run"):
        TrainedAP(data, RECIPE).score(TINY, seed=1, epochs=2, out_dir=tmp_path)


def test_divergence_is_a_reason_and_a_record(data: CocoFolder, tmp_path: Path) -> None:
    wild = RECIPE.with_(learning_rate=1e30, clip_norm=1e30)
    with pytest.raises(ScoringFailedError) as error:
        TrainedAP(data, wild).score(TINY, seed=1, epochs=2, out_dir=tmp_path)
    assert "not finite in step" in error.value.reason
    assert json.loads((tmp_path / "failure.json").read_text())["reason"] == error.value.reason
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("failure", [RuntimeError("kernel too large\nmore"), ValueError("odd"), MemoryError()])
def test_what_torch_refuses_is_a_reason(
    data: CocoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(module, "fit", refuse)
    with pytest.raises(ScoringFailedError) as error:
        TrainedAP(data, RECIPE).score(TINY, seed=1, epochs=1, out_dir=tmp_path)
    assert error.value.reason.startswith(type(failure).__name__)
    assert "\n" not in error.value.reason
    assert error.value.__cause__ is failure


def test_scorers_by_name(data: CocoFolder) -> None:
    scorer: Scorer = get_scorer("ap")(data, RECIPE, "cpu")
    assert scorer.name == "ap"
    assert all(scorer.name == name for name, scorer in SCORERS.items())


def test_a_scorer_of_later_says_so() -> None:
    with pytest.raises(UnknownScorerError, match="'bn-indicator' is planned but not there yet"):
        get_scorer("bn-indicator")


def test_an_unknown_scorer_lists_the_known() -> None:
    with pytest.raises(
        UserError,
        match="a scorer is one of ap, entropy, entropy-16, entropy-deepmad, fine-tuned-ap, shared-ap, but got 'magic'",
    ):
        get_scorer("magic")


@pytest.mark.slow
def test_the_final_score_is_of_held_out_images_which_chose_nothing(
    scored: tuple[Score, Path, list[ScoringProgress]], data: CocoFolder, tmp_path: Path
) -> None:
    others = generate_shapes(tmp_path / "others", train=1, val=6, seed=9)
    recipe = RECIPE.with_(evaluate_every=1)
    scorer = TrainedAP(CocoFolder(data.root, test=others), recipe)
    final = scorer.score_final(TINY, seed=1, epochs=2, out_dir=tmp_path / "run")
    without = TrainedAP(data, recipe).score_final(TINY, seed=1, epochs=2, out_dir=tmp_path / "without")
    assert final.checkpoint is not None
    detector, info = load_detector_checkpoint(final.checkpoint)
    on = {
        name: evaluate(eager_detect(detector, "cpu"), CocoFolder(data.root, test=others).split(name), 64, 64, 5).ap
        for name in ("val", "test")
    }
    assert final.value == final.metrics["ap"] == pytest.approx(on["test"], abs=1e-6)
    assert final.metrics["validation_ap"] == without.value == pytest.approx(on["val"], abs=1e-6)
    assert "validation_ap" not in without.metrics
    assert info.data["test_images"] == 6
    searched = scorer.score(TINY, seed=1, epochs=2, out_dir=tmp_path / "searched")
    assert searched.value == without.value, "the search does not see them"
    assert "validation_ap" not in searched.metrics
    later = scorer.score_final(TINY, seed=1, epochs=2, out_dir=tmp_path / "without")
    assert later.metrics == pytest.approx(final.metrics, nan_ok=True), "a finished run may be evaluated on them later"
