"""Where a study is kept: any file name, a folder that moves, a database that is locked or can not be written."""

import logging
import os
import shutil
import sqlite3
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
import search_stub as stub
import typer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smnas.cli.terminal.exit_codes import run
from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.ranking.ranking import Ranking
from smnas.search.run import run_search
from smnas.search.study import storage
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import RunFolderError, SearchSettings, StageTrials, read_settings
from smnas.space.preset import load_space

NANO = load_space("nano")
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 120
)


def few(**changes: object) -> SearchSettings:
    return stub.settings(**({"trials": StageTrials(structural=1, modular=0), "final_epochs": 0} | changes))  # type: ignore[no-any-return]


def search(folder: Path, conditions: SearchSettings, scorer: stub.StubScorer | None = None) -> Ranking:
    context = SearchContext(folder, conditions, NANO, stub.StubLatency())
    return run_search(context, scorers=InProcess(scorer or stub.StubScorer()), complexity=stub.complexity)


@pytest.mark.slow
@settings(max_examples=5)
@given(NAMES)
@example("run?1")
@example("a%41#{0}&b=c")
@example(":memory:")
@example("file:run?mode=memory")
@example("[1-9]\n'\";*")
def test_any_name_of_a_folder_holds_a_study_of_its_own(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / f"{name}{end}" for end in ("", "2")]
        for seed, folder in enumerate(folders):
            scorer = stub.StubScorer()
            search(folder, few(seed=seed), scorer)
            assert len(scorer.calls) == 2, "the baseline and one candidate"
            assert RunFolder(folder).study.is_file()
            assert {c.seed for c in read_candidates(folder, read_settings(folder))} == {seed}
        assert sorted(Path(place).iterdir()) == sorted(folders), "nothing is written beside them"
        moved = folders[0].rename(folders[0].with_name("moved"))
        again = stub.StubScorer()
        search(moved, few(seed=0), again)
        assert again.calls == []
        shutil.rmtree(moved)


def locked(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_a_search_waits_for_a_program_that_has_locked_its_study(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smnas.search.study.storage._BUSY_TIMEOUT_S", 0.05)
    search(tmp_path, few())
    more = few(trials=StageTrials(structural=1, modular=0))
    holder: list[sqlite3.Connection] = []

    class Locking(stub.StubScorer):
        def score(self, *args, **options):  # type: ignore[no-untyped-def]
            if len(self.calls) == 1:
                holder.append(locked(RunFolder(folder).study))
                threading.Timer(1.0, holder[0].close).start()
            return super().score(*args, **options)

    folder = tmp_path / "other"
    with caplog.at_level(logging.WARNING, "smnas"):
        search(folder, more, Locking())
    assert [c.score for c in read_candidates(folder, more)] == [c.score for c in read_candidates(tmp_path, more)]
    assert f"waiting for {RunFolder(folder).study}, which another program has locked" in caplog.text


def test_a_study_that_stays_locked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smnas.search.study.storage._BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("smnas.search.study.storage._PATIENCE_S", 0.2)
    search(tmp_path, few())
    with closing(locked(RunFolder(tmp_path).study)), pytest.raises(RunFolderError, match="another program holds"):
        search(tmp_path, few(trials=StageTrials(structural=1, modular=0)))


def test_a_read_only_folder_is_read_with_what_only_its_log_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    search(first, few())
    expected = read_candidates(first, few())
    with closing(sqlite3.connect(RunFolder(first).study, isolation_level=None)) as killed:
        killed.execute("UPDATE trial_values SET value = 0.75 WHERE objective = 0")
        archive = shutil.copytree(first, tmp_path / "archive")  # with its log, as a killed search leaves it
    (archive / "study.db-shm").unlink(missing_ok=True)
    for path in archive.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    archive.chmod(0o555)
    there = sorted(archive.rglob("*"))
    writable = os.access

    def access(path: Path, mode: int) -> bool:  # for root, modes forbid nothing
        return not Path(path).is_relative_to(archive) and writable(path, mode)

    monkeypatch.setattr("smnas.search.study.storage.os.access", access)
    assert [c.score for c in read_candidates(archive, few())] == [0.75] * len(expected)
    scorer = stub.StubScorer()
    search(tmp_path / "second", few(warm_start=(str(archive),)), scorer)
    assert len(scorer.calls) == 1, "the archive's training runs are not made again"
    assert sorted(archive.rglob("*")) == there


def test_a_disk_that_fills_up_ends_the_search_in_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = few(trials=StageTrials(structural=4, modular=0))
    whole, full = tmp_path / "whole", tmp_path / "full"
    search(whole, more)
    pages = RunFolder(whole).study.stat().st_size // 4096
    connected = storage._connected

    def on_a_full_disk(file: Path, *, to_write: bool) -> sqlite3.Connection:
        connection = connected(file, to_write=to_write)
        connection.execute(f"PRAGMA max_page_count = {pages - 2}")
        return connection

    first, second = stub.StubScorer(), stub.StubScorer()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_connected", on_a_full_disk)
        with pytest.raises(OSError, match="No space left on device") as caught:
            search(full, more, first)
        assert caught.value.filename == str(RunFolder(full).study)
        app = typer.Typer()
        app.command()(lambda: search(full, more) and None)
        capsys.readouterr()
        assert run(app, "smnas-search", []) == 1
        assert capsys.readouterr().err == (
            f"error: a file or folder must be usable, but {RunFolder(full).study} is not: No space left on device; "
            "the same command resumes where it stopped\n"
        )
    stored = sum(c.state == "complete" for c in read_candidates(full, more))
    assert 0 < stored < len(read_candidates(whole, more))
    search(full, more, second)
    assert len(second.calls) == len(read_candidates(whole, more)) - stored, "what is stored is not scored again"
    assert read_candidates(full, more) == read_candidates(whole, more)
