"""Is this project's recipe worth choosing over torchvision's reference, on a data set of one's own?

Trains the same architecture (Faster R-CNN on ResNet-18-FPN; ``--backbone resnet50``) on the same images for the same
number of epochs, from scratch: with this project's model and recipe, and with torchvision's model and the numbers of
its reference training (``torchvision_reference.py``). AP of both by pycocotools through the same code; images per
second measured in turns, each in its own precision.

    python -m benchmarks.training.against_torchvision --data ../shared/data/aquarium --epochs 20 --out runs/torchvision

That is hours of both cores, so it comes in parts: the speed, and a training run of each contender with each seed. A
part resumes at its last finished epoch, stays in ``--out`` when it is done and is not done again; ``--only`` and
``--seed`` choose some. Started twice, the two processes share the parts, one core each with ``OMP_NUM_THREADS=1``. A
run that diverges is a result too: it is kept and counted, and the next seed takes its place. When all parts are done
the answer is kept; until then the missing ones are listed.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
import torchvision

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.detectors import RESNET18, RESNET50, PreparedBatch
from benchmarks.common.gpu_question import Setting
from benchmarks.common.turns import ratios, take_turns
from benchmarks.training.step_against_torchvision import ReferenceTrainer
from benchmarks.training.torchvision_reference import (
    BATCH,
    train_reference,
)
from benchmarks.training.training_step import Amp, Trainer
from profiler.atomic import write_atomic
from profiler.devices import resolve_device
from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.data.loader import TrainLoader
from smnas.evaluation.predict import DetectFunction, evaluate
from smnas.scoring.base import ScoringFailedError
from smnas.scoring.trained_ap import METRICS_FILE, TrainedAP, write_metrics
from smnas.search.study.run_folder import folder_lock
from smnas.search.study.settings import RunFolderError
from smnas.space.architecture import Architecture
from smnas.training.curve import CURVE_FILE, EpochLog
from smnas.training.errors import TrainingFailedError
from smnas.training.recipe import Recipe, load_recipe

ARCHITECTURES = {"resnet18": RESNET18, "resnet50": RESNET50}
SPEED = "speed"
CONTENDERS = ("smnas", "torchvision")
SETTINGS_FILE = "settings.json"
FAILURE_FILE = "failure.json"


@dataclass(frozen=True)
class Part:
    """One unit of work: the speed of both, or a contender's training run with a seed."""

    name: str
    seed: int | None = None

    def __str__(self) -> str:
        return self.name if self.seed is None else f"{self.name}-{self.seed}"

    def folder(self, out: Path) -> Path:
        return out / str(self)

    def file(self, out: Path) -> Path:
        """The file that exists once the part is done."""
        return self.folder(out) / ("speed.json" if self.name == SPEED else METRICS_FILE)

    def failure(self, out: Path) -> str | None:
        """Why the part failed; ``None`` if it did not."""
        file = self.folder(out) / FAILURE_FILE
        return str(json.loads(file.read_text())["reason"]) if file.exists() else None


def training_parts(contender: str, count: int, out: Path) -> tuple[list[Part], list[Part]]:
    """The first ``count`` training runs of a contender that did not fail, and the failed ones before them."""
    good: list[Part] = []
    failed: list[Part] = []
    while len(good) < count:
        part = Part(contender, len(good) + len(failed))
        (good if part.failure(out) is None else failed).append(part)
    return good, failed


def seconds_a_step(
    data: CocoFolder, architecture: Architecture, backbone: str, recipe: str, amp: Amp, steps: int
) -> dict[str, list[float]]:
    """Training steps of both in turns on the same prepared batch, so that a busy machine is as busy for either."""
    size, classes = architecture.input_width, len(data.classes)
    images, targets = next(iter(TrainLoader(data.split("train"), size, size, BATCH, 0).epoch(0)))
    batch = PreparedBatch(images, targets)
    setting = Setting(resolve_device("local"), False, data.root, data.root, math.inf)
    ours = Trainer(setting, architecture, recipe, BATCH, amp, channels_last=True, batch=batch, steps=1, classes=classes)
    theirs = ReferenceTrainer(setting, batch, "off", 1, backbone, classes)
    turns = take_turns({"smnas": ours.round, "torchvision": theirs.round}, steps + 2)
    return {name: [seconds for seconds, _ in turn[2:]] for name, turn in turns.items()}


def train(
    part: Part,
    folder: Path,
    data: CocoFolder,
    architecture: Architecture,
    backbone: str,
    recipe: Recipe,
    device: str,
) -> dict[str, float]:
    """Train a contender with a seed, with a line after every epoch; its COCO numbers.

    Raises:
        ScoringFailedError, TrainingFailedError: it diverges or does not fit in memory.
    """
    size, seed = architecture.input_width, part.seed or 0

    def show(log: EpochLog) -> None:
        ap = "" if log.ap is None else f", AP {log.ap:.4f}"
        print(
            f"{part}: epoch {log.epoch}/{log.epochs}, loss {log.loss:.3f}{ap}, {log.images_per_s:.2f} images/s, "
            f"{log.eta_s / 60:.0f} min left",
            flush=True,
        )

    def metrics(detect: DetectFunction) -> dict[str, float]:
        return evaluate(detect, data.split("val"), size, size, recipe.batch_size).as_dict()

    if part.name == "smnas":
        score = TrainedAP(data, recipe, device, on_epoch=show).score(
            architecture, seed=seed, epochs=recipe.epochs, out_dir=folder
        )
        return dict(score.metrics)
    detect = train_reference(
        data.split("train"),
        size,
        recipe.epochs,
        seed,
        torch.device(device),
        folder,
        backbone=backbone,
        evaluate_every=recipe.evaluate_every,
        evaluate=metrics,
        on_epoch=show,
    )
    return metrics(detect)


def require_same_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Check the settings of earlier parts.

    Raises:
        UserError: a part in the folder was made with other settings.
    """
    for file in sorted(out.glob(f"*/{SETTINGS_FILE}")):
        held = json.loads(file.read_text())
        for name in dict.fromkeys((*held, *settings)):
            if held.get(name) != settings.get(name):
                raise UserError(
                    f"parts of one comparison have the same settings ({name}={held.get(name)} in {file}), "
                    f"but got {settings.get(name)}; give another --out"
                )


def _curve(path: Path) -> list[EpochLog]:
    return [EpochLog.from_dict(json.loads(line)) for line in path.read_text().splitlines()]


def answer(out: Path, seeds: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All parts together."""
    speed = json.loads(Part(SPEED).file(out).read_text())
    seconds = speed["seconds"]
    parts, failed = {}, {}
    for contender in CONTENDERS:
        parts[contender], failed[contender] = training_parts(contender, seeds, out)
    metrics = {c: [json.loads(part.file(out).read_text()) for part in of_both] for c, of_both in parts.items()}
    curves = {c: [_curve(part.folder(out) / CURVE_FILE) for part in of_both] for c, of_both in parts.items()}
    return {
        **settings,
        "threads_of_the_speed": speed["threads"],
        "seconds_a_step": seconds,
        "images_per_second": {name: BATCH / median(times) for name, times in seconds.items()},
        "times_as_fast": median(ratios(seconds["torchvision"], seconds["smnas"])),
        "ap": {c: mean_and_spread([one["ap"] for one in found]) for c, found in metrics.items()},
        "ap50": {c: mean_and_spread([one["ap50"] for one in found]) for c, found in metrics.items()},
        "seeds": {c: [part.seed for part in of_both] for c, of_both in parts.items()},
        "failed": {c: {str(part.seed): part.failure(out) for part in of_both} for c, of_both in failed.items()},
        "metrics": metrics,
        "curves": {c: [[log.to_dict() for log in curve] for curve in found] for c, found in curves.items()},
    }


def every(args: argparse.Namespace) -> list[Part]:
    """All parts of the answer, as far as failures are known."""
    of_both = [training_parts(contender, args.seeds, args.out)[0] for contender in CONTENDERS]
    return [Part(SPEED), *(part for of_seed in zip(*of_both, strict=True) for part in of_seed)]


def wanted(args: argparse.Namespace) -> Iterator[Part]:
    """The parts selected by ``--only`` and ``--seed``, each once; a failed run is followed by one of the next seed."""
    seen: set[Part] = set()
    while new := [part for part in every(args) if part not in seen]:
        seen.add(part := new[0])
        if args.only in (None, part.name) and (args.seed is None or part.seed in (None, args.seed)):
            yield part


def do(
    part: Part,
    args: argparse.Namespace,
    settings: Mapping[str, Any],
    data: CocoFolder,
    architecture: Architecture,
    recipe: Recipe,
    device: str,
) -> None:
    """Do one part, unless it is done or another process is doing it, and keep its result."""
    folder, file = part.folder(args.out), part.file(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(folder):
            if file.exists():
                print(f"{part}: done before", flush=True)
                return
            write_atomic(folder / SETTINGS_FILE, json.dumps(settings, indent=1) + "\n")
            if part.name == SPEED:
                seconds = seconds_a_step(data, architecture, args.backbone, args.recipe, recipe.amp, args.steps)
                found = {"threads": torch.get_num_threads(), "seconds": seconds}
                write_atomic(file, json.dumps(found) + "\n")
            else:
                write_metrics(file, train(part, folder, data, architecture, args.backbone, recipe, device))
            print(f"{part}: {file.read_text()}", flush=True)
    except RunFolderError:
        print(f"{part}: another process is doing it", flush=True)
    except (ScoringFailedError, TrainingFailedError) as error:
        write_atomic(folder / FAILURE_FILE, json.dumps({"reason": error.reason}) + "\n")
        print(f"{part}: failed: {error.reason}", flush=True)


def mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def run(args: argparse.Namespace) -> None:
    data = CocoFolder(args.data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    architecture = Architecture.parse(f"{ARCHITECTURES[args.backbone]}+{args.size}x{args.size}")
    recipe = load_recipe(args.recipe).with_(epochs=args.epochs, evaluate_every=args.evaluate_every)
    if args.batch_size is not None:
        recipe = recipe.with_(batch_size=args.batch_size)
    settings = {
        "data": args.data.resolve().name,
        "images": [len(data.split("train")), len(data.split("val"))],
        "architecture": str(architecture),
        "epochs": args.epochs,
        "recipe": recipe.model_dump(mode="json"),
        "torchvision": torchvision.__version__,
        "device": device,
    }
    require_same_settings(args.out, settings)
    for part in wanted(args):
        do(part, args, settings, data, architecture, recipe, device)
    if missing := [str(part) for part in every(args) if not part.file(args.out).exists()]:
        print(f"no answer yet, missing: {', '.join(missing)}")
        return
    found = answer(args.out, args.seeds, settings)
    print(json.dumps({name: found[name] for name in ("images_per_second", "times_as_fast", "ap", "ap50")}, indent=1))
    keep_answer(
        f"against-torchvision-{args.backbone}-{args.size}px",
        __doc__,
        found,
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--evaluate-every", type=int, default=5, help="epochs between evaluations during training; 0: none"
    )
    parser.add_argument("--seeds", type=int, default=2, help="training runs of each that the answer is made of")
    parser.add_argument("--seed", type=int, help="train this seed only, if it is one of them")
    parser.add_argument("--only", choices=(SPEED, *CONTENDERS))
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--batch-size", type=int, help="of our training runs; the recipe's without it")
    parser.add_argument("--backbone", choices=tuple(ARCHITECTURES), default="resnet18")
    parser.add_argument("--steps", type=int, default=8, help="timed training steps of each")
    parser.add_argument("--out", type=Path, required=True)
    try:
        run(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
