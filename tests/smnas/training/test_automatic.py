"""A schedule that ends by itself: the rule on made-up curves of AP, and a run that is killed at any epoch."""

import itertools
import math
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smnas.api.arguments import epochs_of
from smnas.data.coco import CocoFolder
from smnas.data.shapes import generate_shapes
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.space.architecture import Architecture
from smnas.training.checkpoint import load_checkpoint
from smnas.training.curve import EpochLog
from smnas.training.fit import FitResult, fit
from smnas.training.recipe import load_recipe
from smnas.training.schedule import automatic_average, automatic_interval, decay_end, decay_reason, learning_rate_at

TINY = Architecture.parse("basicblock_8_1-2-2+fpn_3-4_16+norpn+retina_16_1+64x64")
RECIPE = load_recipe("nano").with_(schedule="auto", epochs=300)
EVERY = 3


def log(epoch: int, ap: float | None, seconds: float = 1.0) -> EpochLog:
    return EpochLog(epoch, 300, 1.0, {}, 0.1, 10.0, seconds, 0.0, 1.0, ap=ap, evaluation_s=0.0)


def ended(curve: Callable[[int], float], most: int = 300, limit_s: float | None = None) -> tuple[int, int, str]:
    """Epochs before the decay, all epochs, and the reason, for an AP at every epoch."""
    history: list[EpochLog] = []
    for epoch in itertools.count(1):
        history.append(log(epoch, curve(epoch) if epoch % EVERY == 0 else None))
        reason = decay_reason(history, RECIPE.with_(epochs=most), EVERY, limit_s)
        if reason is not None:
            return epoch, decay_end(epoch), reason
    raise AssertionError


def saturating(epoch: int) -> float:
    return 0.5 * (1 - math.exp(-epoch / 15))


def noisy(curve: Callable[[int], float], spread: float, seed: int) -> Callable[[int], float]:
    noise = random.Random(seed)
    return lambda epoch: max(curve(epoch) + noise.uniform(-spread, spread), 0.0)


def test_a_rising_ap_is_trained_to_the_most_epochs() -> None:
    start, end, reason = ended(lambda epoch: 0.005 * epoch, most=100)
    assert (start, end) == (80, 100)
    assert reason == "the limit of 100 epochs ended a training run whose AP still rose"


def test_a_plateau_begins_the_decay() -> None:
    start, end, reason = ended(saturating)
    assert 45 < start < 90, "0.95 of the plateau is reached at epoch 45"
    assert end == start + round(start / 4)
    assert "has not risen from 0.4" in reason
    assert f"decayed from epoch {start + 1} to {end}" in reason


def test_noise_neither_ends_a_rise_nor_prolongs_a_plateau() -> None:
    quiet = ended(saturating)[0]
    starts = [ended(noisy(saturating, 0.008, seed))[0] for seed in range(20)]
    assert all(0.6 * quiet <= start <= 1.5 * quiet for start in starts), starts
    rising = [ended(noisy(lambda epoch: 0.004 * epoch, 0.01, seed), most=120)[0] for seed in range(20)]
    assert set(rising) == {96}


def test_a_falling_ap_begins_the_decay_soon_after_its_top() -> None:
    start, _, reason = ended(lambda epoch: 0.4 - 0.01 * abs(epoch - 30))
    assert start == 42, "the last rise by more than noise, at epoch 30, and four evaluations"
    assert "has not risen from 0.400 since epoch 30" in reason


def test_an_ap_near_0_is_given_longer() -> None:
    start, _, reason = ended(lambda epoch: 0.001)
    assert start == 12 * EVERY
    assert "stayed near 0" in reason
    assert ended(lambda epoch: 0.0 if epoch < 30 else saturating(epoch - 27))[0] > 60


def test_a_time_limit_leaves_time_for_the_decay() -> None:
    start, end, reason = ended(lambda epoch: 0.005 * epoch, limit_s=50.0)
    assert (start, end) == (40, 50)
    assert "time limit" in reason


def test_the_rate_stays_and_then_decays_to_the_final_factor() -> None:
    recipe = RECIPE.with_(warmup_iterations=10, final_factor=0.01)
    peak = recipe.peak_learning_rate
    steps, start, end = 5, 40, 50
    before = [learning_rate_at(i, steps * 300, recipe) for i in range(steps * start)]
    decay = [learning_rate_at(i, steps * end, recipe, steps * start) for i in range(steps * start, steps * end)]
    assert before[:10] == sorted(before[:10])
    assert set(before[10:]) == {peak}
    assert before == [learning_rate_at(i, steps * end, recipe, steps * start) for i in range(steps * start)]
    assert decay[0] == peak
    assert decay == sorted(decay, reverse=True)
    assert decay[-1] == pytest.approx(peak * (0.01 + 0.99 * (1 - math.sqrt(49 / 50))))


@pytest.mark.parametrize(("steps", "every"), [(1, 150), (50, 3), (75, 2), (1000, 2)])
def test_evaluations_are_150_steps_apart_or_two_epochs(steps: int, every: int) -> None:
    assert automatic_interval(RECIPE, steps) == every
    assert automatic_interval(RECIPE.with_(evaluate_every=7), steps) == 7
    assert 0.97 < automatic_average(RECIPE, steps) < 1
    assert automatic_average(RECIPE.with_(ema_decay=0.5), steps) == 0.5


@pytest.mark.parametrize(
    ("text", "found"),
    [(None, (None, False)), (7, (7, False)), ("7", (7, False)), ("auto", (300, True)), ("auto:40", (40, True))],
)
def test_epochs_are_a_number_or_found_while_training(text: int | str | None, found: tuple[int | None, bool]) -> None:
    assert epochs_of("--epochs", text) == found


@pytest.mark.parametrize("text", ["", ":", "auto:", "auto:x", "-3", "1.5", "automatic"])
def test_other_epochs_are_refused_in_one_line(text: str) -> None:
    from profiler.errors import UserError

    with pytest.raises(UserError, match=r"^--epochs must be a whole number, auto or auto:MOST, but got "):
        epochs_of("--epochs", text)


APS = (0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.25, 0.21)
"""Of a run that is evaluated every epoch: no rise after epoch 2, so it decays after 6 and ends with 8; 7 is best."""


def run(data: Path, out: Path, stop: int | None = None) -> tuple[FitResult, Detector]:
    """Train with a made-up AP; ``stop`` is how many epochs this process lives."""
    torch.manual_seed(3)
    detector = build_detector(TINY, 6)
    recipe = RECIPE.with_(batch_size=4, evaluate_every=1, epochs=60, warmup_iterations=0)
    folder = CocoFolder(data)
    lived = 0

    def evaluate(_: Detector) -> tuple[float, float]:
        path = out / "checkpoint.pt"
        epoch = load_checkpoint(path).info.epoch if path.exists() else 0
        return APS[min(epoch, len(APS) - 1)], 0.5

    def end_epoch(_: EpochLog) -> None:
        nonlocal lived
        lived += 1
        if lived == stop:
            signal.raise_signal(signal.SIGKILL)

    return fit(detector, folder.split("train"), recipe, out_dir=out, evaluate=evaluate, on_epoch=end_epoch), detector


@pytest.mark.slow
def test_a_run_killed_at_every_epoch_ends_with_the_same_weights(tmp_path: Path) -> None:
    data = generate_shapes(tmp_path / "data", train=8, val=2, width=64, height=64, seed=0)
    whole, detector = run(data, tmp_path / "whole")
    logs = whole.history
    assert load_checkpoint(tmp_path / "whole" / "checkpoint.pt").info.complete
    assert whole.stop_reason.endswith(f"to {whole.epochs}")
    assert (load_checkpoint(tmp_path / "whole" / "checkpoint.pt").info.decay_from, whole.epochs) == (6, 8)
    rates = [entry.learning_rate for entry in logs]
    assert rates[:6] == [RECIPE.peak_learning_rate] * 6
    assert rates[6] > rates[7]
    script = f"import sys; sys.path[:0] = {sys.path!r}; from {__name__} import run; from pathlib import Path; " + (
        "run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))"
    )
    out, codes = tmp_path / "killed", []
    while not codes or codes[-1]:
        words = [sys.executable, "-c", script, str(data), str(out), "1"]
        codes.append(subprocess.run(words, check=False).returncode)
        assert codes[-1] in (0, -signal.SIGKILL)
    assert len(codes) == whole.epochs + 1
    resumed, other = run(data, out)
    assert (resumed.trained, resumed.epochs, resumed.stop_reason) == (0, whole.epochs, whole.stop_reason)
    assert [entry.ap for entry in resumed.history] == [entry.ap for entry in logs]
    theirs = other.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in detector.state_dict().items())


@pytest.mark.slow
def test_mosaics_end_where_the_decay_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smnas.data.loader import TrainLoader

    seen: list[tuple[int, int | None]] = []
    epochs_of_loader = TrainLoader.epoch
    monkeypatch.setattr(
        TrainLoader, "epoch", lambda self, n: (seen.append((n, self.mosaic_epochs)), epochs_of_loader(self, n))[1]
    )
    data = generate_shapes(tmp_path / "data", train=4, val=2, width=64, height=64, seed=0)
    run(data, tmp_path / "out")
    start = load_checkpoint(tmp_path / "out" / "checkpoint.pt").info.decay_from
    assert start is not None
    assert all((n >= until) == (n >= start) for n, until in seen if until is not None)
