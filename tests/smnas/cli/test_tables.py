"""``smnas profile --merge, --diff, --validate, --export``: no device is looked for, and mistakes are one line."""

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
from smnas.cli.main import application
from smnas.cli.terminal.exit_codes import run

CPU = Target("some CPU", "onnxruntime", "1.0")
GPU = Target("NVIDIA H200", "onnxruntime", "1.0")


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(application("profile"), "smnas-profile", [str(word) for word in words])
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
    words = ("--table", tmp_path / "all" / "latency.db", "--merge", here, "--merge", there)
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
    document = _document(capsys, "--table", here, "--diff", other)
    assert {row["key"]: (row["verdict"], row["ratio"]) for row in document["workloads"]} == {
        "a": ("slower", 2.0),
        "b": ("equal", 1.0),
        "c": ("faster", 0.5),
        "d": ("only in the second", None),
    }
    assert document["median_ratio"] == 1.0
    assert document["counts"]["slower"] == 1
    assert document["workloads"][0]["second"]["median_ms"] == 2.0
    code, out, _ = _run(capsys, "--table", here, "--diff", other)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["slower", "2.000", "1", "[1,", "1]", "2", "[2,", "2]", "block", "a"] in lines
    assert ["equal", "1"] in lines


def test_diff_of_two_devices_says_how(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = _table(tmp_path / "other.db", ("a", 0.5), target=GPU)
    code, _, err = _run(capsys, "--table", here, "--diff", other)
    assert code == 0
    assert "--across device" in err
    document = _document(capsys, "--table", here, "--diff", other, "--across", "device")
    assert document["workloads"][0]["verdict"] == "faster"
    assert document["workloads"][0]["second"]["target"]["device"] == "NVIDIA H200"
    assert "device, backend" in _refused(capsys, "--table", here, "--diff", other, "--across", "colour")


def test_validate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document(capsys, "--table", here, "--validate")
    assert (document["rows"], document["problems"]) == (3, [])
    assert "nothing is wrong" in _run(capsys, "--table", here, "--validate")[1]


def test_validate_lists_every_problem_and_exits_with_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = sqlite3.connect(here)
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'measurement_never_changes'").fetchone()
    connection.execute("DROP TRIGGER measurement_never_changes")
    connection.execute("UPDATE measurement SET low_ms = 9 WHERE id = 2")
    connection.execute("UPDATE measurement SET n = 7 WHERE id = 3")
    connection.execute(sql)
    connection.commit()
    connection.close()
    code, out, err = _run(capsys, "--table", here, "--validate")
    assert code == 2
    assert [line[:6] for line in out.splitlines()[-2:]] == ["row 2:", "row 3:"]
    assert err == f"error: a latency table must be whole, but {here} has 2 problems\n"
    code, out, err = _run(capsys, "--table", here, "--validate", "--json")
    assert (code, len(err.splitlines())) == (2, 1)
    assert len(json.loads(out)["problems"]) == 2


def test_export(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _table(here, ("a", 1.5))
    to = tmp_path / "rows.csv"
    assert _document(capsys, "--table", here, "--export", to)["rows"] == 3
    with to.open(newline="") as stream:
        assert sorted(float(row["median_ms"]) for row in csv.DictReader(stream)) == [1.5, 2.0, 3.0]
    assert _document(capsys, "--table", here, "--export", to, "--superseded")["rows"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--validate",), "--validate needs --table FILE"),
        (("--table", "T", "--validate", "--merge", "O"), "--merge, --validate"),
        (("--table", "T", "--validate", "--gpu", "cpu"), "--validate works on tables alone"),
        (("--table", "T", "--export", "rows.csv", "--arch", "x"), "excludes --arch"),
        (("--table", "T", "--across", "device"), "--across is for --diff"),
        (("--table", "T", "--merge", "O", "--superseded"), "--superseded is for --export"),
        (("--table", "T", "--export", "rows.xlsx"), ".csv, .json, .parquet"),
        (("--table", "missing.db", "--validate"), "no file missing.db"),
        (("--table", "missing.db", "--export", "rows.csv"), "no file missing.db"),
        (("--table", "new.db", "--merge", "missing.db"), "no file missing.db"),
        (("--table", "T", "--diff", "missing.db"), "no file missing.db"),
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
        ("--table", here, "--merge", bad),
        ("--table", bad, "--merge", here),
        ("--table", here, "--diff", bad),
        ("--table", bad, "--diff", here),
        ("--table", bad, "--export", tmp_path / "rows.csv"),
    ):
        assert "bad.db" in _refused(capsys, *words)
    code, _, err = _run(capsys, "--table", bad, "--validate")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "bad.db" in err
    assert (bad.read_bytes(), here.read_bytes()) == (before, kept)
    assert not (tmp_path / "rows.csv").exists()


def test_no_task_loads_torch(here: Path, tmp_path: Path) -> None:
    tasks = [["--merge", here], ["--diff", here], ["--validate"], ["--export", tmp_path / "rows.json"]]
    code = (
        "import sys; from smnas.cli.main import application; from smnas.cli.terminal.exit_codes import run\n"
        "words = sys.argv[1:]\n"
        f"for task in {[[str(word) for word in task] for task in tasks]}:\n"
        "    assert run(application('profile'), 'smnas-profile', ['--quiet', *words, *task]) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--table", str(here)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
