"""``smnas train``: one architecture from scratch."""

from pathlib import Path
from typing import Annotated

import typer

from smnas.cli.console import Output
from smnas.cli.metrics import show_metrics
from smnas.cli.options import ArchOption, DataOption, JsonOption, QuietOption, SeedOption, examples
from smnas.cli.progress import TrainingSteps
from smnas.cli.training_device import training_device

__all__ = ["EXAMPLES", "train"]

_ARCH = "basicblock_16_1-21-21+fpn_2-4_48+rpn+rcnn_128+128x128"
EXAMPLES = examples(
    f"smnas train --arch {_ARCH} --data my-pictures --epochs 20 --out my-model",
    f"smnas-train --arch {_ARCH} --data my-pictures --recipe nano --batch-size 8 --seed 1 --out my-model",
)


def train(
    arch: ArchOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where checkpoint and curve go.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data. Default: the recipe's.")] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="Training recipe: nano, small or sm-nas.")] = "nano",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures per step. Default: the recipe's.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train one architecture from scratch.

    Trains on the data's training pictures, on a GPU where there is one, and evaluates on its validation pictures.
    --out holds checkpoint.pt, curve.jsonl and metrics.json. Interrupted, the same command resumes at the last finished
    epoch and gives what an uninterrupted run gives.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        from smnas.space.architecture import Architecture
        from smnas.training.recipe import load_recipe

        architecture = Architecture.parse(arch)
        settings = load_recipe(recipe).with_(epochs=epochs, batch_size=batch_size)

        from smnas.data.coco import CocoFolder
        from smnas.models.build import BuildError, buildable
        from smnas.scoring.trained_ap import TrainedAP

        if (reason := buildable(architecture)) is not None:
            raise BuildError(reason)
        folder = CocoFolder(data)
        device = training_device()
        output.note(f"training on {device}: {len(folder.split('train'))} pictures, {settings.epochs} epochs")
        with TrainingSteps(output) as steps:
            score = TrainedAP(folder, settings, device).score(
                architecture, seed=seed, epochs=settings.epochs, out_dir=out, on_progress=steps.at
            )
        output.result(
            {
                "architecture": arch,
                "checkpoint": score.checkpoint,
                "epochs": score.epochs,
                "seconds": score.seconds,
                "metrics": score.metrics,
            },
            lambda console: show_metrics(console, score.metrics),
        )
