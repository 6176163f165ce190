"""Run a command; map errors to one line and an exit code.

0 done, 1 our failure, 2 the user's mistake, 130 interrupted from the keyboard.
"""

import errno
import importlib.util
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import typer
import typer.main

import profiler
from profiler.errors import UserError, one_line
from smnas.scoring.base import ScoringFailedError

__all__ = ["OUR_FAILURE", "USER_MISTAKE", "NothingRecommendedError", "check_package_names", "run"]

OUR_FAILURE = 1
USER_MISTAKE = 2
_INTERRUPTED = 130
_RESUMABLE = frozenset({"profile", "train", "search"})
# Unusable files and folders, wherever in a command that shows. Missing ones are excluded: those that users name are
# checked where they are used, so any other is our failure.
_THE_PLACE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    }
)


class NothingRecommendedError(RuntimeError):
    """No training run succeeded, or every detector is over a limit or has an AP of 0."""


def run(app: typer.Typer, program: str, arguments: Sequence[str]) -> int:
    """Parse ``arguments``, run the command, return the exit code."""
    arguments = list(arguments)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files and classes may not be encodable for the terminal.
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        # Users cannot act on deprecations inside dependencies; -W brings them back.
        warnings.simplefilter("ignore")
    try:
        check_package_names()
        _check_kernels()
        _refuse_empty(arguments)
        return _invoke(app, program, arguments)
    except KeyboardInterrupt:
        _say(f"interrupted{_hint(program, arguments)}")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as request:
        if isinstance(request.__context__, BrokenPipeError):  # as typer's help ends on a closed pipe
            return 0
        raise
    except UserError as error:
        return _fail(f"error: {one_line(error)}", USER_MISTAKE)
    except ScoringFailedError as error:
        return _fail(f"error: the training failed: {one_line(error)}", OUR_FAILURE)
    except NothingRecommendedError as error:
        return _fail(f"error: {one_line(error)}", OUR_FAILURE)
    except OSError as error:
        if error.errno not in _THE_PLACE:
            return _internal(error)
        place = "the disk" if error.filename is None else error.filename
        line = f"error: a file or folder must be usable, but {place} is not: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # room was checked before the work: it ran out meanwhile
            return _fail(line + _hint(program, arguments), OUR_FAILURE)
        return _fail(line, USER_MISTAKE)
    except Exception as error:  # noqa: BLE001  the last handler: the rest is our failure
        return _internal(error)


def _hint(program: str, arguments: Sequence[str]) -> str:
    name = program.removeprefix("smnas-") if program != "smnas" else next(iter(arguments), "")
    return "; the same command resumes where it stopped" if name in _RESUMABLE else ""


def _open_closed_streams() -> None:
    """Open closed streams (`>&-`), or libraries would print into the next file that is opened."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123  for the whole process


def _invoke(app: typer.Typer, program: str, arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context(program, arguments) as context:
            command.invoke(context)
    except typer.Exit as request:
        return request.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # typer raises exceptions of click or of its own copy of click, depending on the version.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        place = getattr(getattr(error, "ctx", None), "command_path", program)
        return _fail(f"error: {' '.join(format_message().split())} (see {place} --help)", USER_MISTAKE)
    return 0


def check_package_names() -> None:
    """Check that ``kernels`` is this project's package, as another distribution has the same import name.

    Raises:
        UserError: a foreign ``kernels`` package shadows or replaces ours.
    """
    spec = importlib.util.find_spec("kernels")
    ours = Path(str(profiler.__file__)).resolve().parent.parent / "kernels"
    origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent
    if origin != ours or not (ours / "nms.py").is_file():
        raise UserError(
            f"the package `kernels` must be the one that smnas brings ({ours}), but got {origin}: "
            "run `pip uninstall kernels`, then install smnas again"
        )


def _check_kernels() -> None:
    """Check the choice of kernels in the environment; :class:`UserError` if it is unknown or not installed."""
    if "SMNAS_KERNELS" not in os.environ:
        return  # avoids loading torch
    from kernels.dispatch import VARIABLE, choice

    try:
        chosen = choice()
    except ValueError as error:
        raise UserError(str(error)) from error
    if chosen == "triton" and importlib.util.find_spec("triton") is None:
        raise UserError(f"{VARIABLE}=triton needs Triton, which is not installed: pip install triton")


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an empty argument, as ``--out "$OUT"`` gives for an unset variable: as a path it is the current folder."""
    for before, argument in pairwise(["the command", *arguments]):
        if argument == "" or re.fullmatch(r"--[a-z-]+=", argument):
            raise UserError(f"a value must not be empty, but got '' for {argument.removesuffix('=') or before}")


def _internal(error: Exception) -> int:
    return _fail("internal error: " + ": ".join(dict.fromkeys((type(error).__name__, one_line(error)))), OUR_FAILURE)


def _fail(line: str, code: int) -> int:
    if os.environ.get("SMNAS_TRACEBACK") == "1":
        traceback.print_exc()
    _say(line)
    return code


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        # Closed pipe or full disk: only the exit code can tell, so Python's last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
