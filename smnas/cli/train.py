"""``smnas train``: one architecture from scratch."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from profiler.errors import UserError
from smnas.cli.data_folder import check_images, open_data
from smnas.cli.metrics import show_metrics
from smnas.cli.terminal.console import Output
from smnas.cli.terminal.options import (
    ArchOption,
    DataOption,
    DropBadBoxesOption,
    JsonOption,
    QuietOption,
    SeedOption,
    examples,
)
from smnas.cli.terminal.progress import TrainingSteps, duration

if TYPE_CHECKING:
    from smnas.training.curve import EpochLog

__all__ = ["EXAMPLES", "train"]

_ARCH = "basicblock_16_1-21-21+fpn_2-4_48+rpn+rcnn_128+128x128"
EXAMPLES = examples(
    f"smnas train --arch {_ARCH} --data my-images --epochs 20 --out my-model",
    f"smnas-train --arch {_ARCH} --data my-images --recipe nano --batch-size 8 --seed 1 --out my-model",
    "smnas train --arch mobilenetv2_100+fpn_2-6_128+rpn+rcnn_512+320x320 --data my-images "
    "--pretrained mobilenet_v2.pth --out my-model",
)


def train(
    arch: ArchOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where checkpoint and curve go.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data. Default: the recipe's.")] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="Training recipe: nano, small, sm-nas or a .toml file.")
    ] = "nano",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step. Default: the recipe's.")] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Epochs between evaluations on the way; 0: only at the end.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard logs to OUT/tensorboard.")
    ] = False,
    pretrained: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="ImageNet weights of the backbone: a state_dict file of torchvision."),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="gn-ws: GroupNorm and weight standardization everywhere; bn: BatchNorm in the backbone. "
            "Default: gn-ws; bn with --pretrained.",
        ),
    ] = None,
    stem: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="deep: two 3x3 convolutions; imagenet: a 7x7 one and pooling. Default: deep; imagenet with "
            "--pretrained.",
        ),
    ] = None,
    drop_bad_boxes: DropBadBoxesOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train one architecture from scratch.

    Trains on the data's training images, on a GPU where there is one, and evaluates on its validation images.
    --out holds checkpoint.pt, curve.jsonl and metrics.json. Interrupted, the same command resumes at the last finished
    epoch and gives what an uninterrupted run gives.

    --pretrained starts the backbone from the weights of torchvision's ResNet, ResNeXt or MobileNetV2 of the same shape,
    and builds the detector of torchvision's kind: BatchNorm in the backbone and nowhere else, and ImageNet's stem.
    --norm bn --stem imagenet trains such a detector from scratch.

    On several GPUs, torchrun starts one process for each; they share every batch.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        from smnas.space.architecture import Architecture
        from smnas.training.recipe import load_recipe

        architecture = Architecture.parse(arch)
        settings = load_recipe(recipe).with_(epochs=epochs, batch_size=batch_size, evaluate_every=evaluate_every)

        from smnas.models.layers import NormKind
        from smnas.models.pretrained import read_weights
        from smnas.scoring.trained_ap import TrainedAP
        from smnas.space.convolutions import StemKind
        from smnas.training.board import Board
        from smnas.training.replicas import replicas_from_environment

        weights = None if pretrained is None else read_weights(pretrained)
        norm_kind: NormKind = _one_of("--norm", NormKind, norm, "gn-ws" if weights is None else "bn")
        stem_kind: StemKind = _one_of("--stem", StemKind, stem, "deep" if weights is None else "imagenet")
        with ExitStack() as stack:
            replicas, device = stack.enter_context(replicas_from_environment())
            shown = output if replicas.first else output.silent()
            folder = open_data(data, shown, drop_bad_boxes=drop_bad_boxes)
            images = len(folder.split("train"))
            if batch_size is not None and batch_size > images:
                raise UserError(
                    f"--batch-size must be at most the number of training images, {images}, but got {batch_size}"
                )
            finished = _finished(out)
            if replicas.first and not finished:
                check_images(folder, shown)
            together = f" in {replicas.count} processes" if replicas.count > 1 else ""
            shown.note(f"training on {device}{together}: {images} images, {settings.epochs} epochs")
            steps = stack.enter_context(TrainingSteps(shown))
            board = (
                stack.enter_context(Board(out / "tensorboard", finished)) if tensorboard and replicas.first else None
            )

            def on_epoch(log: "EpochLog") -> None:
                if board is not None:
                    board.add(log)
                shown.note(_epoch_line(log))

            scorer = TrainedAP(
                folder,
                settings,
                device,
                norm=norm_kind,
                stem=stem_kind,
                pretrained=weights,
                replicas=replicas,
                on_epoch=on_epoch,
            )
            score = scorer.score(architecture, seed=seed, epochs=settings.epochs, out_dir=out, on_progress=steps.at)
        if not replicas.first:
            return
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


def _one_of(option: str, kinds: Any, name: str | None, usual: str) -> Any:
    """What an option names among the values of a literal type."""
    known = get_args(kinds)
    if name is not None and name not in known:
        raise UserError(f"{option} must be one of {', '.join(known)}, but got {name!r}")
    return name or usual


def _epoch_line(log: "EpochLog") -> str:
    found = "" if log.ap is None else f", AP {log.ap:.3f}, AP50 {log.ap50:.3f}"
    left = f", {duration(log.eta_s)} left" if log.eta_s else ""
    return (
        f"epoch {log.epoch}/{log.epochs}: loss {log.loss:.3f}{found}, {log.images_per_s:.0f} images/s, "
        f"{log.memory_mb:.0f} MiB{left}"
    )


def _finished(out: Path) -> "list[EpochLog]":
    """The epochs that an earlier run of the same command finished."""
    from smnas.training.checkpoint import CHECKPOINT_FILE, load_checkpoint

    path = out / CHECKPOINT_FILE
    return list(load_checkpoint(path).history) if path.exists() else []
