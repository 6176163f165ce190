"""Options that several commands share, each with its help written once."""

from pathlib import Path
from typing import Annotated

import typer

from profiler.errors import UserError
from smnas.training.device import cpu_cores

__all__ = [
    "ArchOption",
    "BackendOption",
    "BatchOption",
    "DataOption",
    "DeviceOption",
    "DropBadBoxesOption",
    "JsonOption",
    "PrecisionOption",
    "PresetOption",
    "QuietOption",
    "SeedOption",
    "TableOption",
    "ThreadsOption",
    "examples",
]


def _require_cores(threads: int) -> int:
    """More threads than cores wait for each other: a measurement takes minutes, and is worth nothing."""
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
DeviceOption = Annotated[
    str, typer.Option("--gpu", metavar="NAME", help="Device the latency is for: local, cpu, or a GPU as in v100, h200.")
]
BackendOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What runs the network: onnxruntime (also -cuda, -tensorrt), eager, compile, tensorrt or tensorrt_rtx.",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="Number format of the network: fp32, fp16, bf16 or int8, as the backend has it."),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Images per run when latency is measured.")]
ThreadsOption = Annotated[
    int, typer.Option(min=1, callback=_require_cores, help="CPU threads that a measured run may use.")
]
TableOption = Annotated[
    Path | None, typer.Option("--table", metavar="FILE", help="Latency table (SQLite), made if it is not there.")
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Start of every random number.")]


def examples(*lines: str) -> str:
    """The closing part of a command's help: one example a line, each a command that can be typed as it is."""
    return "\n\n".join(["Examples:", *(f"$ {line}" for line in lines)])
