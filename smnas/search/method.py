"""Compatible choices of strategy, scorer and prior, and the settings that follow from what they state.

Nothing here depends on the name of a strategy or a scorer.
"""

from dataclasses import dataclass
from typing import Any

from profiler.errors import UserError
from smnas.scoring.base import ScorerFacts
from smnas.scoring.by_name import SCORERS, AnyScorer, get_scorer, quick_score
from smnas.search.strategies.base import StrategyKind
from smnas.search.strategies.by_name import STRATEGIES, AnyStrategy, get_strategy
from smnas.training.recipe import Recipe

__all__ = ["FINALS", "Method", "choose_method"]

FINALS = {"scratch": "ap"}
"""The scorer of the final phase by the value of ``--final``, where a scorer has none of its own."""

_STATED = ("name", "metric", "trains", "stops")


@dataclass(frozen=True)
class Method:
    """A strategy, a scorer, the name of the training-free score that orders proposals or None, and ``--final``."""

    strategy: StrategyKind
    scorer: ScorerFacts
    prior: str | None
    final: str = "scratch"

    def settings(self, structural: int, modular: int) -> dict[str, Any]:
        """Fields of :class:`~smnas.search.study.settings.SearchSettings` that follow, for the trials of both stages."""
        return {
            "strategy": self.strategy.name,
            "scorer": self.scorer.name,
            "metric": self.scorer.metric,
            "trains": self.scorer.trains,
            "prior": self.prior,
            "final": self.final,
            # the partial order is one of trained accuracy
            "partial_order": self.scorer.trains,
            "trials": self.strategy.split(structural, modular),
        }

    def recipe(self, recipe: Recipe, images: int) -> Recipe:
        """Add averaged weights to the recipe of a strategy that stops runs before their learning rate has decayed.

        The average covers about one epoch of steps over the ``images`` of the training split.
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
    final: str | None = None,
    supernet_epochs: int | None = None,
) -> Method:
    """Check that the choices go together, and fill in the default strategy.

    Args:
        strategy: None: the scorer's own default (else ``halving`` if it can stop, ``surrogate`` if not), or with a
            prior that this one ignores, the first strategy that gains by one.
        scorer: Name or object.
        prior: Name of a scorer that needs only the architecture.
        final_epochs: Epochs of the final phase; None: undecided.
        final: What the final phase trains from; None: the scorer's own default.
        supernet_epochs: Epochs of the shared weights; None: the default, or there are none.

    Raises:
        UserError: an unknown name, or choices that do not go together; one line that names the option.
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
    finals = list(getattr(found, "finals", FINALS))
    if final is not None and final not in finals:
        raise UserError(f"--final must be {' or '.join(finals)} with --scorer {found.name}, but got {final!r}")
    if supernet_epochs is not None and "fine-tune" not in finals:
        raise UserError(
            f"--supernet-epochs goes with a scorer with shared weights, as shared-ap, but got {found.name!r}"
        )
    return Method(kind, found, prior, final or finals[0])
