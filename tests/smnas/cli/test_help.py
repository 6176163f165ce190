"""Every command explains itself, with examples that parse, and does so at once."""

import re
import subprocess
import sys
import time

import pytest
import typer.main

from smnas.cli import main as cli
from smnas.cli.main import COMMANDS, application
from smnas.cli.terminal.exit_codes import run


def _examples(name: str) -> list[list[str]]:
    """The arguments of each example in a command's help."""
    lines = [line.removeprefix("$ ").split() for line in COMMANDS[name][1].split("\n\n") if line.startswith("$ ")]
    assert all(words[0] in (f"smnas-{name}", "smnas") for words in lines)
    return [words[1:] if words[0] == f"smnas-{name}" else words[2:] for words in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_the_command_and_shows_two_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(application(name), f"smnas-{name}", ["--help"]) == 0
    text = capsys.readouterr().out
    assert len((COMMANDS[name][0].__doc__ or "").split()) >= 20
    assert text.count("$ smnas") >= 2
    assert "--json" in text
    assert "--quiet" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name: str) -> None:
    command = typer.main.get_command(application(name))
    undocumented = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
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


def test_help_answers_at_once_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, smnas.cli.main; "
        "print([m for m in ('torch', 'torchvision', 'optuna', 'onnx', 'onnxruntime', 'plotly') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "smnas.cli.main", "search", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert time.monotonic() - started < 5  # 0.4 s on an idle machine; a busy one is given room
