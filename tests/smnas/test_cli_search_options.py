"""``smnas search``'s limits and storage on the command line."""

import json
from pathlib import Path

import pytest

from smnas.cli import search
from smnas.cli.main import application
from smnas.cli.run import run
from smnas.data.shapes import generate_shapes
from smnas.search.ranking import Ranking
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


def test_a_search_without_a_detector_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranking = Ranking((), None, ("The baseline failed and is not in the ranking: diverged",))
    monkeypatch.setattr(search, "_search", lambda *_: None)
    monkeypatch.setattr(search, "_finish", lambda *_: (ranking, tmp_path / "run" / "report.html"))
    data = generate_shapes(tmp_path / "data", train=1, val=1)
    words = ["--data", str(data), "--gpu", "cpu", "--backend", "eager", "--out", str(tmp_path / "run"), "--json"]
    assert run(application("search"), "smnas-search", words) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["notes"] == list(ranking.notes), "what there is is told all the same"
    assert "nothing has an AP" in captured.err.splitlines()[-1]
