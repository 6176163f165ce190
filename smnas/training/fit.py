"""Train a detector from scratch, resumably.

With a folder, a run writes ``checkpoint.pt`` and ``curve.jsonl`` after every epoch, and the same call resumes from
there. With the same seed and number of threads, a run killed at any moment and resumed ends with the same weights, bit
for bit, as an uninterrupted one (on a CPU; some CUDA gradients are summed in no fixed order). A complete run is
returned as stored.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from profiler.atomic import require_room, write_atomic
from profiler.errors import UserError
from smnas.data.coco import DetectionDataset
from smnas.data.contents import split_contents
from smnas.data.loader import TrainLoader
from smnas.models.detector import Detector
from smnas.training.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    CheckpointInfo,
    load_checkpoint,
    require_same_run,
    save_checkpoint,
)
from smnas.training.curve import CURVE_FILE, EpochLog, StepLog, append_curve, best_epoch, write_curve
from smnas.training.distributed import ALONE, Ranks, loss_of
from smnas.training.ema import WeightAverage
from smnas.training.epoch import Batches, train_epoch
from smnas.training.errors import DivergedError, TrainingFailedError
from smnas.training.optimizer import build_optimizer
from smnas.training.recipe import Recipe
from smnas.training.schedule import automatic_average, automatic_interval, decay_reason

__all__ = ["FAILURE_FILE", "Evaluate", "FitResult", "fit", "fit_batches"]

FAILURE_FILE = "failure.json"

Evaluate = Callable[[Detector], tuple[float, float]]


@dataclass(frozen=True)
class FitResult:
    """A finished training run.

    Attributes:
        epochs: Epochs trained so far, earlier calls included.
        seconds: Time spent in them.
        images_per_s: Training images per second over the whole run.
        history: One entry per epoch.
        checkpoint: The stored weights, or ``None`` without a folder.
        trained: Epochs trained by this call: fewer than ``epochs`` after a resume, 0 for a complete run.
        stop_reason: Why an automatic schedule ended; empty for others.
    """

    epochs: int
    seconds: float
    images_per_s: float
    history: tuple[EpochLog, ...]
    checkpoint: Path | None
    trained: int
    stop_reason: str = ""


def fit(
    detector: Detector,
    dataset: DetectionDataset,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
    out_dir: Path | None = None,
    pretrained: str | None = None,
    started_from: str = "",
    validation: DetectionDataset | None = None,
    test: DetectionDataset | None = None,
    stop_epoch: int | None = None,
    time_limit_s: float | None = None,
    evaluate: Evaluate | None = None,
    on_epoch: Callable[[EpochLog], None] | None = None,
    on_step: Callable[[StepLog], None] | None = None,
) -> FitResult:
    """Train a detector in place on a data set's training split.

    Args:
        detector: Freshly built; a checkpoint in ``out_dir`` replaces its weights.
        dataset: The training split, with the detector's classes.
        recipe: How to train.
        seed: Random seed for the order of images, augmentation and samplers.
        device: Device to train on. The detector ends there, in evaluation mode, with the averaged weights if the recipe
            averages them.
        ranks: The DDP ranks, each calling this function with the same arguments; every batch is split among them.
        out_dir: Folder for checkpoint and curve; ``None`` keeps nothing.
        pretrained: Digest of the weights that it started from; part of the run's identity.
        started_from: What they are, for a reader of the checkpoint.
        validation: The validation split; part of the run's identity.
        test: The held-out images, if any; part of it too.
        stop_epoch: Stop after this many epochs of the recipe's schedule, with the averaged weights as at the end; a
            later call resumes from the checkpoint. ``None`` trains all epochs.
        time_limit_s: Time that an automatic schedule plans for, earlier calls included; it must have an ``evaluate``.
        evaluate: Returns AP and AP50 of a detector, for the curve; called by rank 0 as often as the recipe says. At the
            end its detector has the weights of the best of these epochs.
        on_epoch: Called after every epoch of this call, once it is stored.
        on_step: Called after every step.

    Raises:
        UserError: ``out_dir`` holds another run or a damaged checkpoint; the data set is empty or of other classes.
        DivergedError: the loss or the gradients are not finite. The reason is kept in ``failure.json``.
        TrainingFailedError: out of memory; the reason is kept too.
    """
    if len(dataset) == 0:
        raise UserError("training needs at least one image, but the training split is empty")
    if len(dataset.classes) != detector.num_classes:
        raise UserError(
            f"a detector must have the data set's {len(dataset.classes)} classes, but got {detector.num_classes}"
        )
    if ranks.count > 1 and (recipe.batch_size % ranks.count or len(dataset) < recipe.batch_size):
        raise UserError(
            f"processes that train together share each batch equally, but got {ranks.count} processes for batches "
            f"of {recipe.batch_size} out of {len(dataset)} images"
        )
    width, height = detector.input_size
    loader = TrainLoader(
        dataset,
        width,
        height,
        recipe.batch_size,
        seed,
        augmentation=recipe.augmentation,
        mosaic_epochs=recipe.mosaic_epochs,
        share=(ranks.rank, ranks.count),
    )
    info = CheckpointInfo(
        architecture=str(detector.architecture),
        classes=tuple(dataset.classes),
        category_ids=tuple(dataset.category_ids),
        norm=detector.options.norm,
        stem=detector.options.stem,
        recipe=recipe,
        seed=seed,
        train_images=len(dataset),
        data=split_contents("train", dataset)
        | ({} if validation is None else split_contents("val", validation))
        | ({} if test is None else split_contents("test", test)),
        pretrained=pretrained,
        started_from=started_from,
    )
    return fit_batches(
        detector,
        loader,
        info,
        device=device,
        ranks=ranks,
        out_dir=out_dir,
        stop_epoch=stop_epoch,
        time_limit_s=time_limit_s,
        evaluate=evaluate,
        on_decay=lambda epoch: loader.without_mosaics(epoch if recipe.mosaic_until < 1 else None),
        on_epoch=on_epoch,
        on_step=on_step,
    )


def fit_batches(
    detector: Detector,
    batches: Batches,
    info: CheckpointInfo,
    *,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
    out_dir: Path | None = None,
    stop_epoch: int | None = None,
    time_limit_s: float | None = None,
    evaluate: Evaluate | None = None,
    on_decay: Callable[[int], object] | None = None,
    on_epoch: Callable[[EpochLog], None] | None = None,
    on_step: Callable[[StepLog], None] | None = None,
) -> FitResult:
    """Train as :func:`fit` does, from any source of batches; ``info`` describes the run.

    ``on_decay`` is called before the decay of an automatic schedule, with the number of epochs before it.
    """
    device = torch.device(device)
    recipe = info.recipe
    if len(batches) == 0:
        raise UserError("training needs at least one image, but the training split is empty")
    automatic, every, ema_decay = recipe.schedule == "auto", recipe.evaluate_every, recipe.ema_decay
    if automatic:
        if evaluate is None:
            raise UserError("an automatic schedule is for one detector, which is evaluated on the way, but got several")
        every, ema_decay = automatic_interval(recipe, len(batches)), automatic_average(recipe, len(batches))
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    detector.to(device)
    detector.to(memory_format=layout)
    loss_function = loss_of(detector, ranks, recipe.losses)  # from here on all ranks have equal weights
    optimizer = build_optimizer(detector, recipe)
    scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda" and recipe.amp == "fp16")
    average = WeightAverage(detector, ema_decay) if ema_decay else None
    history: list[EpochLog] = []
    best: Mapping[str, Tensor] | None = None
    if out_dir is not None:
        info, finished_epochs, best = _resume(out_dir, info, detector, average, optimizer, scaler, ranks)
        history += finished_epochs
    if info.decay_from is not None and on_decay is not None:
        on_decay(info.decay_from)
    ranks.wait()  # rank 0 overwrites files that the others must have read
    finished = len(history)
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            while len(history) < (info.end_epoch if stop_epoch is None else min(stop_epoch, info.end_epoch)):
                log = train_epoch(
                    detector,
                    loss_function,
                    batches,
                    recipe,
                    optimizer,
                    scaler,
                    average,
                    epoch=len(history),
                    seed=info.seed,
                    device=device,
                    ranks=ranks,
                    end_epoch=info.end_epoch,
                    decay_from=info.decay_from,
                    on_step=on_step,
                )
                at_end = log.epoch == info.end_epoch
                if average is not None and at_end:
                    detector.load_state_dict(average.detector.state_dict())
                if evaluate is not None and ranks.first and every and (log.epoch % every == 0 or at_end):
                    evaluated, began = detector if average is None else average.detector, time.perf_counter()
                    ap, ap50 = evaluate(evaluated)
                    log = replace(log, ap=ap, ap50=ap50)
                    if automatic:
                        log = replace(log, evaluation_s=time.perf_counter() - began)
                    if best_epoch([*history, log]) is log:
                        # at the end the weights themselves, which need no copy
                        best = None if at_end else copy.deepcopy(evaluated.state_dict())
                history.append(log)
                if automatic and info.decay_from is None and not at_end:
                    reason = decay_reason(history, recipe, every, time_limit_s) if ranks.first else None
                    if ranks.mean(torch.tensor([float(reason is not None)], device=device)).item():
                        info = replace(info, decay_from=log.epoch, stop_reason=reason or "")
                        if on_decay is not None:
                            on_decay(log.epoch)
                if out_dir is not None and ranks.first:
                    _store(out_dir, info, detector, average, optimizer, scaler, history, best)
                if on_epoch is not None:
                    on_epoch(log)
    except TrainingFailedError as error:
        if out_dir is not None and ranks.first:
            _record_failure(out_dir, error, epochs=len(history))
        raise
    if average is not None and len(history) < info.end_epoch:
        detector.load_state_dict(average.detector.state_dict())  # the checkpoint keeps both, to resume from
    if best is not None and len(history) == info.end_epoch:
        detector.load_state_dict(best)
    detector.eval()
    seconds = sum(log.seconds for log in history)
    return FitResult(
        epochs=len(history),
        seconds=seconds,
        images_per_s=sum(log.images_per_s * log.seconds for log in history) / seconds,
        history=tuple(history),
        checkpoint=None if out_dir is None else out_dir / CHECKPOINT_FILE,
        trained=len(history) - finished,
        stop_reason=info.stop_reason,
    )


def _resume(
    out_dir: Path,
    info: CheckpointInfo,
    detector: Detector,
    average: WeightAverage | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    ranks: Ranks,
) -> tuple[CheckpointInfo, tuple[EpochLog, ...], Mapping[str, Tensor] | None]:
    """Load this run's state from its folder; returns its facts, the finished epochs and the best one's weights."""
    require_room(out_dir, "checkpoints")
    (out_dir / FAILURE_FILE).unlink(missing_ok=True)
    path = out_dir / CHECKPOINT_FILE
    if not path.exists():
        if ranks.first:
            write_curve(out_dir / CURVE_FILE, ())
        return info, (), None
    checkpoint = load_checkpoint(path)
    require_same_run(checkpoint.info, info, path)
    detector.load_state_dict(checkpoint.model)
    if average is not None and checkpoint.average is not None:
        average.detector.load_state_dict(checkpoint.average)
    if checkpoint.optimizer is not None:
        optimizer.load_state_dict(dict(checkpoint.optimizer))
    if checkpoint.scaler:
        scaler.load_state_dict(dict(checkpoint.scaler))
    if ranks.first:
        write_curve(out_dir / CURVE_FILE, checkpoint.history)
    known = replace(info, decay_from=checkpoint.info.decay_from, stop_reason=checkpoint.info.stop_reason)
    return known, checkpoint.history, checkpoint.best


def _store(
    out_dir: Path,
    info: CheckpointInfo,
    detector: Detector,
    average: WeightAverage | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    history: list[EpochLog],
    best: Mapping[str, Tensor] | None,
) -> None:
    reached = replace(info, epoch=len(history))
    save_checkpoint(
        out_dir / CHECKPOINT_FILE,
        Checkpoint(
            info=reached,
            model=detector.state_dict(),
            average=None if reached.complete or average is None else average.detector.state_dict(),
            optimizer=None if reached.complete else optimizer.state_dict(),
            scaler=None if reached.complete else scaler.state_dict(),
            history=tuple(history),
            best=best,
        ),
    )
    append_curve(out_dir / CURVE_FILE, history[-1])


def _record_failure(out_dir: Path, error: TrainingFailedError, epochs: int) -> None:
    record = {
        "format_version": 1,
        "reason": error.reason,
        "kind": "diverged" if isinstance(error, DivergedError) else "failed",
        "step": error.step,
        "finished_epochs": epochs,
    }
    write_atomic(out_dir / FAILURE_FILE, json.dumps(record) + "\n")
