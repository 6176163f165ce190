"""Run folders that are unfinished, foreign or damaged."""

import json
from pathlib import Path

import pytest

from profiler.errors import UserError
from smnas.report.run_folder import read_run_folder


def settings(folder: Path, **values: object) -> None:
    (folder / "settings.json").write_text(json.dumps({"format_version": 1, **values}))


def test_a_search_that_just_began_reads_as_empty(tmp_path: Path) -> None:
    settings(tmp_path, preset="nano")
    run = read_run_folder(tmp_path)
    assert run.settings["preset"] == "nano"
    assert (run.trials, run.curves, run.ranking.rows, run.ranking.winner) == ((), (), (), None)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_half_a_last_line_of_a_curve_is_skipped(tmp_path: Path) -> None:
    settings(tmp_path)
    run = tmp_path / "models" / "x" / "seed-0-epochs-2"
    run.mkdir(parents=True)
    (run / "curve.jsonl").write_text('{"epoch": 1, "loss": 2.0, "note": "text"}\n{"epoch": 2, "lo')
    (curve,) = read_run_folder(tmp_path).curves
    assert curve.epochs == ({"epoch": 1.0, "loss": 2.0},)


def test_reading_leaves_the_folder_as_it_was(run_folder: Path) -> None:
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    read_run_folder(run_folder)
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("settings.json", '{"format_version": 2}', "format 1"),
        ("settings.json", "[]", "format 1"),
        ("settings.json", "{", "JSON"),
        ("ranking.json", '{"format_version": 9, "rows": []}', "format 1"),
        ("ranking.json", '{"format_version": 1}', "ranking rows"),
        ("ranking.json", '{"format_version": 1, "rows": [{"rank": 1}]}', "ranking rows"),
        ("study.db", "this is no database, not even a small one", "SQLite"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, content: str, says: str) -> None:
    settings(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        read_run_folder(tmp_path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings\.json"):
        read_run_folder(tmp_path)
    with pytest.raises(UserError, match="must exist"):
        read_run_folder(tmp_path / "absent")
