"""``smnas export``: a trained checkpoint to an ONNX file or an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smnas.cli.terminal.console import Output, show_facts
from smnas.cli.terminal.options import DropBadBoxesOption, DropBadImagesOption, ModelOption, OutputOptions, examples

if TYPE_CHECKING:
    from smnas.deploy.export import ExportReport

__all__ = ["EXAMPLES", "ExportOptions", "export"]

EXAMPLES = examples(
    "smnas export --model my-model/checkpoint.pt --out my-model/model.onnx",
    "smnas-export --model my-model/checkpoint.pt --out model.onnx --data my-images --precision int8 --json",
    "smnas export --model my-model/checkpoint.pt --format tensorrt-rtx --compute-capability 8.9 "
    "--precision fp16 --batch 8 --data my-images --out model.engine",
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(OutputOptions):
    """Options of ``smnas export``."""

    model: ModelOption
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE")]
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR")] = None
    format: Annotated[str, typer.Option(metavar="NAME")] = "onnx"
    runtime: Annotated[str | None, typer.Option(metavar="NAME")] = None
    precision: Annotated[str, typer.Option(metavar="NAME")] = "fp32"
    batch: Annotated[int, typer.Option(min=1, metavar="N")] = 1
    compute_capability: Annotated[list[str] | None, typer.Option(metavar="X.Y")] = None
    max_ap_drop: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.01
    drop_bad_boxes: DropBadBoxesOption = False
    drop_bad_images: DropBadImagesOption = False


def export(options: ExportOptions) -> None:
    """Export a trained checkpoint to one file.

    The file takes an image on the canvas (uint8) to boxes, scores and labels after NMS. Class names, input size and
    preprocessing are in its metadata, or in the manifest beside an engine. The graph is run in --runtime and compared
    with the checkpoint's own outputs; a difference fails the export.

    With --data, AP of the exported graph and of the checkpoint are measured on the validation images; a loss above
    --max-ap-drop fails the export and leaves no file. int8 calibrates its activation ranges on 64 training images
    spread over the file.

    With --batch the file takes that many images per run; smnas eval, smnas detect and Detector pad the last run.

    tensorrt-rtx builds on a machine without a GPU, for one or more compute capabilities in one engine; tensorrt builds
    on the GPU that the engine is for.
    """
    with Output.open(as_json=options.as_json, quiet=options.quiet) as output:
        from smnas import api

        with output.working(f"exporting {options.model} and comparing what both find"):
            report = api.export(**options.values())
        output.result(report, lambda console: show_facts(console, _facts(report)))


def _facts(report: "ExportReport") -> Sequence[tuple[str, object]]:
    manifest, metadata = report.manifest, report.metadata
    engine: list[tuple[str, object]] = []
    if manifest is not None:
        engine = [
            ("backend", f"{manifest.backend} {manifest.backend_version}"),
            ("compute capability", ", ".join(manifest.compute_capabilities)),
        ]
    return [
        ("model", report.path),
        ("size", f"{report.size_bytes / 2**20:.1f} MiB"),
        *engine,
        ("architecture", metadata.architecture),
        ("input", f"{metadata.input_width}x{metadata.input_height}"),
        ("batch", metadata.batch),
        ("precision", metadata.precision),
        ("classes", ", ".join(metadata.classes)),
        (
            "agreement",
            report.agreement
            if manifest is None and metadata.precision == "fp32"
            else f"of the graph in fp32: {report.agreement}",
        ),
        *([] if report.rounding is None else [(f"in {metadata.precision}", report.rounding)]),
        *([] if report.accuracy is None else [("accuracy", report.accuracy)]),
        *(("note", note) for note in report.notes),
    ]
