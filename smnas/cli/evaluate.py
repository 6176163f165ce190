"""``smnas eval``: the 12 COCO numbers of a model file."""

from typing import Annotated

import typer

from smnas.cli.data_folder import open_data
from smnas.cli.metrics import show_metrics
from smnas.cli.terminal.console import Output
from smnas.cli.terminal.options import DataOption, DropBadBoxesOption, JsonOption, QuietOption, examples
from smnas.cli.terminal.progress import Steps
from smnas.inference.model_file import ModelOption, model_file
from smnas.training.device import training_device

__all__ = ["EXAMPLES", "evaluate"]

EXAMPLES = examples(
    "smnas eval --model my-model/checkpoint.pt --data my-images",
    "smnas-eval --model my-run --data my-images --batch 16 --json",
)


_BATCH = 8


def evaluate(
    model: ModelOption,
    data: DataOption,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images per call. Default: 8, or the whole batches of an exported file.", show_default=False
        ),
    ] = None,
    drop_bad_boxes: DropBadBoxesOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Evaluate a model file on the validation images.

    The model may be a checkpoint, an exported ONNX file or an engine on its GPU; the file is run as it is, so the
    numbers of an exported file are those of what will be deployed. Prints the 12 numbers of the COCO evaluation,
    computed by pycocotools.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        from smnas.deploy.accuracy import evaluate_model
        from smnas.inference.runtime import load_model

        file = model_file(model)
        detector = load_model(file, device=training_device())
        split = open_data(data, output, drop_bad_boxes=drop_bad_boxes).split("val")
        with Steps(output, "evaluating") as steps:
            own = detector.metadata.batch
            metrics = evaluate_model(detector, split, batch or own * max(1, _BATCH // own), steps.at).as_dict()
        output.result(
            {"model": file, "data": data, "images": len(split), "metrics": metrics},
            lambda console: show_metrics(console, metrics),
        )
