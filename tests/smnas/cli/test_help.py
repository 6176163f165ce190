"""Every command explains itself, with examples that parse, and loads nothing heavy to do so."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from smnas.cli import main as cli
from smnas.cli.main import COMMANDS, application
from smnas.cli.table import TASKS
from smnas.cli.terminal.exit_codes import run


def _examples(name: str) -> list[list[str]]:
    """The arguments of each example in a command's help."""
    lines = [line.removeprefix("$ ").split() for line in COMMANDS[name][1].split("\n\n") if line.startswith("$ ")]
    assert all(words[0] in (f"smnas-{name}", "smnas") for words in lines)
    return [words[1:] if words[0] == f"smnas-{name}" else words[2:] for words in lines]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "table"])
def test_help_describes_the_command_and_shows_two_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(application(name), f"smnas-{name}", ["--help"]) == 0
    text = capsys.readouterr().out
    assert len((COMMANDS[name][0].__doc__ or "").split()) >= 20
    assert text.count("$ smnas") >= 2
    assert "--json" in text
    assert "--quiet" in text


@pytest.mark.parametrize("task", TASKS)
def test_help_of_every_table_command(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(application("table"), "smnas-table", [task, "--help"]) == 0
    text = capsys.readouterr().out
    assert len((TASKS[task].__doc__ or "").split()) >= 15
    assert "--json" in text
    assert any(words[0] == task for words in _examples("table"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name: str) -> None:
    command = typer.main.get_command(application(name))
    leaves = [command, *getattr(command, "commands", {}).values()]
    undocumented = [one.name for leaf in leaves for one in leaf.params if not getattr(one, "help", None)]
    assert undocumented == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_parses(name: str) -> None:
    command = typer.main.get_command(application(name))
    examples = _examples(name)
    assert len(examples) >= 2
    for arguments in examples:
        command.make_context(name, list(arguments))


def test_the_group_alone_lists_every_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["smnas"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\b", text)] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from smnas import __version__

    assert run(application(*COMMANDS), "smnas", ["--version"]) == 0
    assert capsys.readouterr().out == f"smnas {__version__}\n"


def test_every_command_has_an_entry_point_of_its_own() -> None:
    assert {f"{name}_main" for name in COMMANDS} | {"main", "COMMANDS", "application"} == set(cli.__all__)


@pytest.mark.slow
def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "torchvision", "optuna", "onnx", "onnxruntime", "plotly", "pycocotools")
    code = (
        "import sys, smnas, smnas.cli.main; from smnas.cli.terminal.exit_codes import run\n"
        "for name in ('search', 'profile', 'train', 'detect'):\n"
        "    assert run(smnas.cli.main.application(name), name, ['--help']) == 0\n"
        f"sys.exit(str(found) if (found := [name for name in {heavy} if name in sys.modules]) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_commands_are_skins() -> None:
    """Parse, call the library, format: no function is long, and none takes a command's options one by one."""
    folder = Path(cli.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
                assert count <= 12, f"{file.name}: {node.name} has {count} parameters"
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= 80, f"{file.name}: {node.name} has {lines} lines"
