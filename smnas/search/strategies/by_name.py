"""Strategies by name."""

from collections.abc import Callable

from profiler.errors import UserError
from smnas.search.context import SearchContext
from smnas.search.strategies.base import Strategy, StrategyKind
from smnas.search.strategies.halving.halving import HALVING, SURROGATE
from smnas.search.strategies.mae_det.zero_shot import MAE_DET
from smnas.search.strategies.nsga2 import NSGA2
from smnas.search.strategies.random_search import RANDOM
from smnas.search.strategies.regularized_evolution import REGULARIZED_EVOLUTION
from smnas.search.strategies.sm_nas import SM_NAS

__all__ = ["STRATEGIES", "AnyStrategy", "UnknownStrategyError", "get_strategy"]

AnyStrategy = str | StrategyKind | Callable[[SearchContext], Strategy]
"""A name, a :class:`StrategyKind`, or a function whose name is the strategy's."""

STRATEGIES: dict[str, StrategyKind] = {
    "sm-nas": SM_NAS,
    "halving": HALVING,
    "surrogate": SURROGATE,
    "nsga2": NSGA2,
    "regularized-evolution": REGULARIZED_EVOLUTION,
    "random": RANDOM,
    "mae-det": MAE_DET,
}


class UnknownStrategyError(UserError):
    """No strategy has this name."""


def get_strategy(strategy: AnyStrategy) -> StrategyKind:
    """Find a strategy; raises :class:`UnknownStrategyError`."""
    if isinstance(strategy, StrategyKind):
        return strategy
    if not isinstance(strategy, str):
        return StrategyKind(getattr(strategy, "__name__", type(strategy).__name__), strategy)
    if strategy not in STRATEGIES:
        raise UnknownStrategyError(f"--strategy must be one of {', '.join(STRATEGIES)}, but got {strategy!r}")
    return STRATEGIES[strategy]
