"""``smnas search``'s limits and storage on the command line."""

from pathlib import Path

import pytest

from smnas.cli import search
from smnas.cli.main import application
from smnas.cli.run import run
from smnas.training.recipe import load_recipe


def test_trainings_that_stop_are_averaged_over_about_an_epoch() -> None:
    recipe = load_recipe("nano").with_(batch_size=8)
    assert search._ema_decay(480, recipe) == pytest.approx(1 - 1 / 60)
    assert search._ema_decay(8, recipe) == 0.9, "at least some ten steps"
    assert search._ema_decay(10**6, recipe) == 0.999


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "8x"), "a time is written as in 90s"),
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
