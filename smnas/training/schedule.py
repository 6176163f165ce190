"""The learning rate of every step as a pure function, so a resumed run has no scheduler state to restore.

The schedule ``auto`` need not know its end (warm-up, stable, decay; Hu et al. 2024, arXiv 2404.06395): the rate stays
at its peak until AP no longer rises, and then decays.
"""

import math
from collections.abc import Sequence

from smnas.training.curve import EpochLog
from smnas.training.recipe import Recipe

__all__ = ["automatic_average", "automatic_interval", "decay_end", "decay_reason", "learning_rate_at", "warmup_length"]

DECAY = 0.25
"""Epochs of an automatic schedule's decay, as a fraction of those before it; mosaics end where it begins."""
PATIENCE = 4
"""Evaluations without a rise of AP, and at least :data:`PATIENCE_SHARE` of the epochs so far, after which it begins."""
PATIENCE_SHARE = 0.25
FIRST_PATIENCE = 12
"""Evaluations to wait for the first rise: from scratch, AP stays near 0 at first."""
NOISE, NOISE_SHARE = 0.002, 0.02
"""A rise is by more than this AP, and by more than this fraction of the AP before: less is noise of an evaluation."""

_STEPS_BETWEEN = 150  # evaluations of an automatic schedule, at least
_AVERAGED_STEPS = (50, 5000)  # of the moving average that is evaluated: an epoch, within these bounds


def automatic_interval(recipe: Recipe, steps: int) -> int:
    """Epochs between the evaluations of an automatic schedule, given the steps of an epoch."""
    return recipe.evaluate_every or max(2, math.ceil(_STEPS_BETWEEN / steps))


def automatic_average(recipe: Recipe, steps: int) -> float:
    """Decay of the moving average of the weights that an automatic schedule evaluates: the recipe's, or an epoch's."""
    low, high = _AVERAGED_STEPS
    return recipe.ema_decay or 1 - 1 / min(max(steps, low), high)


def decay_end(start: int) -> int:
    """The last epoch of an automatic schedule whose rate decays after epoch ``start``."""
    return start + max(1, round(DECAY * start))


def decay_reason(
    history: Sequence[EpochLog], recipe: Recipe, interval: int, time_limit_s: float | None = None
) -> str | None:
    """Why the decay begins after these epochs, or None while the rate stays.

    A pure function of the epochs so far, of which the last one may have been evaluated.

    Args:
        history: At least one epoch, without decay.
        recipe: ``epochs`` is their largest number, decay included.
        interval: Epochs between evaluations.
        time_limit_s: Time that training and evaluations may take together, estimated from the mean epoch.
    """
    epoch, spent_s = len(history), sum(log.seconds + log.evaluation_s for log in history)
    risen, best = 0, 0.0
    for log in history:
        if log.ap is not None and log.ap > best + max(NOISE, NOISE_SHARE * best):
            risen, best = log.epoch, log.ap
    patience = max(interval * (PATIENCE if risen else FIRST_PATIENCE), PATIENCE_SHARE * epoch)
    if history[-1].ap is not None and epoch - risen >= patience:
        since = f"has not risen from {best:.3f} since epoch {risen}" if risen else "stayed near 0"
        return f"AP {since}: the learning rate decayed from epoch {epoch + 1} to {decay_end(epoch)}"
    if time_limit_s is not None and spent_s / epoch * decay_end(epoch + 1) > time_limit_s:
        return f"the time limit ended a training run whose AP still rose, at {decay_end(epoch)} epochs"
    if decay_end(epoch + 1) > recipe.epochs:
        return f"the limit of {recipe.epochs} epochs ended a training run whose AP still rose"
    return None


def warmup_length(recipe: Recipe, total: int) -> int:
    """Steps of warm-up in a run of ``total`` steps.

    A warm-up counted in iterations (SM-NAS: 500) would swallow a short run, hence the recipe's ``warmup_limit``.
    """
    return min(recipe.warmup_iterations, int(recipe.warmup_limit * total))


def learning_rate_at(iteration: int, total: int, recipe: Recipe, decay_from: int | None = None) -> float:
    """The rate of step ``iteration``, 0 to ``total - 1``: peak times the schedule's factor times the warm-up's.

    Step drops happen at ``round(fraction * total)``; the cosine would reach ``final_factor`` at ``iteration == total``;
    the linear warm-up ends, at factor 1, at ``iteration == warmup_length(...)``. An automatic schedule decays from step
    ``decay_from``, where that is known, with 1 minus the square root of the fraction done (Hägele et al. 2024, arXiv
    2405.18392).

    Raises:
        ValueError: ``iteration`` lies outside the run.
    """
    if not 0 <= iteration < total:
        raise ValueError(f"0 <= iteration < total must hold, but got iteration={iteration}, total={total}")
    if recipe.schedule == "cosine":
        half_cosine = 0.5 * (1 + math.cos(math.pi * iteration / total))
        factor = recipe.final_factor + (1 - recipe.final_factor) * half_cosine
    elif recipe.schedule == "auto":
        done = 0.0 if decay_from is None else max(iteration - decay_from, 0) / (total - decay_from)
        factor = recipe.final_factor + (1 - recipe.final_factor) * (1 - math.sqrt(done))
    else:
        drops = sum(iteration >= round(fraction * total) for fraction in recipe.step_at)
        factor = recipe.step_factor**drops
    warmup = warmup_length(recipe, total)
    if iteration < warmup:
        factor *= recipe.warmup_start + (1 - recipe.warmup_start) * iteration / warmup
    return recipe.peak_learning_rate * factor
