"""``smnas table``: no device is looked for, mistakes are one line, and ``smnas profile --merge ...`` is the same."""

import csv
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.table.schema import MIGRATIONS
from smnas.cli import main as cli
from smnas.cli.main import application
from smnas.cli.table import as_table_command
from smnas.cli.terminal.exit_codes import run

CPU = Target("some CPU", "onnxruntime", "1.0")
GPU = Target("NVIDIA H200", "onnxruntime", "1.0")


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(application("table"), "smnas-table", [str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _document(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    code, out, err = _run(capsys, *words, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def _refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code, out, err = _run(capsys, *words)
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    return err


def _table(path: Path, *latencies: tuple[str, float], target: Target = CPU) -> Path:
    with LatencyTable(path) as table:
        for key, ms in latencies:
            table.add(Row(key=key, name=f"block {key}", target=target, median_ms=ms, low_ms=ms, high_ms=ms))
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return _table(tmp_path / "here.db", ("a", 1.0), ("b", 2.0), ("c", 3.0))


def test_merge(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = _table(tmp_path / "there.db", ("a", 0.1), target=GPU)
    words = ("merge", tmp_path / "all" / "latency.db", here, there)
    document = _document(capsys, *words)
    assert document["merged"] == [
        {"table": str(here), "rows": 3, "added": 3},
        {"table": str(there), "rows": 1, "added": 1},
    ]
    assert (document["rows"], document["current"]) == (4, 4)
    code, out, _ = _run(capsys, *words)
    assert code == 0
    assert "there.db: 0 of 1 rows are new" in out
    with LatencyTable(tmp_path / "all" / "latency.db") as table:
        assert set(table.targets()) == {CPU, GPU}


def test_diff(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = _table(tmp_path / "other.db", ("a", 2.0), ("b", 2.0), ("c", 1.5), ("d", 1.0))
    document = _document(capsys, "diff", here, other)
    assert {row["key"]: (row["verdict"], row["ratio"]) for row in document["workloads"]} == {
        "a": ("slower", 2.0),
        "b": ("equal", 1.0),
        "c": ("faster", 0.5),
        "d": ("only in the second", None),
    }
    assert document["median_ratio"] == 1.0
    assert document["counts"]["slower"] == 1
    assert document["workloads"][0]["second"]["median_ms"] == 2.0
    code, out, _ = _run(capsys, "diff", here, other)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["slower", "2.000", "1", "[1,", "1]", "2", "[2,", "2]", "block", "a"] in lines
    assert ["equal", "1"] in lines


def test_diff_of_two_devices_says_how(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = _table(tmp_path / "other.db", ("a", 0.5), target=GPU)
    code, _, err = _run(capsys, "diff", here, other)
    assert code == 0
    assert "--across device" in err
    document = _document(capsys, "diff", here, other, "--across", "device")
    assert document["workloads"][0]["verdict"] == "faster"
    assert document["workloads"][0]["second"]["target"]["device"] == "NVIDIA H200"
    assert "device, backend" in _refused(capsys, "diff", here, other, "--across", "colour")


def test_validate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document(capsys, "validate", here)
    assert (document["rows"], document["problems"]) == (3, [])
    assert "nothing is wrong" in _run(capsys, "validate", here)[1]


def test_validate_lists_every_problem_and_exits_with_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = sqlite3.connect(here)
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'measurement_never_changes'").fetchone()
    connection.execute("DROP TRIGGER measurement_never_changes")
    connection.execute("UPDATE measurement SET low_ms = 9 WHERE id = 2")
    connection.execute("UPDATE measurement SET n = 7 WHERE id = 3")
    connection.execute(sql)
    connection.commit()
    connection.close()
    code, out, err = _run(capsys, "validate", here)
    assert code == 2
    assert [line[:6] for line in out.splitlines()[-2:]] == ["row 2:", "row 3:"]
    assert err == f"error: a latency table must be whole, but {here} has 2 problems\n"
    code, out, err = _run(capsys, "validate", here, "--json")
    assert (code, len(err.splitlines())) == (2, 1)
    assert len(json.loads(out)["problems"]) == 2


def test_validate_names_rows_whose_rounds_disagree(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LatencyTable(here) as table:
        row = Row("d", "block d", CPU, median_ms=1.0, low_ms=1.0, high_ms=1.5, stop_reason="rounds_disagree")
        table.add(row)
    code, out, err = _run(capsys, "validate", here)
    assert (code, out.splitlines()[-1]) == (2, "row 4: the rounds of block d disagree")
    assert "smnas profile --refresh unsteady" in err
    assert len(err.splitlines()) == 1


def test_export(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _table(here, ("a", 1.5))
    to = tmp_path / "rows.csv"
    assert _document(capsys, "export", here, "--out", to)["rows"] == 3
    with to.open(newline="") as stream:
        assert sorted(float(row["median_ms"]) for row in csv.DictReader(stream)) == [1.5, 2.0, 3.0]
    assert _document(capsys, "export", here, "--out", to, "--superseded")["rows"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("validate",), "TABLE"),
        (("validate", "T", "--merge", "O"), "--merge"),
        (("validate", "T", "--device", "cpu"), "--device"),
        (("export", "T"), "--out"),
        (("merge", "T", "O", "--superseded"), "--superseded"),
        (("export", "T", "--out", "rows.xlsx"), ".csv, .json, .parquet"),
        (("validate", "missing.db"), "no file missing.db"),
        (("export", "missing.db", "--out", "rows.csv"), "no file missing.db"),
        (("merge", "new.db", "missing.db"), "no file missing.db"),
        (("diff", "T", "missing.db"), "no file missing.db"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes(
    words: tuple[str, ...],
    said: str,
    here: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = _table(tmp_path / "other.db", ("a", 1.0))
    places = {"T": str(here), "O": str(other)}
    assert said in _refused(capsys, *(places.get(word, word) for word in words))
    assert {path.name for path in tmp_path.iterdir()} == {"here.db", "other.db"}


def _spoil(path: Path, how: str) -> None:
    if how == "text":
        path.write_text("key,latency\n")
        return
    if how == "truncated":
        _table(path, *((f"block {number}", 1.0) for number in range(200)))
        with path.open("r+b") as stream:
            stream.truncate(path.stat().st_size // 2)
        return
    connection = sqlite3.connect(path)
    if how == "foreign":
        connection.execute("CREATE TABLE trials (id INTEGER)")
    else:
        connection.execute("PRAGMA application_id = 0x736D6C74")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()


@pytest.mark.parametrize("how", ["text", "truncated", "foreign", "newer"])
def test_a_file_that_is_no_whole_table_is_refused_by_every_task(
    how: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.db"
    _spoil(bad, how)
    before, kept = bad.read_bytes(), here.read_bytes()
    for words in (
        ("merge", here, bad),
        ("merge", bad, here),
        ("diff", here, bad),
        ("diff", bad, here),
        ("export", bad, "--out", tmp_path / "rows.csv"),
    ):
        assert "bad.db" in _refused(capsys, *words)
    code, _, err = _run(capsys, "validate", bad)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "bad.db" in err
    assert (bad.read_bytes(), here.read_bytes()) == (before, kept)
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("--table A --merge B --merge=C", "merge A B C"),
        ("--json --diff B --table A --across device", "diff A --json B --across device"),
        ("--table=A --validate", "validate A"),
        ("--table A --export rows.csv --superseded", "export A --out rows.csv --superseded"),
        ("--report p.html --table A --arch x --classes 3", "report A --out p.html --arch x --classes 3"),
        ("--merge B", "merge B"),
    ],
)
def test_as_profile_spelt_it_before(before: str, now: str) -> None:
    assert as_table_command(before.split()) == now.split()


def test_measuring_is_no_table_command() -> None:
    assert as_table_command(["--table", "A", "--preset", "nano", "--device", "cpu"]) is None


@pytest.mark.parametrize("program", ["smnas", "smnas-profile"])
def test_the_old_spelling_still_works_and_says_nothing(
    program: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--table", str(here), "--validate", "--json"]
    monkeypatch.setattr(sys, "argv", ["smnas", "profile", *words] if program == "smnas" else [program, *words])
    with pytest.raises(SystemExit, match="0"):
        cli.main() if program == "smnas" else cli.profile_main()
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"] == 3
    assert captured.err == ""


def test_no_task_loads_torch(here: Path, tmp_path: Path) -> None:
    tasks = [["merge", here, here], ["diff", here, here], ["validate", here]]
    tasks += [["export", here, "--out", tmp_path / "rows.json"]]
    code = (
        "import sys; from smnas.cli.main import application; from smnas.cli.terminal.exit_codes import run\n"
        f"for task in {[[str(word) for word in task] for task in tasks]}:\n"
        "    assert run(application('table'), 'smnas-table', [*task, '--quiet']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
