"""Options shared by several commands, and commands that take their options as one value.

The help of an option is written once: here, or as an argument's description in :mod:`smnas.api`.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from profiler.errors import UserError
from profiler.timing import DEFAULT_ROUNDS
from smnas.training.device import cpu_cores

__all__ = [
    "ArchOption",
    "BackendOption",
    "BatchOption",
    "ClassesOption",
    "DataOption",
    "DropBadBoxesOption",
    "DropBadImagesOption",
    "JsonOption",
    "MeasuringOptions",
    "ModelOption",
    "OutputOptions",
    "PresetOption",
    "PretrainedOption",
    "QuietOption",
    "SeedOption",
    "TestDataOption",
    "described",
    "examples",
    "require_cores",
    "single_options",
]


def require_cores(threads: int) -> int:
    """Refuse more threads than cores: they wait for each other, and a slow measurement is worth nothing."""
    if threads > (cores := cpu_cores()):
        raise UserError(f"--threads must be at most the cores that this process may use, {cores}, but got {threads}")
    return threads


JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, all else on standard error.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result and errors; no progress, no notes.")]
ArchOption = Annotated[
    str, typer.Option("--arch", metavar="ARCH", help="Architecture string, see `smnas space --sample 3`.")
]
PresetOption = Annotated[str, typer.Option(metavar="NAME", help="Search space: nano, small, paper or a .toml file.")]
DataOption = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="COCO-format folder: train/, val/, annotations/instances_*.json.")
]
DropBadBoxesOption = Annotated[
    bool,
    typer.Option("--drop-bad-boxes", help="Leave out boxes without a size or outside their image, as COCO's own."),
]
DropBadImagesOption = Annotated[
    bool,
    typer.Option(
        "--drop-bad-images", help="Leave out images that are missing, damaged or of another size than annotated."
    ),
]
TestDataOption = Annotated[Path | None, typer.Option("--test-data", metavar="DIR")]
PretrainedOption = Annotated[
    str | None,
    typer.Option(
        metavar="WEIGHTS",
        help="Weights to start from: imagenet, a state_dict file or a checkpoint, or the folder of a training run or a "
        "search.",
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Runs the network: onnxruntime (or -cuda, -tensorrt), openvino, litert, eager, compile, tensorrt(-rtx).",
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Images per run when latency is measured.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed.")]
ClassesOption = Annotated[int, typer.Option(min=1, help="Object classes of the detectors.")]
ModelOption = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        metavar="FILE",
        help="Checkpoint, ONNX file or engine; or the folder of a search (the recommended detector) or a training run.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of every command."""

    as_json: JsonOption = False
    quiet: QuietOption = False

    def values(self) -> dict[str, Any]:
        """Given values of the other options, by their names in :mod:`smnas.api`."""
        output = ("as_json", "quiet")
        return {name: value for name, value in vars(self).items() if name not in output and value is not None}


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions(OutputOptions):
    """Options of commands that measure latency."""

    device: Annotated[str, typer.Option("--device", "--gpu", metavar="NAME")] = "local"
    backend: BackendOption = "onnxruntime"
    precision: Annotated[str, typer.Option(metavar="NAME")] = "fp32"
    table: Annotated[Path | None, typer.Option("--table", metavar="FILE")] = None
    time_limit: Annotated[
        str | None,
        typer.Option("--time-limit", "--budget", metavar="TIME", help="As in 10m or 8h: stop in time, to be resumed."),
    ] = None
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rounds of each measurement, apart in time: interference that stays for seconds does not reach the "
            "latency. 1: a single burst of samples.",
        ),
    ] = DEFAULT_ROUNDS
    seed: SeedOption = 0


def single_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command that takes a dataclass of options into one with a parameter for each option, as typer needs."""
    first = next(iter(get_type_hints(command).values()))
    if not (isinstance(first, type) and is_dataclass(first)):
        return command

    @wraps(command)
    def run(**values: Any) -> None:
        command(first(**values))

    run.__annotations__ = {}
    run.__signature__ = inspect.Signature(list(_parameters(first, command.__name__)))  # type: ignore[attr-defined]
    return run


def described(function: str) -> dict[str, str]:
    """The descriptions of the arguments of a function of :mod:`smnas.api`, as help of the options of these names."""
    from smnas import api

    arguments = (inspect.getdoc(getattr(api, function)) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    texts = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE))

    def option(quoted: re.Match[str]) -> str:
        return f"--{quoted[1].replace('_', '-')}" if quoted[1] in texts else quoted[1]

    return {name: re.sub("``(.+?)``", option, " ".join(text.split())) for name, text in texts.items()}


def _parameters(options: Any, function: str) -> Iterator[inspect.Parameter]:
    """The command's own options first, then those of shared groups."""
    texts = described(function)
    hints, defaults = get_type_hints(options, include_extras=True), {one.name: one.default for one in fields(options)}
    for group in options.__mro__:
        for name in inspect.get_annotations(group):
            default = inspect.Parameter.empty if defaults[name] is MISSING else defaults[name]
            kind, option = get_args(hints[name])
            option = copy(option)  # of a shared group, whose help differs between commands
            option.help = option.help or texts.get(name)
            annotation: Any = Annotated[kind, option]
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def examples(*lines: str) -> str:
    """Closing part of a command's help: runnable examples, one a line."""
    return "\n\n".join(["Examples:", *(f"$ {line}" for line in lines)])
