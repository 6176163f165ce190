"""The schedule against torch's own schedulers, composed independently."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from smnas.training.recipe import Recipe, load_recipe
from smnas.training.schedule import learning_rate_at, warmup_length


def recipe_with(**changes: object) -> Recipe:
    return load_recipe("nano").with_(learning_rate=0.4, batch_size=16, learning_rate_batch=16, **changes)


def rates_of_torch(total: int, recipe: Recipe, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.peak_learning_rate)
    parts: list[LRScheduler] = []
    if recipe.schedule == "cosine":
        parts.append(CosineAnnealingLR(optimizer, T_max=total, eta_min=recipe.peak_learning_rate * recipe.final_factor))
    else:
        milestones = [round(share * total) for share in recipe.step_at]
        parts.append(MultiStepLR(optimizer, milestones, gamma=recipe.step_factor))
    if warmup:
        parts.append(LinearLR(optimizer, start_factor=recipe.warmup_start, total_iters=warmup))
    scheduler = ChainedScheduler(parts, optimizer=optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("total", [1, 2, 7, 100, 640])
@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_step_with_warmup_is_torchs_chain(total: int, warmup: int) -> None:
    recipe = recipe_with(schedule="step", warmup_iterations=warmup, warmup_limit=1.0, step_at=(0.5, 0.8))
    ours = [learning_rate_at(i, total, recipe) for i in range(total)]
    assert ours == pytest.approx(rates_of_torch(total, recipe, min(warmup, total)), rel=1e-6)


@pytest.mark.parametrize("total", [1, 2, 7, 100, 640])
@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_cosine_to_zero_with_warmup_is_torchs_chain(total: int, warmup: int) -> None:
    recipe = recipe_with(schedule="cosine", final_factor=0.0, warmup_iterations=warmup, warmup_limit=1.0)
    ours = [learning_rate_at(i, total, recipe) for i in range(total)]
    assert ours == pytest.approx(rates_of_torch(total, recipe, min(warmup, total)), rel=1e-6, abs=1e-9)


def test_cosine_to_a_floor_is_torchs() -> None:
    recipe = recipe_with(schedule="cosine", final_factor=0.05, warmup_iterations=0)
    ours = [learning_rate_at(i, 90, recipe) for i in range(90)]
    assert ours == pytest.approx(rates_of_torch(90, recipe, 0), rel=1e-6)


def test_warmup_starts_at_its_factor_and_rises_evenly() -> None:
    recipe = recipe_with(schedule="step", warmup_iterations=500, warmup_start=0.1)
    rates = [learning_rate_at(i, 10_000, recipe) for i in range(501)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[500] == pytest.approx(0.4)
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * 500)


def test_a_short_run_is_not_all_warmup() -> None:
    recipe = load_recipe("sm-nas")
    assert warmup_length(recipe, 100_000) == 500
    assert warmup_length(recipe, 100) == 25
    peak = max(learning_rate_at(i, 100, recipe) for i in range(100))
    assert peak == recipe.peak_learning_rate


@settings(max_examples=60)
@given(total=st.integers(1, 400), warmup=st.integers(0, 600), schedule=st.sampled_from(["cosine", "step"]))
def test_rates_are_positive_and_never_above_the_peak(total: int, warmup: int, schedule: str) -> None:
    recipe = recipe_with(schedule=schedule, warmup_iterations=warmup)
    rates = [learning_rate_at(i, total, recipe) for i in range(total)]
    assert all(0 < rate <= recipe.peak_learning_rate for rate in rates)
    after = rates[warmup_length(recipe, total) :]
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize("iteration", [-1, 10, 11])
def test_a_step_outside_the_run_is_refused(iteration: int) -> None:
    with pytest.raises(ValueError, match="0 <= iteration < total"):
        learning_rate_at(iteration, 10, load_recipe("nano"))
