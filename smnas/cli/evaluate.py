"""``smnas eval``: the 12 COCO metrics of a model file."""

from typing import Annotated

import typer

from smnas.cli.metrics import show_metrics
from smnas.cli.terminal.console import Output
from smnas.cli.terminal.options import (
    DataOption,
    DropBadBoxesOption,
    DropBadImagesOption,
    JsonOption,
    ModelOption,
    QuietOption,
    examples,
)
from smnas.cli.terminal.progress import PhaseSteps

__all__ = ["EXAMPLES", "evaluate"]

EXAMPLES = examples(
    "smnas eval --model my-model/checkpoint.pt --data my-images",
    "smnas-eval --model my-run --data my-images --batch 16 --json",
)


def evaluate(
    model: ModelOption,
    data: DataOption,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images per call. Default: 8, or the whole batches of an exported file.", show_default=False
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Runs an ONNX file: onnxruntime (the default) or openvino."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Of OpenVINO: cpu, gpu or npu.")] = None,
    drop_bad_boxes: DropBadBoxesOption = False,
    drop_bad_images: DropBadImagesOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Evaluate a model file on the validation images.

    The model may be a checkpoint, an exported ONNX file or an engine on its GPU. The file itself is run, so the metrics
    of an exported file are those of the deployed detector. Prints the 12 COCO metrics, computed by pycocotools.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        from smnas import api

        with PhaseSteps(output) as steps:
            found = api.evaluate(
                model,
                data,
                batch=batch,
                runtime=runtime,
                device=device,
                drop_bad_boxes=drop_bad_boxes,
                drop_bad_images=drop_bad_images,
                on_progress=steps.step,
            )
        metrics = found.metrics.as_dict()
        output.result(
            {"model": found.model, "data": data, "images": found.images, "metrics": metrics},
            lambda console: show_metrics(console, metrics),
        )
