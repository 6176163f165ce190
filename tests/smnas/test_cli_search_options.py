"""``smnas search``'s limits and storage on the command line."""

from pathlib import Path

import pytest

from profiler.errors import UserError
from smnas.cli import search
from smnas.cli.main import application
from smnas.cli.run import run
from smnas.training.recipe import load_recipe


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("8h", 28800), ("1.5h", 5400), ("2d", 172800)]
)
def test_a_budget_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert search._seconds(text) == seconds


@pytest.mark.parametrize("text", ["8", "h", "-1h", "0m", "8 hours", "1h30m", ""])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--budget must be a time as in 45m, 8h or 2d"):
        search._seconds(text)


def test_trainings_that_stop_are_averaged_over_about_an_epoch() -> None:
    recipe = load_recipe("nano").with_(batch_size=8)
    assert search._ema_decay(480, recipe) == pytest.approx(1 - 1 / 60)
    assert search._ema_decay(8, recipe) == 0.9, "at least some ten steps"
    assert search._ema_decay(10**6, recipe) == 0.999


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "8x"), "--budget must be a time"),
        (("--storage", "postgresql://me:secret@host/db"), "must not hold a password"),
        (("--storage", "nothing"), "a storage is a database URL"),
    ],
)
def test_mistakes_leave_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "run"
    code = run(application("search"), "smnas-search", [*words, "--gpu", "cpu", "--out", str(out)])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert "secret" not in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()
