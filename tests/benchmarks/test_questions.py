"""Every script starts, every kept answer says where it came from, and the list of questions is what the files say."""

import argparse
import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.common.answers import RESULTS, RETIRED, Kept, file_name, plain, write_answer
from benchmarks.common.questions import TOPICS, Question, read_questions, table

ROOT = RESULTS.parent
SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for topic in TOPICS
    for path in (ROOT / topic).rglob("*.py")
)
ANSWERS = sorted([*RESULTS.rglob("*.json"), *RETIRED.glob("*.json")])
QUESTIONS = list(read_questions())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_starts(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(name)
    if not hasattr(module, "main"):
        assert module.__doc__
        return
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    question = (module.__doc__ or "").splitlines()[0]
    assert question in capsys.readouterr().out
    assert "?" in question


def test_gpu_questions_have_functions() -> None:
    for question in gpu.QUESTIONS:
        module, _, function = question.function.rpartition(".")
        assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), function))


@pytest.mark.parametrize("path", ANSWERS, ids=lambda path: path.stem)
def test_an_answer_says_where_it_came_from(path: Path) -> None:
    kept = Kept(path)
    assert date.fromisoformat(kept.date) > date(2026, 11, 1)
    assert re.fullmatch(r"[0-9a-f]{40}", kept.values["commit"])
    assert kept.values["machine"]["cores"] >= 1
    assert kept.values["machine"]["system"].startswith("Linux")
    assert kept.values["command"]
    assert kept.values["question"]
    device = file_name("", "", "", "", kept.device)[4:]
    assert re.search(rf"-{re.escape(kept.torch.partition('+')[0])}_cu\d+-{re.escape(device)}$", path.name)
    assert kept.numbers() >= 5


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: f"{question.topic}/{question.name}")
def test_a_question_has_an_answer_in_one_line(question: Question) -> None:
    title, empty, headline, *rest = question.note.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")
    assert title.endswith("?")
    assert empty == ""
    assert 20 < len(headline) < 230
    assert not rest or rest[0] == ""
    assert headline.startswith("Open") == (not question.answers)


@pytest.mark.parametrize("question", [q for q in QUESTIONS if q.topic != "retired"], ids=lambda question: question.name)
def test_a_listed_command_still_parses(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(question.command)
    if words[0] != "python":
        assert words[0] in ("make", "smnas")
        return
    if words[-1] == "--help":
        return  # not run yet

    class ParsedError(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def stop(*arguments: object) -> None:
        parse(*arguments)  # type: ignore[call-overload]
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", words[2:] if words[1] == "-m" else words[1:])
    with pytest.raises(ParsedError):
        importlib.import_module(words[2] if words[1] == "-m" else "benchmarks.gpu").main()


def test_a_retired_question_names_the_commit_of_its_script() -> None:
    commands = [question.command for question in QUESTIONS if question.topic == "retired"]
    shown = [command.split()[2] for command in commands if command.startswith("git show ")]
    assert len(shown) >= 2
    for place in shown:
        commit, _, path = place.partition(":")
        assert re.fullmatch(r"[0-9a-f]{40}", commit)
        assert not (ROOT.parent / path).exists()


def test_readme_lists_all_questions() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").endswith("## Questions\n\n" + table())


def test_the_list_is_readable_by_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--json"])
    runpy.run_module("benchmarks", run_name="__main__")
    listed = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in listed] == [question.name for question in QUESTIONS]
    assert {"text", "headline", "machine", "date", "command"} <= listed[0].keys()


def test_an_answer_is_valid_json(tmp_path: Path) -> None:
    found = {"rows": [{"a": float("nan")}, {"a": float("inf")}], "short": 1 / 3, "path": tmp_path, "many": (1, 2)}
    write_answer(tmp_path / "topic" / "answer.json", found)
    text = (tmp_path / "topic" / "answer.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "rows": [{"a": None}, {"a": "infinite"}],
        "short": 0.3333333,
        "path": str(tmp_path),
        "many": [1, 2],
    }
    assert len(text.splitlines()) == 9
    assert plain({1: None}) == {"1": None}


def test_gpu_starts_by_its_path_from_anywhere(tmp_path: Path) -> None:
    # beside the file are folders with the names of packages
    for folder in (tmp_path, ROOT):
        command = [sys.executable, str(ROOT / "gpu.py"), "--help"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "--only" in done.stdout
