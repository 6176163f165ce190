"""Run folders that are unfinished, foreign or damaged."""

from pathlib import Path

import pytest

from profiler.errors import UserError
from smnas.report.run_folder import read_run_folder


@pytest.fixture
def begun(tmp_path: Path, run_folder: Path) -> Path:
    """A run folder with its settings and nothing else."""
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "settings.json").write_bytes((run_folder / "settings.json").read_bytes())
    return folder


@pytest.mark.slow
def test_a_search_that_just_began_reads_as_empty(begun: Path) -> None:
    run = read_run_folder(begun)
    assert run.settings.preset == "nano"
    assert (run.trials, run.curves, run.ranking.rows, run.winner, run.baseline) == ((), (), (), None, None)
    assert [path.name for path in begun.iterdir()] == ["settings.json"]


@pytest.mark.slow
def test_half_a_last_line_of_a_curve_is_skipped(begun: Path) -> None:
    run = begun / "models" / "x" / "seed-0-epochs-2"
    run.mkdir(parents=True)
    (run / "curve.jsonl").write_text('{"epoch": 1, "loss": 2.0, "note": "text"}\n{"epoch": 2, "lo')
    (curve,) = read_run_folder(begun).curves
    assert curve.epochs == ({"epoch": 1.0, "loss": 2.0},)


@pytest.mark.slow
def test_reading_leaves_the_folder_as_it_was(run_folder: Path) -> None:
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    read_run_folder(run_folder)
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("settings.json", '{"format_version": 2}', "format 1"),
        ("settings.json", "[]", "format 1"),
        ("settings.json", "{", "JSON"),
        ("ranking.json", '{"format_version": 9, "rows": []}', "format 1"),
        ("ranking.json", '{"format_version": 1}', "must hold a ranking"),
        ("ranking.json", '{"format_version": 1, "rows": [{"rank": 1}]}', "must hold a ranking"),
        ("study.db", "this is no database, not even a small one", "SQLite"),
    ],
)
def test_a_damaged_file_is_one_line(begun: Path, name: str, content: str, says: str) -> None:
    (begun / name).write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        read_run_folder(begun)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings\.json"):
        read_run_folder(tmp_path)
    with pytest.raises(UserError, match="must exist"):
        read_run_folder(tmp_path / "absent")
