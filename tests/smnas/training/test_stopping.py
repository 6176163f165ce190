"""A training that stops on the way and goes on ends as one that never stopped, and its score is read at the stop."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from curves import read_curve

from smnas.data.coco import CocoFolder
from smnas.data.shapes import generate_shapes
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.models.layers import NormKind
from smnas.scoring.base import ScoringFailedError, StoppingScorer
from smnas.scoring.trained_ap import TrainedAP
from smnas.space.architecture import Architecture
from smnas.training.checkpoint import load_checkpoint, load_detector_checkpoint
from smnas.training.curve import StepLog
from smnas.training.fit import fit
from smnas.training.recipe import load_recipe

TINY = Architecture.parse("basicblock_8_1-2-2+fpn_3-4_16+norpn+retina_16_1+64x64")
RECIPE = load_recipe("nano").with_(batch_size=4, ema_decay=0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoFolder:
    return CocoFolder(generate_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=4))


@pytest.mark.slow
def test_stopping_and_going_on_gives_the_same_weights(data: CocoFolder, tmp_path: Path) -> None:
    scorer = TrainedAP(data, RECIPE)
    assert isinstance(scorer, StoppingScorer)
    whole = scorer.score(TINY, seed=1, epochs=4, out_dir=tmp_path / "whole")
    parts = tmp_path / "parts"
    first = scorer.score_until(TINY, seed=1, epochs=4, stop_epoch=1, out_dir=parts)
    second = scorer.score_until(TINY, seed=1, epochs=4, stop_epoch=3, out_dir=parts)
    assert (first.epochs, second.epochs) == (1, 3)
    assert load_checkpoint(parts / "checkpoint.pt").info.complete is False
    last = scorer.score(TINY, seed=1, epochs=4, out_dir=parts)
    assert last.metrics == pytest.approx(whole.metrics, nan_ok=True)
    a, b = (load_checkpoint(folder / "checkpoint.pt").model for folder in (tmp_path / "whole", parts))
    assert all(torch.equal(a[name], b[name]) for name in a)
    rates = [
        [log.learning_rate for log in read_curve(folder / "curve.jsonl")] for folder in (tmp_path / "whole", parts)
    ]
    assert rates[0] == rates[1], "one schedule, wherever it stopped"
    assert json.loads((parts / "metrics-epoch-3.json").read_text())["ap"] == second.value


@pytest.mark.slow
def test_what_was_read_at_a_stop_is_not_read_again(
    data: CocoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = TrainedAP(data, RECIPE)
    first = scorer.score_until(TINY, seed=1, epochs=3, stop_epoch=1, out_dir=tmp_path)
    scorer.score_until(TINY, seed=1, epochs=3, stop_epoch=2, out_dir=tmp_path)
    monkeypatch.setattr(TrainedAP, "_evaluate", lambda *_: pytest.fail("evaluated again"))
    again = scorer.score_until(TINY, seed=1, epochs=3, stop_epoch=1, out_dir=tmp_path)
    assert again.metrics == pytest.approx(first.metrics, nan_ok=True)
    (tmp_path / "metrics-epoch-1.json").unlink()
    with pytest.raises(ScoringFailedError, match="can not go back to epoch 1, but is at 2"):
        scorer.score_until(TINY, seed=1, epochs=3, stop_epoch=1, out_dir=tmp_path)
    with pytest.raises(ValueError, match="stop_epoch < epochs"):
        scorer.score_until(TINY, seed=1, epochs=3, stop_epoch=3, out_dir=tmp_path)


@pytest.mark.slow
def test_a_stopped_detector_has_the_averaged_weights(data: CocoFolder, tmp_path: Path) -> None:
    scorer = TrainedAP(data, RECIPE)
    detector = scorer._build(TINY, 1)
    fit(detector, data.split("train"), RECIPE.with_(epochs=3), seed=1, out_dir=tmp_path, stop_epoch=1)
    stored = load_checkpoint(tmp_path / "checkpoint.pt")
    assert stored.average is not None
    assert all(torch.equal(detector.state_dict()[name], weight) for name, weight in stored.average.items())
    assert any(not torch.equal(stored.model[name], weight) for name, weight in stored.average.items())


@pytest.mark.parametrize("norm", ["gn-ws", "bn"])
def test_samplers_statistics_and_averages_survive_a_kill_in_every_epoch(
    norm: NormKind, data: CocoFolder, tmp_path: Path
) -> None:
    """With all that draws random numbers: mosaics, jitter, and the samples of guided anchors and of two RoI stages."""
    architecture = Architecture.parse("basicblock_8_1-2-2+fpn_2-4_16+garpn+cascade_2_16+64x64")
    recipe = RECIPE.with_(epochs=3, color_jitter=0.3, scale_jitter=(0.8, 1.2))

    runs = itertools.count()

    def train(folder: Path, on_step: Callable[[StepLog], None] | None = None) -> Detector:
        torch.manual_seed(0)
        detector = build_detector(architecture, len(data.classes), norm=norm)
        torch.manual_seed(next(runs))  # whatever was drawn before
        fit(detector, data.split("train"), recipe, seed=1, out_dir=folder, on_step=on_step)
        return detector

    whole = train(tmp_path / "whole").state_dict()
    for epoch in (1, 2, 3):

        def die(log: StepLog) -> None:
            if (log.epoch, log.step) == (epoch, 1):  # noqa: B023 - called within the iteration
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", die)
        assert len(read_curve(tmp_path / "killed" / "curve.jsonl")) == epoch - 1
    for name, tensor in train(tmp_path / "killed").state_dict().items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("dies_after", [None, 1, 2, 3])
def test_the_best_evaluated_epoch_gives_the_weights(dies_after: int | None, data: CocoFolder, tmp_path: Path) -> None:
    """With AP of 0.1, 0.3, 0.3 and 0.2 the second epoch's, wherever the process is killed."""
    aps, recipe, scorer = [0.1, 0.3, 0.3, 0.2], RECIPE.with_(evaluate_every=1), TrainedAP(data, RECIPE)
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(detector: Detector) -> tuple[float, float]:
        if len(seen) == dies_after:
            raise KeyboardInterrupt
        seen.append({name: tensor.clone() for name, tensor in detector.state_dict().items()})
        return aps[len(seen) - 1], 0.5

    def run() -> Detector:
        detector = scorer._build(TINY, 1)
        fit(detector, data.split("train"), recipe.with_(epochs=4), seed=1, out_dir=tmp_path, evaluate=evaluate)
        return detector

    if dies_after is not None:
        with pytest.raises(KeyboardInterrupt):
            run()
        dies_after = None
    detector = run()
    stored = load_checkpoint(tmp_path / "checkpoint.pt")
    assert len(seen) == 4
    for weights in (detector.state_dict(), run().state_dict(), stored.deployed):
        assert all(torch.equal(weights[name], tensor) for name, tensor in seen[1].items())
    assert all(torch.equal(stored.model[name], tensor) for name, tensor in seen[3].items())
    assert load_detector_checkpoint(tmp_path / "checkpoint.pt")[0].state_dict().keys() == seen[1].keys()
