"""Recipes are checked data: bounds, unknown keys, and the rule that scales the learning rate."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import smnas.training.recipe as module
from profiler.errors import UserError
from smnas.training.recipe import Recipe, RecipeError, load_recipe, recipe_names


@pytest.fixture
def nano() -> Recipe:
    return load_recipe("nano")


def test_the_three_recipes_of_the_project_load() -> None:
    assert set(recipe_names()) >= {"nano", "small", "sm-nas"}
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_the_paper_recipe_is_the_papers() -> None:
    recipe = load_recipe("sm-nas")
    assert (recipe.momentum, recipe.weight_decay) == (0.9, 1e-4)
    assert (recipe.warmup_iterations, recipe.warmup_start) == (500, 0.1)
    assert recipe.schedule == "step"
    assert recipe.decay_norm_and_bias
    assert recipe.learning_rate > 0.02


def test_every_key_of_a_file_reaches_the_recipe() -> None:
    for path in (Path(module.__file__).parent / "recipes").glob("*.toml"):
        written = tomllib.loads(path.read_text())
        read = load_recipe(path.stem).model_dump()
        for key, value in written.items():
            assert read[key] == (tuple(value) if isinstance(value, list) else value)


def test_every_field_is_documented() -> None:
    assert all(field.description for field in Recipe.model_fields.values())


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"one of nano, .*sm-nas.* but got 'huge'"):
        load_recipe("huge")
    with pytest.raises(RecipeError):
        load_recipe("../recipes/nano")


def test_an_unknown_key_is_refused(nano: Recipe) -> None:
    with pytest.raises(RecipeError, match="but got 'learning_rat'"):
        nano.with_(learning_rat=1)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"momentum": 1},
        {"weight_decay": -1e-4},
        {"schedule": "linear"},
        {"step_at": (0.9, 0.6)},
        {"step_at": (0.5, 1.0)},
        {"scale_jitter": (1.2, 0.8)},
        {"scale_jitter": (0.0, 1.0)},
        {"clip_norm": 0},
        {"flip": 1.1},
        {"amp": "fp8"},
        {"name": ""},
    ],
)
def test_a_value_out_of_bounds_is_one_line_for_the_user(nano: Recipe, change: dict[str, object]) -> None:
    with pytest.raises(UserError) as error:
        nano.with_(**change)
    message = str(error.value)
    assert "\n" not in message
    assert next(iter(change)) in message


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match="epochs"):
        Recipe.parse({"name": "bare", "batch_size": 4, "learning_rate": 0.1})


def test_with_changes_a_copy_and_skips_none(nano: Recipe) -> None:
    longer = nano.with_(epochs=nano.epochs + 1, batch_size=None)
    assert longer.epochs == nano.epochs + 1
    assert longer.batch_size == nano.batch_size
    assert longer != nano
    assert nano == load_recipe("nano")


@given(batch=st.integers(1, 512), stated=st.integers(1, 512))
def test_the_learning_rate_is_proportional_to_the_batch(batch: int, stated: int) -> None:
    recipe = load_recipe("small").with_(
        optimizer="sgd", batch_size=batch, learning_rate=0.1, learning_rate_batch=stated
    )
    assert recipe.peak_learning_rate / batch == pytest.approx(0.1 / stated)
    # Adam divides by the gradient's size, which falls with the square root of the images that it is a mean of
    adam = recipe.with_(optimizer="adamw")
    assert adam.peak_learning_rate**2 / batch == pytest.approx(0.1**2 / stated)


@given(jitter=st.floats(0.1, 1.0), clip=st.none() | st.floats(0.1, 100.0), epochs=st.integers(1, 1000))
def test_a_recipe_survives_json(jitter: float, clip: float | None, epochs: int) -> None:
    recipe = load_recipe("small").with_(scale_jitter=(jitter, 1.5), clip_norm=clip, epochs=epochs)
    assert Recipe.parse(recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_recipe_can_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 3\nbatch_size = 4\nlearning_rate = 0.1\nevaluate_every = 2\n")
    recipe = load_recipe(str(file))
    assert (recipe.name, recipe.epochs, recipe.evaluate_every) == ("mine", 3, 2)
    with pytest.raises(RecipeError, match=r"readable TOML, but got .*none\.toml"):
        load_recipe(str(tmp_path / "none.toml"))
    file.write_text("epochs = ")
    with pytest.raises(RecipeError, match="readable TOML"):
        load_recipe(str(file))
    file.write_text("epochs = 0\nbatch_size = 4\nlearning_rate = 0.1\n")
    with pytest.raises(RecipeError, match=r"mine\.toml: recipe epochs"):
        load_recipe(str(file))
