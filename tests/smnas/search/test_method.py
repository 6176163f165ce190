"""Which strategy, scorer and prior go together, and what follows for the settings."""

from pathlib import Path

import pytest
import search_stub as stub

from profiler.errors import UserError
from smnas.scoring.base import Score
from smnas.search.context import SearchContext
from smnas.search.method import choose_method
from smnas.search.strategies.base import Strategy
from smnas.search.strategies.by_name import STRATEGIES, get_strategy
from smnas.search.study.settings import StageTrials
from smnas.training.recipe import load_recipe


class Quick:
    """A scorer of one's own that trains nothing."""

    name, metric, trains, stops = "quick", "speed", False, False

    def score(self, architecture, *, seed, epochs, out_dir: Path, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        return Score(-float(architecture.input_width))


def nothing(context: SearchContext) -> Strategy:
    return Strategy("nothing", ())


@pytest.mark.parametrize(
    ("scorer", "prior", "strategy"),
    [
        ("ap", None, "halving"),
        ("ap", "entropy", "sm-nas"),  # halving orders its proposals by a model of its own
        ("entropy", None, "mae-det"),
        ("entropy-16", "entropy", "mae-det"),
        (stub.StubScorer(), None, "halving"),
        (Quick(), None, "surrogate"),
        (Quick(), "entropy", "sm-nas"),
    ],
)
def test_the_default_strategy_follows_from_what_the_scorer_states(scorer, prior, strategy) -> None:  # type: ignore[no-untyped-def]
    assert choose_method(None, scorer, prior).strategy.name == strategy


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"strategy": "magic"}, f"--strategy must be one of {', '.join(STRATEGIES)}, but got 'magic'"),
        (
            {"scorer": "magic"},
            "a scorer is one of ap, entropy, entropy-16, entropy-deepmad, fine-tuned-ap, shared-ap, but got 'magic'",
        ),
        ({"scorer": 3}, "a scorer states name, metric, trains, stops, but 3 has no name"),
        ({"prior": "ap"}, "--prior must be one of entropy, entropy-16, entropy-deepmad, but got 'ap'"),
        (
            {"strategy": "halving", "scorer": "entropy"},
            "--strategy halving stops training runs, so --scorer must train, but got 'entropy'",
        ),
        (
            {"scorer": Quick(), "final_epochs": 0},
            "--final-epochs must be above 0 with --scorer quick, which trains nothing, but got 0",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(choices: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_method(**choices)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_the_settings_follow() -> None:
    assert choose_method("sm-nas", "ap", None).settings(3, 4) == {
        "strategy": "sm-nas",
        "scorer": "ap",
        "metric": "AP",
        "trains": True,
        "prior": None,
        "final": "scratch",
        "partial_order": True,
        "trials": StageTrials(structural=3, modular=4),
    }
    found = choose_method(None, "entropy-16").settings(3, 4)
    assert (found["metric"], found["trains"], found["partial_order"]) == ("entropy-16", False, False)
    assert found["trials"] == StageTrials(structural=0, modular=7), "mae-det evolves backbones only"
    assert choose_method(nothing, Quick()).settings(3, 4)["strategy"] == "nothing"


def test_a_function_is_a_strategy_of_its_name() -> None:
    kind = get_strategy(nothing)
    assert (kind.name, kind.stops, kind.make) == ("nothing", False, nothing)
    assert get_strategy(kind) is kind


def test_runs_that_stop_average_their_weights_over_about_an_epoch() -> None:
    recipe, stops = load_recipe("nano").with_(batch_size=8), choose_method("halving")
    assert stops.recipe(recipe, 480).ema_decay == pytest.approx(1 - 1 / 60)
    assert stops.recipe(recipe, 8).ema_decay == 0.9, "at least some ten steps"
    assert stops.recipe(recipe, 10**6).ema_decay == 0.999
    averaged = recipe.with_(ema_decay=0.5)
    assert stops.recipe(averaged, 480) is averaged
    assert choose_method("sm-nas").recipe(recipe, 480) is recipe
