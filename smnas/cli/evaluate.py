"""``smnas eval``: the 12 COCO numbers of a model file."""

from typing import TYPE_CHECKING, Annotated

import typer

from profiler.errors import UserError
from smnas.cli.console import Output
from smnas.cli.metrics import show_metrics
from smnas.cli.model_file import ModelOption, model_file
from smnas.cli.options import DataOption, JsonOption, QuietOption, examples
from smnas.cli.progress import Steps
from smnas.cli.training_device import training_device

if TYPE_CHECKING:
    from smnas.data.coco import CocoFolder
    from smnas.deploy.runtime import Model

__all__ = ["EXAMPLES", "evaluate"]

EXAMPLES = examples(
    "smnas eval --model my-model/checkpoint.pt --data my-pictures",
    "smnas-eval --model my-run --data my-pictures --batch 16 --json",
)


def evaluate(
    model: ModelOption,
    data: DataOption,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per run.")] = 8,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Evaluate a model file on the validation pictures.

    The model may be a checkpoint or an exported ONNX file; the file is run as it is, so the numbers of an exported file
    are those of what will be deployed. Prints the 12 numbers of the COCO evaluation, computed by pycocotools.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        from smnas.data.coco import CocoFolder
        from smnas.deploy.runtime import load_model
        from smnas.evaluation.predict import evaluate as evaluate_model

        file = model_file(model)
        detector = load_model(file, device=training_device())
        folder = CocoFolder(data)
        if (detector.classes, detector.category_ids) != (folder.classes, folder.category_ids):
            raise UserError(
                f"the data must have the model's categories, {_categories(detector)}, but got {_categories(folder)}"
            )
        with Steps(output, "evaluating") as steps:
            metrics = evaluate_model(
                detector, folder.split("val"), *detector.input_size, batch, on_progress=steps.at
            ).as_dict()
        output.result(
            {"model": file, "data": data, "pictures": len(folder.split("val")), "metrics": metrics},
            lambda console: show_metrics(console, metrics),
        )


def _categories(holder: "Model | CocoFolder") -> str:
    pairs = zip(holder.category_ids, holder.classes, strict=True)
    return ", ".join(f"{number} {name}" for number, name in pairs)
