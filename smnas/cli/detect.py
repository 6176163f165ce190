"""``smnas detect``: boxes as JSON and drawn on the pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from profiler.errors import UserError
from smnas.cli.console import Output, show_table
from smnas.cli.model_file import ModelOption, model_file
from smnas.cli.options import JsonOption, QuietOption, examples
from smnas.cli.progress import Steps
from smnas.cli.training_device import training_device

if TYPE_CHECKING:
    from smnas.deploy.detect import DetectReport

__all__ = ["EXAMPLES", "detect"]

EXAMPLES = examples(
    "smnas detect --model quickstart photo.jpg",
    "smnas-detect --model my-model/model.onnx --score 0.5 --out drawn one.jpg two.png --json",
)


def detect(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Picture files, folders or patterns.")],
    model: ModelOption,
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Lowest score of a detection that is shown.")] = 0.3,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Draw the boxes on copies of the pictures here.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find objects in pictures.

    Lists the detections of every picture, best first: class, score and box (left, top, right, bottom in pixels of the
    picture). With --out they are drawn on copies of the pictures. With --json they are one document.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        from smnas.deploy.detect import detect_files, find_pictures
        from smnas.deploy.runtime import load_model

        detector = load_model(model_file(model), device=training_device())
        paths = find_pictures(images)
        with Steps(output, "pictures") as steps:
            report = detect_files(
                detector,
                paths,
                score=score,
                out_dir=out,
                on_picture=lambda result, done, total: steps.at(done, total, result.path.name),
            )
        failed = report.failed
        if len(failed) < len(paths):
            output.result(report.to_dict(), lambda console: _show(console, report, score))
    if failed:
        raise UserError(f"every picture must be readable, but {len(failed)} of {len(paths)} are not: {failed[0].error}")


def _show(console: Console, report: "DetectReport", score: float) -> None:
    rows = [
        [str(picture.path), found.name, found.score, *(round(edge) for edge in found.box)]
        for picture in report.pictures
        for found in picture.detections
    ]
    if not rows:
        console.print(f"nothing was found with a score of {score:g} or more")
    else:
        show_table(console, ["picture", "class", "score", "left", "top", "right", "bottom"], rows)
    for picture in report.pictures:
        if picture.drawn is not None:
            console.print(f"drawn: {picture.drawn}", soft_wrap=True, markup=False)
