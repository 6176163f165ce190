"""``smnas train``: one architecture, from scratch or from other weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiler.errors import UserError
from smnas.cli.metrics import show_metrics
from smnas.cli.terminal.console import Output
from smnas.cli.terminal.options import (
    DataOption,
    DropBadBoxesOption,
    DropBadImagesOption,
    OutputOptions,
    PretrainedOption,
    SeedOption,
    TestDataOption,
    examples,
)
from smnas.cli.terminal.progress import PhaseSteps
from smnas.durations import duration

if TYPE_CHECKING:
    from smnas.training.curve import EpochLog

__all__ = ["EXAMPLES", "TrainOptions", "train"]

_ARCH = "basicblock_16_1-21-21+fpn_2-4_48+rpn+rcnn_128+128x128"
EXAMPLES = examples(
    f"smnas train --arch {_ARCH} --data my-images --epochs 20 --out my-model",
    f"smnas-train --arch {_ARCH} --data my-images --recipe nano --batch-size 8 --seed 1 --out my-model",
    "smnas train --arch mobilenetv2_100+fpn_2-6_128+rpn+rcnn_512+320x320 --data my-images "
    "--pretrained imagenet --out my-model",
    "smnas train --supernet nano --data my-images --epochs 80 --out my-supernet",
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OutputOptions):
    """Options of ``smnas train``."""

    arch: Annotated[
        str | None, typer.Option(metavar="ARCH", help="Architecture string, see `smnas space --sample 3`.")
    ] = None
    supernet: Annotated[
        str | None,
        typer.Option(metavar="PRESET", help="Instead of --arch: weights that all detectors of a search space share."),
    ] = None
    data: DataOption
    test_data: TestDataOption = None
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR")]
    epochs: Annotated[str | None, typer.Option(metavar="N|auto")] = None
    time_limit: Annotated[str | None, typer.Option("--time-limit", metavar="TIME")] = None
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="Training recipe: nano, small, sm-nas or a .toml file.")
    ] = "nano"
    batch_size: Annotated[int | None, typer.Option(min=1)] = None
    evaluate_every: Annotated[int | None, typer.Option(min=0, metavar="N")] = None
    tensorboard: Annotated[bool, typer.Option("--tensorboard")] = False
    pretrained: PretrainedOption = None
    norm: Annotated[str | None, typer.Option(metavar="NAME")] = None
    stem: Annotated[str | None, typer.Option(metavar="NAME")] = None
    drop_bad_boxes: DropBadBoxesOption = False
    drop_bad_images: DropBadImagesOption = False
    seed: SeedOption = 0


def train(options: TrainOptions) -> None:
    """Train one architecture, or the shared weights of a space.

    Trains on the data's training images, on a GPU if there is one, and evaluates on its validation images, or on
    held-out ones (--test-data, or a test split of the data), which then chose nothing. --out holds
    checkpoint.pt, curve.jsonl and metrics.json. An interrupted command resumes at the last finished epoch and gives the
    same result as an uninterrupted one.

    --pretrained starts the backbone from another network with the same kind of block, remapped to its depth, width and
    kernels: torchvision's ImageNet weights (imagenet), a state_dict file of a ResNet, ResNeXt or MobileNetV2, or a
    checkpoint or its folder, which also gives neck and heads where shapes agree. With a published network the detector
    is as torchvision builds it: BatchNorm in the backbone only, and ImageNet's stem. --norm bn --stem imagenet trains
    such a detector from scratch.

    On several GPUs, torchrun starts one process for each; they share every batch.
    """
    with Output.open(as_json=options.as_json, quiet=options.quiet) as output:
        from smnas import api

        values = options.values()
        with PhaseSteps(output) as steps:
            events: dict[str, Any] = {
                "on_epoch": lambda log: output.note(_epoch_line(log)),
                "on_progress": steps.step,
            }
            if options.supernet is not None:
                _train_supernet(output, options, events)
                return
            if options.arch is None:
                raise UserError("what to train must be given: --arch ARCH or --supernet PRESET, but got neither")
            run = api.train(**values, **events)
        if not run.first:
            return
        document = {
            "architecture": options.arch,
            "checkpoint": run.checkpoint,
            "epochs": run.epochs,
            "stop_reason": run.stop_reason,
            "seconds": run.seconds,
            "ap_split": run.ap_split,
            "metrics": run.metrics,
        }
        output.result(document, lambda console: show_metrics(console, run.metrics))


def _train_supernet(output: Output, options: TrainOptions, events: dict[str, Any]) -> None:
    from smnas import api
    from smnas.api.arguments import epochs_of

    values = options.values()
    values["epochs"], automatic = epochs_of("--epochs", values.get("epochs"))
    preset, tensorboard = values.pop("supernet"), values.pop("tensorboard")
    alone = {"arch", "test_data", "time_limit", "evaluate_every", "pretrained", "stem"} & values.keys()
    alone |= {"epochs auto"} if automatic else set()
    if tensorboard or alone:
        name = min(alone, default="tensorboard").replace("_", "-")
        raise UserError(f"--supernet goes without --{name}, which is for one architecture, but got both")
    supernet = api.train_supernet(preset, **values, **events)
    output.result(
        {"supernet": supernet.label, "checkpoint": options.out / "checkpoint.pt"},
        lambda console: console.print(f"{supernet.label}: {options.out}", soft_wrap=True, markup=False),
    )


def _epoch_line(log: "EpochLog") -> str:
    found = "" if log.ap is None else f", AP {log.ap:.3f}, AP50 {log.ap50:.3f}"
    left = f", {duration(log.eta_s)} left" if log.eta_s else ""
    return (
        f"epoch {log.epoch}/{log.epochs}: loss {log.loss:.3f}{found}, {log.images_per_s:.0f} images/s, "
        f"{log.memory_mb:.0f} MiB{left}"
    )
