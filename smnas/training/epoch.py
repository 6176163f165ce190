"""One pass over the training images."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from profiler.errors import first_line
from smnas.models.detector import Detector
from smnas.models.layers import standardized_together
from smnas.models.target import Target
from smnas.training.curve import EpochLog, StepLog, memory_in_use_mb
from smnas.training.distributed import ALONE, LossFunction, Ranks
from smnas.training.ema import WeightAverage
from smnas.training.errors import DivergedError, TrainingFailedError
from smnas.training.recipe import Recipe
from smnas.training.schedule import learning_rate_at

__all__ = ["Batches", "TrainBatch", "train_epoch"]


class TrainBatch(Protocol):
    """Images on the canvas and their objects."""

    @property
    def images(self) -> Tensor:
        """``(B, 3, H, W)`` uint8 RGB."""

    @property
    def targets(self) -> list[Target]:
        """One per image."""


class Batches(Protocol):
    """Training batches; those of an epoch are a pure function of its number."""

    def __len__(self) -> int:
        """Number of steps in an epoch."""

    def epoch(self, epoch: int) -> Iterable[TrainBatch]:
        """The batches of one epoch, from 0."""


def train_epoch(
    detector: Detector,
    loss_function: LossFunction,
    batches: Batches,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: WeightAverage | None = None,
    *,
    epoch: int,
    seed: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    end_epoch: int | None = None,
    decay_from: int | None = None,
    on_step: Callable[[StepLog], None] | None = None,
) -> EpochLog:
    """Train epoch ``epoch`` (from 0) in place.

    All random numbers of the model are seeded by ``(seed, epoch, rank)``, so the epoch is the same after a resume. The
    caller protects torch's global generator (:func:`torch.random.fork_rng`). With several DDP ranks, ``batches`` holds
    this rank's part of each batch. An automatic schedule ends with epoch ``end_epoch``, and decays after
    ``decay_from`` epochs, as far as that is known; others end with the recipe's epochs.

    Raises:
        DivergedError: a loss, the gradients' norm or a weight is not finite.
        TrainingFailedError: out of memory.
    """
    steps = len(batches)
    epochs = end_epoch or recipe.epochs
    total = steps * epochs
    decay_step = None if decay_from is None else decay_from * steps
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, ranks.rank]).generate_state(1, np.uint64)[0]))
    detector.train()
    sums: defaultdict[str, float] = defaultdict(float)
    images_seen, rate, step = 0, 0.0, 0
    started = time.perf_counter()
    try:
        for step, batch in enumerate(batches.epoch(epoch)):
            rate = learning_rate_at(epoch * steps + step, total, recipe, decay_step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses = _step(
                detector, loss_function, batch, recipe, optimizer, scaler, device, ranks, epoch * steps + step
            )
            if average is not None:
                average.update(detector, epoch * steps + step)
            count = len(batch.targets) * ranks.count
            images_seen += count
            for name, value in losses.items():
                sums[name] += value * count
            if on_step is not None:
                seconds = time.perf_counter() - started
                on_step(
                    StepLog(
                        epoch=epoch + 1,
                        epochs=epochs,
                        step=step + 1,
                        steps=steps,
                        loss=sum(losses.values()),
                        images_per_s=images_seen / seconds,
                        eta_s=seconds / (step + 1) * (total - epoch * steps - step - 1),
                    )
                )
    except (RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            raise TrainingFailedError(
                f"out of memory in step {step + 1} of epoch {epoch + 1} on {device} ({first_line(error)})",
                epoch * steps + step,
            ) from error
        raise
    if not _finite(detector):
        raise DivergedError(f"the weights are not finite after epoch {epoch + 1}", epoch * steps + step)
    seconds = time.perf_counter() - started
    means = {name: value / images_seen for name, value in sums.items()}
    return EpochLog(
        epoch=epoch + 1,
        epochs=epochs,
        loss=sum(means.values()),
        losses=means,
        learning_rate=rate,
        images_per_s=images_seen / seconds,
        seconds=seconds,
        eta_s=seconds * (epochs - epoch - 1),
        memory_mb=memory_in_use_mb(device),
    )


def _step(
    detector: Detector,
    loss_function: LossFunction,
    batch: TrainBatch,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    ranks: Ranks,
    iteration: int,
) -> dict[str, float]:
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    images = batch.images.to(device, non_blocking=True).contiguous(memory_format=layout)
    # DDP sends each gradient as soon as it is ready, which standardizing all weights in one launch would delay
    together = standardized_together(detector) if ranks.count == 1 else nullcontext()
    with _precision(recipe, device), together:
        losses = loss_function(images, batch.targets)
        loss = torch.stack(list(losses.values())).sum()
    # the mean over the ranks shows an infinity of one rank to all, so that they stop together and none waits for
    # gradients that never come
    facts = [ranks.mean(torch.stack([part.detach().float() for part in losses.values()]))]
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaler.scale(loss))
    if recipe.clip_norm is not None:
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), recipe.clip_norm)
        facts.append(norm.detach().float().reshape(1))
    scaler.step(optimizer)
    scaler.update()
    # Read once and last: on a GPU every read synchronizes and drains the queue of kernels. A step with bad numbers has
    # been applied by then, which is harmless, since the run ends here.
    numbers = torch.cat(facts).tolist()
    values = dict(zip(losses, numbers, strict=False))
    if not all(map(np.isfinite, values.values())):
        parts = ", ".join(f"{name}={value:g}" for name, value in values.items())
        raise DivergedError(f"the loss is not finite in step {iteration + 1}: {parts}", iteration)
    # float16 overflows now and then by design: the scaler skips that step and lowers its scale
    if not scaler.is_enabled() and not all(map(np.isfinite, numbers)):
        raise DivergedError(f"the gradients are not finite in step {iteration + 1}", iteration)
    return values


def _finite(detector: Detector) -> bool:
    """Whether all weights are finite: without gradient clipping, no later loss reveals a bad last step."""
    return bool(torch.nn.utils.get_total_norm(list(detector.parameters()), norm_type=math.inf).isfinite())


def _precision(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    if device.type != "cuda" or recipe.amp == "off":
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16 if recipe.amp == "bf16" else torch.float16)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()  # the CPU allocator raises a bare RuntimeError
    return "can't allocate memory" in text or "not enough memory" in text
