"""Where strategy names meet strategies."""

from collections.abc import Callable

from profiler.errors import UserError
from smnas.search.random_search import random_search
from smnas.search.settings import SearchSettings
from smnas.search.sm_nas import sm_nas
from smnas.search.strategy import Strategy
from smnas.space.preset import Space

__all__ = ["STRATEGIES", "UnknownStrategyError", "get_strategy"]


class UnknownStrategyError(UserError):
    """No strategy has this name."""


def _sm_nas(space: Space, settings: SearchSettings) -> Strategy:
    limit = settings.latency_ms
    return sm_nas(
        space,
        structural_trials=settings.trials.structural,
        modular_trials=settings.trials.modular,
        random_share=settings.random_share,
        parents=settings.parents,
        latency_limit_ms=None if limit is None else limit * settings.latency_tolerance,
    )


def _random(space: Space, settings: SearchSettings) -> Strategy:
    return random_search(space, structural_trials=settings.trials.structural, modular_trials=settings.trials.modular)


STRATEGIES: dict[str, Callable[[Space, SearchSettings], Strategy]] = {"sm-nas": _sm_nas, "random": _random}


def get_strategy(space: Space, settings: SearchSettings) -> Strategy:
    """The strategy that the settings name.

    Raises:
        UnknownStrategyError: there is none of that name.
    """
    if settings.strategy not in STRATEGIES:
        raise UnknownStrategyError(f"a strategy must be one of {', '.join(STRATEGIES)}, but got {settings.strategy!r}")
    return STRATEGIES[settings.strategy](space, settings)
