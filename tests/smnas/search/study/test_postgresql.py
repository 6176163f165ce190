"""A study in PostgreSQL: that of a file, whoever dies on the way, and held by one search at a time."""

import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from smnas.report.run_folder import read_run_folder
from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.run import run_search
from smnas.search.study import storage
from smnas.search.study.candidate import Candidate
from smnas.search.study.optuna_study import Study, read_candidates
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import RunFolderError, SearchSettings, StageTrials, read_settings
from smnas.space.preset import load_space

psycopg = pytest.importorskip("psycopg", reason="needs psycopg: pip install 'smnas[postgresql]'")

STAND_INS = next(folder for folder in Path(__file__).parents if folder.name == "tests") / "stand_ins"
NANO = load_space("nano")


@pytest.fixture(scope="module")
def scripts() -> tuple[ModuleType, ModuleType]:
    """``search_stub`` and ``search_database_script``, which import each other as worker processes do."""
    return importlib.import_module("search_stub"), importlib.import_module("search_database_script")


def _server_programs() -> Path | None:
    """The folder of ``initdb``, which Debian keeps off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[4]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A server of its own, on a free port of the loopback, with this test's files only."""
    programs = _server_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="smnas-postgresql-"))
    run: list[str] = []
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as; any user who owns the folder will do
        shutil.chown(folder, "nobody", "nogroup")
        run = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, options = folder / "data", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*run, str(programs / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w"]
    try:
        initialize = [*run, str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "smnas", "--no-sync"]
        subprocess.run(initialize, check=True, capture_output=True, cwd="/")
        subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=60)
        yield f"postgresql://smnas@127.0.0.1:{port}/postgres"
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def search(folder: Path, settings: SearchSettings, stub: ModuleType, **scorer: object) -> None:
    pool = InProcess(stub.StubScorer(**scorer))
    run_search(SearchContext(folder, settings, NANO, stub.StubLatency()), scorers=pool, complexity=stub.complexity)


def trials(folder: Path) -> list[Candidate]:
    return list(read_candidates(folder, read_settings(folder)))


@pytest.mark.slow
def test_a_study_in_postgresql_is_that_of_a_file(
    tmp_path: Path, postgresql: str, scripts: tuple[ModuleType, ModuleType]
) -> None:
    stub, _ = scripts
    few = StageTrials(structural=3, modular=2)
    search(tmp_path / "file", stub.settings(trials=few), stub)
    settings = stub.settings(trials=few, storage=postgresql, study="smnas-test")
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", settings, stub, raises={4: KeyboardInterrupt()})
    assert "running" in {c.state for c in trials(tmp_path / "run")}
    search(tmp_path / "run", settings, stub)
    assert not (tmp_path / "run" / "study.db").exists()
    assert trials(tmp_path / "run") == trials(tmp_path / "file")
    assert len(read_run_folder(tmp_path / "run").trials) == len(trials(tmp_path / "file"))


def test_a_study_is_held_by_one_search_wherever_its_folder_is(
    tmp_path: Path, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_LOCK_TIMEOUT_S", 0.3)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with Study(tmp_path / "here", postgresql, "held"):
        with pytest.raises(RunFolderError, match="another process holds held in postgresql"):
            Study(tmp_path / "there", postgresql, "held")
        Study(tmp_path / "there", postgresql, "another").close()
    Study(tmp_path / "there", postgresql, "held").close()


def finished(url: str) -> dict[int, tuple[object, ...]]:
    """Number -> state, end and values of every finished trial, by SQL of this test's own; a number that is there twice
    is an error."""
    query = (
        "select number, state, datetime_complete, array(select value from trial_values v where v.trial_id = t.trial_id"
        " order by objective) from trials t join studies using (study_id)"
        " where study_name = 'four-workers' and state in ('COMPLETE', 'FAIL', 'PRUNED')"
    )
    with psycopg.connect(url) as connection:
        try:
            rows = connection.execute(query).fetchall()
        except psycopg.errors.UndefinedTable:
            return {}
    assert len({number for number, *_ in rows}) == len(rows)
    return {number: tuple(facts) for number, *facts in rows}


@pytest.mark.slow
def test_four_workers_lose_and_repeat_no_trial(
    tmp_path: Path, postgresql: str, scripts: tuple[ModuleType, ModuleType]
) -> None:
    stub, script = scripts
    command = [sys.executable, str(STAND_INS / "search_database_script.py"), str(tmp_path / "run"), postgresql]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            until = time.monotonic() + 600
            while len(finished(postgresql)) < 10:
                assert process.poll() is None, process.communicate()[1].decode()
                assert time.monotonic() < until
                time.sleep(0.1)
        finally:
            process.kill()
    before = finished(postgresql)
    assert len(before) < 40, "the kill must hit a search that runs"
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    after = finished(postgresql)
    assert sorted(after) == list(range(len(after)))
    assert {number: after[number] for number in before} == before

    found = trials(tmp_path / "run")
    trained = [c for c in found if c.state == "complete"]
    assert len(trained) == 41
    assert set(Counter((c.architecture, c.seed, c.epochs) for c in trained).values()) == {1}
    search(tmp_path / "alone", script.settings(None), stub)
    assert found == trials(tmp_path / "alone"), "one process and a file find the same"

    folders = [RunFolder(tmp_path / "run").training(c.architecture, c.seed, c.epochs) for c in trained]
    ended = [(folder / "ended").read_text().split() for folder in folders]
    began = [(folder / "began").read_text().split() for folder in folders]
    assert len({process for row in ended for process in row}) >= 8, "four workers before the kill, four after it"
    # Only what ran at the kill, one score a worker, was begun again; or where a worker was killed itself.
    killed = sum(stub.noise("kill", c.architecture) < script.database_scorer.KILLED for c in trained)
    assert killed >= 2
    assert sum(map(len, ended)) <= len(trained) + 4
    assert sum(map(len, began)) <= len(trained) + killed + 4
