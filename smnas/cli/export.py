"""``smnas export``: a trained checkpoint to ONNX."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smnas.cli.console import Output, show_facts
from smnas.cli.model_file import ModelOption, model_file
from smnas.cli.options import JsonOption, PrecisionOption, QuietOption, examples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXAMPLES", "export"]

_PICTURES_COMPARED = 16
EXAMPLES = examples(
    "smnas export --model my-model/checkpoint.pt --out my-model/model.onnx",
    "smnas-export --model my-model/checkpoint.pt --out model.onnx --data my-pictures --json",
)


def export(
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The ONNX file to write.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Compare on this data's pictures. Default: generated shapes."),
    ] = None,
    precision: PrecisionOption = "fp32",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export a trained checkpoint to one ONNX file.

    From a picture on the canvas (uint8) to boxes, scores and labels after non-maximum suppression. Class names, input
    size and preprocessing facts are in the file's metadata. The file is run in ONNX Runtime and compared with the
    checkpoint's own outputs; a difference fails the export.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        from smnas.deploy.export import export_detector

        file = model_file(model, prefer="checkpoint")
        pictures = [] if data is None else _some_pictures(data)
        with output.working(f"exporting {file} and comparing what both find"):
            report = export_detector(file, out, precision=precision, verify_images=pictures)
        output.result(
            report,
            lambda console: show_facts(
                console,
                [
                    ("model", report.path),
                    ("size", f"{report.size_bytes / 2**20:.1f} MiB"),
                    ("architecture", report.metadata.architecture),
                    ("input", f"{report.metadata.input_width}x{report.metadata.input_height}"),
                    ("classes", ", ".join(report.metadata.classes)),
                    ("agreement", report.agreement),
                ],
            ),
        )


def _some_pictures(data: Path) -> "list[NDArray[np.uint8]]":
    from smnas.data.coco import CocoFolder

    split = CocoFolder(data).split("val")
    return [split.image(index) for index in range(min(len(split), _PICTURES_COMPARED))]
