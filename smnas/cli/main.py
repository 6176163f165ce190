"""Composition of the command line: every command once, as ``smnas NAME`` and as ``smnas-NAME``."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from smnas import __version__
from smnas.cli import detect, doctor, evaluate, export, profile, report, search, space, table, train
from smnas.cli.terminal.exit_codes import run
from smnas.cli.terminal.options import single_options

__all__ = [
    "COMMANDS",
    "application",
    "detect_main",
    "doctor_main",
    "eval_main",
    "export_main",
    "main",
    "profile_main",
    "report_main",
    "search_main",
    "space_main",
    "table_main",
    "train_main",
]

COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "doctor": (doctor.doctor, doctor.EXAMPLES),
    "space": (space.space, space.EXAMPLES),
    "profile": (profile.profile, profile.EXAMPLES),
    "table": (table.table, table.EXAMPLES),
    "train": (train.train, train.EXAMPLES),
    "eval": (evaluate.evaluate, evaluate.EXAMPLES),
    "search": (search.search, search.EXAMPLES),
    "export": (export.export, export.EXAMPLES),
    "detect": (detect.detect, detect.EXAMPLES),
    "report": (report.report, report.EXAMPLES),
}


def _about(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """Which object detector should I deploy on this device, for these images, within this many milliseconds?"""
    if version:
        typer.echo(f"smnas {__version__}")
        raise typer.Exit


def application(*names: str) -> typer.Typer:
    """Application of one command, or of several as subcommands of a group."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    if len(names) > 1:
        app.callback(invoke_without_command=True)(_about)
    for name in names:
        function, examples = COMMANDS[name]
        text = _paragraphs(function.__doc__ or "")
        if function is table.table:
            group = app if len(names) == 1 else typer.Typer()
            group.callback(help=text, epilog=examples)(function)
            for task, command in table.TASKS.items():
                group.command(task, help=_paragraphs(command.__doc__ or ""))(command)
            if group is not app:
                app.add_typer(group, name=name)
        else:
            app.command(name, help=text, epilog=examples)(single_options(function))
    return app


def _paragraphs(text: str) -> str:
    # typer keeps a docstring's line breaks, made for the source's width instead of the terminal's.
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _run_one(name: str) -> None:
    arguments = sys.argv[1:]
    if name == "profile" and (tasks := table.as_table_command(arguments)):
        name, arguments = "table", tasks
    sys.exit(run(application(name), f"smnas-{name}", arguments))


def main() -> None:
    """``smnas``."""
    arguments = sys.argv[1:] or ["--help"]
    if arguments[0] == "profile" and (tasks := table.as_table_command(arguments[1:])):
        arguments = ["table", *tasks]
    sys.exit(run(application(*COMMANDS), "smnas", arguments))


# Entry points of the scripts `smnas-NAME`.
doctor_main = partial(_run_one, "doctor")
space_main = partial(_run_one, "space")
profile_main = partial(_run_one, "profile")
table_main = partial(_run_one, "table")
train_main = partial(_run_one, "train")
eval_main = partial(_run_one, "eval")
search_main = partial(_run_one, "search")
export_main = partial(_run_one, "export")
detect_main = partial(_run_one, "detect")
report_main = partial(_run_one, "report")

if __name__ == "__main__":
    main()
