"""The learning rate of every step as a pure function, so a resumed run has no scheduler state to restore."""

import math

from smnas.training.recipe import Recipe

__all__ = ["learning_rate_at", "warmup_length"]


def warmup_length(recipe: Recipe, total: int) -> int:
    """Steps of warm-up in a run of ``total`` steps.

    A warm-up counted in iterations (SM-NAS: 500) would swallow a short run, hence the recipe's ``warmup_limit``.
    """
    return min(recipe.warmup_iterations, int(recipe.warmup_limit * total))


def learning_rate_at(iteration: int, total: int, recipe: Recipe) -> float:
    """The rate of step ``iteration``, 0 to ``total - 1``: peak times the schedule's factor times the warm-up's.

    Step drops happen at ``round(fraction * total)``; the cosine would reach ``final_factor`` at ``iteration == total``;
    the linear warm-up ends, at factor 1, at ``iteration == warmup_length(...)``.

    Raises:
        ValueError: ``iteration`` lies outside the run.
    """
    if not 0 <= iteration < total:
        raise ValueError(f"0 <= iteration < total must hold, but got iteration={iteration}, total={total}")
    if recipe.schedule == "cosine":
        half_cosine = 0.5 * (1 + math.cos(math.pi * iteration / total))
        factor = recipe.final_factor + (1 - recipe.final_factor) * half_cosine
    else:
        drops = sum(iteration >= round(fraction * total) for fraction in recipe.step_at)
        factor = recipe.step_factor**drops
    warmup = warmup_length(recipe, total)
    if iteration < warmup:
        factor *= recipe.warmup_start + (1 - recipe.warmup_start) * iteration / warmup
    return recipe.peak_learning_rate * factor
