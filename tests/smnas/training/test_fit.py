"""The training loop on a tiny stub detector: descent, bit-exact resuming after kills, failures that leave a record."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from curves import read_curve
from torch import Tensor, nn

from profiler.errors import UserError
from smnas.models.losses import LossOptions
from smnas.models.target import Target
from smnas.training.checkpoint import CheckpointError, CheckpointInfo, load_checkpoint
from smnas.training.curve import EpochLog, StepLog
from smnas.training.errors import DivergedError, TrainingFailedError
from smnas.training.fit import FitResult, fit_batches
from smnas.training.optimizer import build_optimizer
from smnas.training.recipe import Recipe, load_recipe
from smnas.training.schedule import learning_rate_at

ARCHITECTURE = "basicblock_16_11-21-21+fpn_2-4_32+rpn+rcnn_64+64x64"


class StubDetector(nn.Module):
    """Guesses each image's first box; draws random numbers in its loss, as the samplers of a real one do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()
        )
        self.box = nn.Linear(8, 4)

    def loss(self, images: Tensor, targets: list[Target], options: LossOptions) -> dict[str, Tensor]:
        x = self.features(images.float() / 255 - 0.5)
        x = nn.functional.dropout(x.mean((2, 3)), 0.2)
        wanted = torch.stack([target.boxes[0] for target in targets]) / 32
        error = (self.box(x) - wanted).abs()
        return {"corner": error[:, :2].mean(), "size": error[:, 2:].mean()}


class StubBatch(NamedTuple):
    images: Tensor
    targets: list[Target]


class StubBatches:
    """``images`` random images whose bright square is the box to find; order drawn from the epoch's number."""

    def __init__(self, some_images: int = 24, size: int = 8) -> None:
        rng = np.random.default_rng(7)
        self.images = rng.integers(0, 60, (some_images, 3, 32, 32), dtype=np.uint8)
        self.boxes = np.zeros((some_images, 1, 4), np.float32)
        for image, box in zip(self.images, self.boxes, strict=True):
            x, y = rng.integers(0, 20, 2)
            image[:, y : y + 12, x : x + 12] = 220
            box[0] = (x, y, x + 12, y + 12)
        self.size = size

    def __len__(self) -> int:
        return len(self.images) // self.size

    def epoch(self, epoch: int) -> Iterator[StubBatch]:
        order = np.random.default_rng([3, epoch]).permutation(len(self.images))
        for start in range(0, len(self) * self.size, self.size):
            rows = order[start : start + self.size]
            targets = [Target(torch.from_numpy(self.boxes[row]), torch.zeros(1, dtype=torch.int64)) for row in rows]
            yield StubBatch(torch.from_numpy(self.images[rows]), targets)


def stub_recipe(**changes: object) -> Recipe:
    settings = {"epochs": 4, "batch_size": 8, "learning_rate": 0.05, "learning_rate_batch": 16, "warmup_iterations": 2}
    settings |= {"optimizer": "sgd", "weight_decay": 1e-4}
    return load_recipe("nano").with_(**{**settings, **changes})


def stub_info(recipe: Recipe | None = None, seed: int = 5) -> CheckpointInfo:
    return CheckpointInfo(
        architecture=ARCHITECTURE,
        classes=("square",),
        category_ids=(1,),
        norm="bn",
        stem="deep",
        recipe=recipe or stub_recipe(),
        seed=seed,
        train_images=24,
    )


def stub_detector(seed: int = 0) -> StubDetector:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return StubDetector()


def assert_same_weights(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> None:
    first = a.state_dict() if isinstance(a, nn.Module) else a
    second = b.state_dict() if isinstance(b, nn.Module) else b
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_every_epoch_of_every_run_draws_random_numbers_of_its_own() -> None:
    def seeds(seed: int) -> list[int]:
        found: list[int] = []
        fit_batches(
            stub_detector(),
            StubBatches(),
            stub_info(seed=seed),
            on_step=lambda log: found.append(torch.initial_seed()) if log.step == 1 else None,
        )
        return found

    first, other = seeds(5), seeds(6)
    assert len(first) == 4
    assert len({*first, *other}) == 8
    assert seeds(5) == first


class Killed(BaseException):
    pass


def train_until(folder: Path, epoch: int, step: int | None = None, **changes: object) -> None:
    """Train, dying right after ``epoch`` epochs are stored, or in the middle of the next one."""

    def on_epoch(log: EpochLog) -> None:
        if step is None and log.epoch == epoch:
            raise Killed

    def on_step(log: StepLog) -> None:
        if step is not None and (log.epoch, log.step) == (epoch + 1, step):
            raise Killed

    with pytest.raises(Killed):
        fit_batches(
            stub_detector(), StubBatches(), stub_info(**changes), out_dir=folder, on_epoch=on_epoch, on_step=on_step
        )


def without_time(history: tuple[EpochLog, ...] | list[EpochLog]) -> list[EpochLog]:
    return [replace(log, seconds=0, images_per_s=0, eta_s=0, memory_mb=0) for log in history]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[StubDetector, FitResult]:
    detector = stub_detector()
    return detector, fit_batches(detector, StubBatches(), stub_info(), out_dir=tmp_path_factory.mktemp("straight"))


def test_training_lowers_the_loss() -> None:
    recipe = stub_recipe(learning_rate=0.2, epochs=40)
    result = fit_batches(stub_detector(), StubBatches(), stub_info(recipe))
    assert result.history[-1].loss < 0.5 * result.history[0].loss
    assert result.checkpoint is None
    assert result.trained == result.epochs == 40


def test_one_step_is_torchs_sgd_with_clipping() -> None:
    """The loop against the three calls that anyone would write by hand."""
    recipe = stub_recipe(clip_norm=0.5, weight_decay=0.1, channels_last=False, epochs=1)
    ours = stub_detector()
    batches = StubBatches(some_images=8)
    fit_batches(ours, batches, stub_info(recipe))

    theirs = stub_detector()
    theirs.train()
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence([5, 0]).generate_state(1, np.uint64)[0]))
        batch = next(batches.epoch(0))
        sum(theirs.loss(batch.images, batch.targets, recipe.losses).values()).backward()
    gradients = torch.cat([p.grad.flatten() for p in theirs.parameters()])
    shrink = min(1.0, 0.5 / gradients.norm().item())
    assert shrink < 1
    rate = learning_rate_at(0, 1, recipe)
    for name, parameter in theirs.named_parameters():
        decay = 0.1 if parameter.ndim > 1 else 0.0
        expected = parameter.detach() - rate * (parameter.grad * shrink + decay * parameter.detach())
        torch.testing.assert_close(ours.get_parameter(name).detach(), expected)


def test_same_seed_same_weights_other_seed_others(straight: tuple[StubDetector, FitResult]) -> None:
    again, other = stub_detector(), stub_detector()
    fit_batches(again, StubBatches(), stub_info())
    fit_batches(other, StubBatches(), stub_info(seed=6))
    assert_same_weights(again, straight[0])
    assert not torch.equal(other.box.weight, again.box.weight)


def test_torchs_global_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fit_batches(stub_detector(), StubBatches(), stub_info(), out_dir=tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("epoch", "step"), [(1, None), (2, None), (2, 2), (0, 1), (3, 3)])
def test_killed_and_resumed_is_bit_by_bit_the_unkilled(
    tmp_path: Path, straight: tuple[StubDetector, FitResult], epoch: int, step: int | None
) -> None:
    train_until(tmp_path, epoch, step)
    detector = stub_detector(seed=99)  # its own weights must not matter
    if epoch == 0:
        detector = stub_detector()  # nothing stored yet: the run starts again from the caller's weights
    result = fit_batches(detector, StubBatches(), stub_info(), out_dir=tmp_path)
    assert result.trained == 4 - epoch
    assert_same_weights(detector, straight[0])
    assert without_time(result.history) == without_time(straight[1].history)
    assert [log.epoch for log in read_curve(tmp_path / "curve.jsonl")] == [1, 2, 3, 4]


def test_killed_again_and_again(tmp_path: Path, straight: tuple[StubDetector, FitResult]) -> None:
    for epoch in (1, 2, 3):
        train_until(tmp_path, epoch)
    detector = stub_detector()
    fit_batches(detector, StubBatches(), stub_info(), out_dir=tmp_path)
    assert_same_weights(detector, straight[0])


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_order_survives_a_resume(tmp_path: Path, channels_last: bool) -> None:
    """The fused optimizer step walks memory: momentum must come back in the order of its parameter."""
    recipe = stub_recipe(channels_last=channels_last)
    train_until(tmp_path, 2, recipe=recipe)
    resumed, unkilled = stub_detector(), stub_detector()
    fit_batches(resumed, StubBatches(), stub_info(recipe), out_dir=tmp_path)
    fit_batches(unkilled, StubBatches(), stub_info(recipe))
    assert_same_weights(resumed, unkilled)


def test_adamw_takes_the_steps_of_its_paper(tmp_path: Path) -> None:
    """Algorithm 2 of "Decoupled Weight Decay Regularization" (arXiv 1711.05101), in float64, and after a resume too."""
    recipe = stub_recipe(optimizer="adamw", learning_rate=0.01, weight_decay=0.1, momentum=0.8, clip_norm=None)
    detector = stub_detector()
    bias, weight = detector.box.bias, detector.box.weight
    seen: list[tuple[float, Tensor, Tensor]] = []

    def watch(log: StepLog) -> None:
        assert bias.grad is not None
        assert weight.grad is not None
        done = (log.epoch - 1) * log.steps + log.step - 1
        rate = learning_rate_at(done, log.steps * log.epochs, recipe)
        seen.append((rate, bias.grad.double().clone(), weight.grad.double().clone()))

    expected = [parameter.detach().double().clone() for parameter in (bias, weight)]
    fit_batches(detector, StubBatches(), stub_info(recipe), on_step=watch)
    for which, decay in enumerate((0.0, 0.1)):
        first = second = torch.zeros_like(expected[which])
        for step, row in enumerate(seen, start=1):
            rate, gradient = row[0], row[1 + which]
            first = 0.8 * first + 0.2 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            moved = (first / (1 - 0.8**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            expected[which] = expected[which] * (1 - rate * decay) - rate * moved
    assert len(seen) == 12
    torch.testing.assert_close(bias.detach().double(), expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(weight.detach().double(), expected[1], rtol=0, atol=1e-5)
    train_until(tmp_path, 2, recipe=recipe)
    resumed = stub_detector(seed=99)
    fit_batches(resumed, StubBatches(), stub_info(recipe), out_dir=tmp_path)
    assert_same_weights(resumed, detector)


def test_the_moving_average_is_the_recurrence_of_every_steps_weights(tmp_path: Path) -> None:
    recipe = stub_recipe(ema_decay=0.6)
    detector = stub_detector()
    raw: list[Tensor] = []
    result = fit_batches(
        detector,
        StubBatches(),
        stub_info(recipe),
        out_dir=tmp_path,
        on_step=lambda _log: raw.append(detector.box.weight.detach().double().clone()),
    )
    expected = stub_detector().box.weight.detach().double()
    for step, weight in enumerate(raw):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    assert len(raw) == 12
    assert not torch.equal(detector.box.weight.double(), raw[-1])
    torch.testing.assert_close(detector.box.weight.detach().double(), expected, rtol=0, atol=1e-6)
    assert_same_weights(detector, load_checkpoint(tmp_path / "checkpoint.pt").model)
    # the average only watches: the trained weights are those of a run without one
    plain, last = stub_detector(), []
    fit_batches(
        plain, StubBatches(), stub_info(), on_step=lambda _log: last.append(plain.box.weight.detach().double().clone())
    )
    assert torch.equal(last[-1], raw[-1])
    assert torch.equal(plain.features[1].running_mean, detector.features[1].running_mean)
    assert result.trained == 4


@pytest.mark.parametrize(("epoch", "step"), [(1, None), (2, 2)])
def test_a_moving_average_survives_a_resume(tmp_path: Path, epoch: int, step: int | None) -> None:
    recipe = stub_recipe(ema_decay=0.6)
    train_until(tmp_path, epoch, step, recipe=recipe)
    resumed, unkilled = stub_detector(seed=99), stub_detector()
    fit_batches(resumed, StubBatches(), stub_info(recipe), out_dir=tmp_path)
    fit_batches(unkilled, StubBatches(), stub_info(recipe))
    assert_same_weights(resumed, unkilled)


def test_channels_last_trains_the_same_model() -> None:
    weights = []
    for channels_last in (True, False):
        detector = stub_detector()
        fit_batches(detector, StubBatches(), stub_info(stub_recipe(channels_last=channels_last)))
        weights.append(detector.box.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)


def test_sigkill_in_a_real_process(tmp_path: Path, straight: tuple[StubDetector, FitResult]) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys, importlib.util
        from pathlib import Path
        spec = importlib.util.spec_from_file_location("stub", {__file__!r})
        stub = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(stub)

        def on_step(log):
            if (log.epoch, log.step) == (3, 2):
                os.kill(os.getpid(), signal.SIGKILL)

        stub.torch.set_num_threads({torch.get_num_threads()})
        stub.fit_batches(
            stub.stub_detector(), stub.StubBatches(), stub.stub_info(), out_dir=Path({str(tmp_path)!r}), on_step=on_step
        )
        """
    )
    killed = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert killed.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "checkpoint.pt").info.epoch == 2
    detector = stub_detector()
    fit_batches(detector, StubBatches(), stub_info(), out_dir=tmp_path)
    assert_same_weights(detector, straight[0])


def test_a_complete_run_is_returned_without_training(tmp_path: Path, straight: tuple[StubDetector, FitResult]) -> None:
    first = fit_batches(stub_detector(), StubBatches(), stub_info(), out_dir=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    detector = stub_detector(seed=3)

    def never(_: object) -> None:
        raise AssertionError("trained again")

    again = fit_batches(detector, StubBatches(), stub_info(), out_dir=tmp_path, on_epoch=never, on_step=never)
    assert again == replace(first, trained=0)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert_same_weights(detector, straight[0])
    assert not detector.training


def test_the_final_checkpoint_is_slim(tmp_path: Path) -> None:
    train_until(tmp_path, 3)
    path = tmp_path / "checkpoint.pt"
    assert load_checkpoint(path).optimizer is not None
    large = path.stat().st_size
    fit_batches(stub_detector(), StubBatches(), stub_info(), out_dir=tmp_path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.optimizer is None
    assert checkpoint.info.complete
    assert path.stat().st_size < large


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (stub_info(seed=6), "seed=5"),
        (stub_info(stub_recipe(learning_rate=0.01)), "recipe.learning_rate=0.05"),
        (stub_info(stub_recipe(epochs=5)), "recipe.epochs=4"),
        (replace(stub_info(), architecture=ARCHITECTURE.replace("64x64", "96x64")), "architecture=" + ARCHITECTURE),
        (replace(stub_info(), classes=("circle",)), "classes="),
        (replace(stub_info(), train_images=25), "train_images=24"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, other: CheckpointInfo, key: str) -> None:
    train_until(tmp_path, 1)
    with pytest.raises(CheckpointError) as error:
        fit_batches(stub_detector(), StubBatches(), other, out_dir=tmp_path)
    assert key in str(error.value)
    assert "\n" not in str(error.value)
    assert load_checkpoint(tmp_path / "checkpoint.pt").info.epoch == 1


def test_the_name_of_a_recipe_is_not_the_run(tmp_path: Path) -> None:
    train_until(tmp_path, 3)
    result = fit_batches(stub_detector(), StubBatches(), stub_info(stub_recipe(name="mine")), out_dir=tmp_path)
    assert result.trained == 1


def test_an_empty_training_split_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="at least one image"):
        fit_batches(stub_detector(), StubBatches(some_images=0), stub_info())


class FailingDetector(StubDetector):
    """Fails at one step, counted over the process."""

    def __init__(self, at: int, failure: object) -> None:
        super().__init__()
        self.at, self.failure, self.calls = at, failure, 0

    def loss(self, images: Tensor, targets: list[Target], options: LossOptions) -> dict[str, Tensor]:
        losses = super().loss(images, targets, options)
        self.calls += 1
        if self.calls == self.at:
            if isinstance(self.failure, Exception):
                raise self.failure
            losses["size"] = losses["size"] * self.failure
        return losses


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tmp_path: Path, factor: float) -> None:
    with pytest.raises(DivergedError, match=r"not finite in step 8: corner=[0-9.]+, size=(nan|inf)") as error:
        fit_batches(FailingDetector(8, factor), StubBatches(), stub_info(), out_dir=tmp_path)
    assert error.value.step == 7
    record = json.loads((tmp_path / "failure.json").read_text())
    assert record["kind"] == "diverged"
    assert record["step"] == 7
    assert record["finished_epochs"] == 2
    assert "step 8" in record["reason"]
    assert load_checkpoint(tmp_path / "checkpoint.pt").info.epoch == 2


def test_gradients_that_are_not_finite_end_the_run() -> None:
    class Cusp(StubDetector):
        def loss(self, images: Tensor, targets: list[Target], options: LossOptions) -> dict[str, Tensor]:
            return {"root": (self.box.weight * 0).sum().sqrt()}  # finite at 0, its slope is not

    with pytest.raises(DivergedError, match="gradients are not finite in step 1"):
        fit_batches(Cusp(), StubBatches(), stub_info())


def test_an_absurd_learning_rate_diverges() -> None:
    with pytest.raises(DivergedError):
        fit_batches(stub_detector(), StubBatches(), stub_info(stub_recipe(learning_rate=1e30, clip_norm=1e30)))


def test_a_last_step_that_leaves_no_weights_is_no_finished_training(tmp_path: Path) -> None:
    class Cusp(StubDetector):
        def loss(self, images: Tensor, targets: list[Target], options: LossOptions) -> dict[str, Tensor]:
            return {"root": (self.box.weight * 0).sum().sqrt()}  # finite at 0, its slope is not

    recipe = stub_recipe(epochs=1).model_copy(update={"clip_norm": None})
    with pytest.raises(DivergedError, match="weights are not finite after epoch 1"):
        fit_batches(Cusp(), StubBatches(some_images=8), stub_info(recipe), out_dir=tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_ends_the_run_with_a_record(tmp_path: Path, failure: Exception) -> None:
    with pytest.raises(TrainingFailedError, match="out of memory in step 2 of epoch 1") as error:
        fit_batches(FailingDetector(2, failure), StubBatches(), stub_info(), out_dir=tmp_path)
    assert "\n" not in error.value.reason
    assert not isinstance(error.value, DivergedError)
    assert json.loads((tmp_path / "failure.json").read_text())["kind"] == "failed"


def test_a_real_allocation_that_can_not_be_made_is_out_of_memory() -> None:
    class Greedy(StubDetector):
        def loss(self, images: Tensor, targets: list[Target], options: LossOptions) -> dict[str, Tensor]:
            return {"all": torch.empty(1 << 60, dtype=torch.uint8).sum()}

    with pytest.raises(TrainingFailedError, match="out of memory"):
        fit_batches(Greedy(), StubBatches(), stub_info())


def test_another_error_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        fit_batches(FailingDetector(2, RuntimeError("a bug")), StubBatches(), stub_info(), out_dir=tmp_path)
    assert not (tmp_path / "failure.json").exists()


def test_a_run_that_succeeds_after_a_failure_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        fit_batches(FailingDetector(8, float("nan")), StubBatches(), stub_info(), out_dir=tmp_path)
    result = fit_batches(stub_detector(), StubBatches(), stub_info(), out_dir=tmp_path)
    assert result.trained == 2
    assert not (tmp_path / "failure.json").exists()


def test_what_is_reported_adds_up() -> None:
    epochs: list[EpochLog] = []
    steps: list[StepLog] = []
    recipe = stub_recipe()
    result = fit_batches(
        stub_detector(), StubBatches(), stub_info(recipe), on_epoch=epochs.append, on_step=steps.append
    )
    assert tuple(epochs) == result.history
    assert [(log.epoch, log.step) for log in steps] == [(e, s) for e in (1, 2, 3, 4) for s in (1, 2, 3)]
    assert [log.share_done for log in steps] == pytest.approx([i / 12 for i in range(1, 13)])
    for log in epochs:
        own = [step.loss for step in steps if step.epoch == log.epoch]
        assert log.loss == pytest.approx(sum(log.losses.values()))
        assert log.loss == pytest.approx(np.mean(own))
        assert log.images_per_s == pytest.approx(24 / log.seconds)
        assert log.learning_rate == pytest.approx(learning_rate_at(log.epoch * 3 - 1, 12, recipe))
        assert log.memory_mb > 10
    assert epochs[-1].eta_s == steps[-1].eta_s == 0
    assert result.seconds == pytest.approx(sum(log.seconds for log in epochs))
    assert result.images_per_s == pytest.approx(96 / result.seconds)


def test_weight_decay_spares_norms_and_biases_unless_told() -> None:
    detector = stub_detector()
    detector.box.bias.requires_grad_(False)
    for everywhere in (False, True):
        recipe = stub_recipe(weight_decay=0.01, decay_norm_and_bias=everywhere)
        groups = build_optimizer(detector, recipe).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        expected = {
            id(p): 0.01 if everywhere or (name.endswith("weight") and p.ndim > 1) else 0.0
            for name, p in detector.named_parameters()
            if name != "box.bias"
        }
        assert decay == expected
