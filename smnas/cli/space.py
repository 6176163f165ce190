"""``smnas space``: a preset's size, choices and samples, and the parts of one architecture."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from profiler.errors import UserError
from smnas.cli.terminal.console import Output, show_facts, show_lines, show_table
from smnas.cli.terminal.options import JsonOption, PresetOption, QuietOption, SeedOption, examples

if TYPE_CHECKING:
    from smnas.space.preset import Space

__all__ = ["EXAMPLES", "space"]

EXAMPLES = examples(
    "smnas space --preset paper",
    "smnas space --preset nano --sample 5 --seed 1",
    "smnas space --preset nano --toml",
    "smnas space --describe bottleneck_64_111-2111-211111-211+fpn_2-6_256+rpn+rcnn_1024+1333x800 --classes 80",
)


def space(
    preset: PresetOption = "nano",
    sample: Annotated[int, typer.Option(min=0, help="Print this many random architectures of the preset.")] = 0,
    seed: SeedOption = 0,
    describe: Annotated[
        str | None, typer.Option(metavar="ARCH", help="Parameters, FLOPs, layers and workloads of one architecture.")
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="Object classes of the described detector.")] = 80,
    toml: Annotated[bool, typer.Option(help="Print the space as TOML, to edit and give to --preset.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Inspect a search space.

    By default: how many architectures a preset holds, and its choices. With --sample: random architectures of its
    structural space, as strings that every other command takes. With --toml: the space as a file, to edit and pass to
    --preset. With --describe: the parts of one architecture, counted on the detector itself.
    """
    if describe is not None and sample:
        raise UserError("--sample and --describe exclude each other, but got both")
    with Output.open(as_json=as_json, quiet=quiet) as output:
        if describe is not None:
            document = _describe(describe, classes)
            output.result(document, lambda console: _show_description(console, document))
            return
        from smnas.space.preset import load_space, space_toml

        loaded = load_space(preset)
        if toml:
            text = space_toml(loaded)
            output.result({"toml": text}, lambda console: console.print(text, end="", soft_wrap=True, markup=False))
            return
        if sample:
            names = _sample(loaded, sample, seed)
            document = {"preset": preset, "seed": seed, "architectures": names}
            output.result(document, lambda console: show_lines(console, *names))
            return
        overview = _overview(loaded)
        output.result(overview, lambda console: _show_overview(console, overview))


def _sample(space: "Space", count: int, seed: int) -> list[str]:
    import numpy as np

    from smnas.space.sampling import sample_structural

    rng = np.random.default_rng(seed)
    return [str(sample_structural(space, rng)) for _ in range(count)]


def _overview(space: "Space") -> dict[str, Any]:
    document: dict[str, Any] = space.model_dump(mode="json")
    return {
        "preset": document.pop("name"),
        **document,
        "structural_size": space.structural_size(),
        "modular_size": space.modular_size(),
    }


def _show_overview(console: Console, document: dict[str, Any]) -> None:
    show_facts(
        console,
        [
            ("preset", document["preset"]),
            ("", document["description"]),
            ("baseline", document["baseline"]),
            ("stage 1, structural", f"{document['structural_size']:,} architectures"),
            *((f"  {name}", ", ".join(choices)) for name, choices in document["structural"].items()),
            ("stage 2, modular", f"{document['modular_size']:,} architectures with a pyramid and an RCNN head"),
            *((f"  {name.replace('_', ' ')}", _bound(value)) for name, value in document["modular"].items()),
        ],
    )


def _bound(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_bound(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _describe(text: str, classes: int) -> dict[str, Any]:
    from smnas.space.architecture import Architecture

    architecture = Architecture.parse(text)
    from torch import nn

    from smnas.latency.workloads import detector_workloads

    workloads = detector_workloads(architecture, classes)
    rows = [
        {
            "name": workload.name,
            "parameters": workload.parameters,
            "flops": workload.flops,
            "layers": sum(isinstance(module, nn.Conv2d | nn.Linear) for module in workload.module.modules()),
            "inputs": [list(spec.shape) for spec in workload.inputs],
            "key": workload.key,
        }
        for workload in workloads
    ]
    return {
        "architecture": str(architecture),
        "id": architecture.id,
        "classes": classes,
        "parameters": sum(row["parameters"] for row in rows),
        "flops": sum(row["flops"] for row in rows),
        "layers": sum(row["layers"] for row in rows),
        "workloads": rows,
    }


def _show_description(console: Console, document: dict[str, Any]) -> None:
    show_facts(
        console,
        [
            ("architecture", document["architecture"]),
            ("id", document["id"]),
            ("classes", document["classes"]),
            ("parameters", document["parameters"]),
            ("GFLOPs", f"{document['flops'] / 1e9:.2f} (a multiply-add is 2)"),
            ("layers", f"{document['layers']} convolutions and fully connected layers"),
        ],
    )
    rows = [
        [
            row["name"],
            row["parameters"],
            row["flops"] / 1e6,
            row["layers"],
            " ".join("x".join(map(str, shape)) for shape in row["inputs"]),
        ]
        for row in document["workloads"]
    ]
    show_table(console, ["workload", "parameters", "MFLOPs", "layers", "inputs"], rows)
