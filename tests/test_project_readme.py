"""The documentation says what is there: commands, folders, and code that runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from smnas.cli.main import COMMANDS, application
from smnas.space.architecture import Architecture
from smnas.space.preset import preset_names

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _commands() -> list[list[str]]:
    """Every ``smnas ...`` line of the README's shell examples, as the words behind ``smnas``."""
    found = []
    for block in _blocks("bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            program = words[0].rsplit("/", 1)[-1]
            if program == "smnas":
                found.append(words[1:])
            elif program.startswith("smnas-"):
                found.append([program.removeprefix("smnas-"), *words[1:]])
    return found


def test_every_command_is_in_the_table_and_has_an_example() -> None:
    table = re.findall(r"^\| `smnas (\w+)` \|", README, re.MULTILINE)
    assert table == list(COMMANDS)
    assert {words[0] for words in _commands()} == set(COMMANDS)


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_example_parses(words: list[str]) -> None:
    name, *arguments = words
    typer.main.get_command(application(name)).make_context(name, arguments)


@pytest.mark.parametrize("code", _blocks("python"))
def test_code_runs(code: str) -> None:
    assert len(code.splitlines()) <= 14
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_architecture_strings_are_canonical() -> None:
    strings = re.findall(r"\b(?:basicblock|bottleneck|mobilenetv2|resnext)_\S+?\+\d+x\d+", README)
    assert len(set(strings)) >= 3
    for text in strings:
        assert str(Architecture.parse(text)) == text


def test_every_preset_is_named() -> None:
    assert [name for name in preset_names() if f"`{name}`" not in README] == []


def test_every_folder_is_explained() -> None:
    tops = ["kernels", "profiler", "smnas", "tests", "benchmarks"]
    inner = [f"smnas/{path.name}" for path in (REPOSITORY / "smnas").iterdir() if (path / "__init__.py").is_file()]
    assert [name for name in [*tops, *inner] if f"| `{name}/` |" not in README] == []


def test_every_make_target_that_the_documents_name_exists() -> None:
    contributing = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README + contributing, re.MULTILINE))
    assert named <= targets
    assert {"quickstart", "test", "lint", "types", "contract", "clean"} <= targets
    gate = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert set(re.findall(r"^make ([a-z]+)", gate, re.MULTILINE)) == {"test", "lint", "types", "contract"}
