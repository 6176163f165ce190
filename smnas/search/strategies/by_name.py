"""Where strategy names meet strategies."""

from collections.abc import Callable

from profiler.errors import UserError
from smnas.search.strategies.base import Strategy
from smnas.search.strategies.choices import Choices, DetectorChoices
from smnas.search.strategies.halving.halving import halving, surrogate_search
from smnas.search.strategies.halving.latency_sample import KnownLatency
from smnas.search.strategies.nsga2 import nsga2
from smnas.search.strategies.random_search import random_search
from smnas.search.strategies.regularized_evolution import regularized_evolution
from smnas.search.strategies.sm_nas import sm_nas
from smnas.search.study.settings import SearchSettings
from smnas.space.preset import Space

__all__ = ["STOPPING", "STRATEGIES", "UnknownStrategyError", "get_strategy"]


class UnknownStrategyError(UserError):
    """No strategy has this name."""


def _limit_ms(settings: SearchSettings) -> float | None:
    return None if settings.latency_ms is None else settings.latency_ms * settings.latency_tolerance


def _all_trials(settings: SearchSettings) -> int:
    return settings.trials.structural + settings.trials.modular


def _sm_nas(choices: Choices, settings: SearchSettings, _: KnownLatency | None) -> Strategy:
    return sm_nas(
        choices,
        structural_trials=settings.trials.structural,
        modular_trials=settings.trials.modular,
        random_share=settings.random_share,
        parents=settings.parents,
        latency_limit_ms=_limit_ms(settings),
    )


def _random(choices: Choices, settings: SearchSettings, _: KnownLatency | None) -> Strategy:
    return random_search(choices, structural_trials=settings.trials.structural, modular_trials=settings.trials.modular)


def _regularized_evolution(choices: Choices, settings: SearchSettings, _: KnownLatency | None) -> Strategy:
    return regularized_evolution(choices, _all_trials(settings))


def _nsga2(choices: Choices, settings: SearchSettings, _: KnownLatency | None) -> Strategy:
    return nsga2(choices, _all_trials(settings))


def _surrogate(choices: Choices, settings: SearchSettings, latency: KnownLatency | None) -> Strategy:
    return surrogate_search(choices, _all_trials(settings), settings.epochs, _limit_ms(settings), latency)


def _halving(choices: Choices, settings: SearchSettings, latency: KnownLatency | None) -> Strategy:
    return halving(choices, _all_trials(settings), settings.epochs, _limit_ms(settings), latency)


STRATEGIES: dict[str, Callable[[Choices, SearchSettings, KnownLatency | None], Strategy]] = {
    "sm-nas": _sm_nas,
    "halving": _halving,
    "surrogate": _surrogate,
    "nsga2": _nsga2,
    "regularized-evolution": _regularized_evolution,
    "random": _random,
}

STOPPING = frozenset({"halving"})
"""Those that stop training runs and let them go on, for which a scorer must be able to."""


def get_strategy(space: Space, settings: SearchSettings, latency: KnownLatency | None = None) -> Strategy:
    """The strategy that the settings name.

    Args:
        space: Where to search.
        settings: What to search.
        latency: Where latency can be asked for before anything is trained; some strategies ask.

    Raises:
        UnknownStrategyError: there is none of that name.
    """
    if settings.strategy not in STRATEGIES:
        raise UnknownStrategyError(f"a strategy must be one of {', '.join(STRATEGIES)}, but got {settings.strategy!r}")
    return STRATEGIES[settings.strategy](DetectorChoices(space), settings, latency)
