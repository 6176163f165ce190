"""Which strategy, scorer and prior go together, and the settings that follow from what they state.

Pure functions of names or objects: nothing here knows a strategy or a scorer by its name.
"""

from dataclasses import dataclass
from typing import Any

from profiler.errors import UserError
from smnas.scoring.base import ScorerFacts
from smnas.scoring.by_name import SCORERS, AnyScorer, get_scorer, quick_score
from smnas.search.strategies.base import StrategyKind
from smnas.search.strategies.by_name import STRATEGIES, AnyStrategy, get_strategy
from smnas.training.recipe import Recipe

__all__ = ["Method", "choose_method"]

_STATED = ("name", "metric", "trains", "stops")


@dataclass(frozen=True)
class Method:
    """How a search proposes and scores.

    Attributes:
        strategy: Proposes.
        scorer: Scores what the search proposes.
        prior: The name of a score without training that orders proposals, or None.
    """

    strategy: StrategyKind
    scorer: ScorerFacts
    prior: str | None

    def settings(self, structural: int, modular: int) -> dict[str, Any]:
        """The fields of :class:`~smnas.search.study.settings.SearchSettings` that follow.

        Args:
            structural: Trials of stage 1 that the user wants.
            modular: Trials of stage 2.
        """
        return {
            "strategy": self.strategy.name,
            "scorer": self.scorer.name,
            "metric": self.scorer.metric,
            "trains": self.scorer.trains,
            "prior": self.prior,
            # the partial order is one of trained accuracy
            "partial_order": self.scorer.trains,
            "trials": self.strategy.split(structural, modular),
        }

    def recipe(self, recipe: Recipe, images: int) -> Recipe:
        """The recipe, with averaged weights for runs that are read before their learning rate has come down.

        Args:
            recipe: The user's.
            images: Of the training split. The weights are averaged over the steps of about an epoch.
        """
        if not self.strategy.stops or recipe.ema_decay:
            return recipe
        steps = max(images // recipe.batch_size, 1)
        return recipe.with_(ema_decay=min(max(1.0 - 1.0 / steps, 0.9), 0.999))


def choose_method(
    strategy: AnyStrategy | None = None,
    scorer: AnyScorer = "ap",
    prior: str | None = None,
    final_epochs: int | None = None,
) -> Method:
    """Check what goes together, and fill in the default strategy.

    Args:
        strategy: None: the one that the scorer states (else ``halving`` if it can stop, ``surrogate`` if not), or with
            a prior the first strategy that gains by one, if that one does not.
        scorer: Name or one's own.
        prior: Name of a scorer that needs nothing but the architecture.
        final_epochs: Epochs of the final phase; None: not decided yet.

    Raises:
        UserError: a name is unknown, or two choices do not go together; one line that names the option.
    """
    found = get_scorer(scorer)
    unsaid = next((member for member in _STATED if not hasattr(found, member)), None)
    if unsaid is not None:
        raise UserError(f"a scorer states {', '.join(_STATED)}, but {found!r} has no {unsaid}")
    if strategy is None:
        strategy = getattr(found, "strategy", "halving" if found.stops else "surrogate")
        if prior is not None and not get_strategy(strategy).takes_prior:
            strategy = next(name for name, kind in STRATEGIES.items() if kind.takes_prior)
    kind = get_strategy(strategy)
    priors = [name for name in SCORERS if quick_score(name) is not None]
    if prior is not None and prior not in priors:
        raise UserError(f"--prior must be one of {', '.join(priors)}, but got {prior!r}")
    if kind.stops and not found.stops:
        raise UserError(f"--strategy {kind.name} stops training runs, so --scorer must train, but got {found.name!r}")
    if not found.trains and final_epochs == 0:
        raise UserError(f"--final-epochs must be above 0 with --scorer {found.name}, which trains nothing, but got 0")
    return Method(kind, found, prior)
