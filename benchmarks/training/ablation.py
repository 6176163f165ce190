"""What does each part of the recipe bring? One part changed at a time, on the same images, with the same budget.

Trains one architecture with a recipe, and again with one setting of it changed, with several seeds each, and prints AP
with its spread over the seeds. A change is written KEY=VALUE as in a recipe's file; several that belong together are
joined by semicolons. Without any, the table has the changes of ``changes_of``.

    python -m benchmarks.training.ablation --data ../shared/data/aquarium --out runs/ablation
    python -m benchmarks.training.ablation --data ../shared/data/aquarium --out runs/ablation --only flip=0

Interrupted, the same command resumes every training run at its last finished epoch and reads finished ones back.
``--only`` does some rows; the answer is kept when all are there.
"""

import time
import tomllib
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.training_runs import training_workers
from smnas.scoring.base import Score
from smnas.scoring.trained_ap import METRICS_FILE
from smnas.scoring.workers.processes import Job
from smnas.space.architecture import Architecture
from smnas.training.recipe import Recipe, load_recipe

ARCHITECTURE = "basicblock_16_11-21-21+fpn_2-4_48+rpn+rcnn_128+160x160"
AS_IT_IS = "as it is"


def changes_of(epochs: int) -> tuple[str, ...]:
    """The default rows, the last with twice the epochs."""
    return (
        'optimizer="sgd";learning_rate=0.05;weight_decay=1e-4',
        "batch_size=8",
        'box_loss="giou"',
        'assignment="atss"',
        "ema_decay=0.998",
        "color_jitter=0.3",
        "mosaic=0",
        "scale_jitter=[0.8, 1.25]",
        "flip=0",
        f"epochs={2 * epochs}",
    )


def changed(recipe: Recipe, change: str) -> Recipe:
    """A recipe with the settings of ``change``, e.g. ``optimizer="sgd";learning_rate=0.1``."""
    return recipe.with_(**tomllib.loads(change.replace(";", "\n")))


def train(data: Path, recipe: Recipe, architecture: Architecture, seeds: int, workers: int, out: Path) -> list[Score]:
    """One training run for each seed, ``workers`` at a time, in the order of the seeds."""
    jobs = [Job(seed, architecture, seed, recipe.epochs, out / str(seed)) for seed in range(seeds)]
    scores: dict[int, Score] = {}
    with training_workers(data, recipe, workers) as pool:
        for job, outcome in pool.score_all(jobs):
            if isinstance(outcome, Exception):
                raise SystemExit(f"seed {job.number} failed: {outcome}")
            scores[job.number] = outcome
    return [scores[seed] for seed in range(seeds)]


def finished(folder: Path, seeds: int) -> bool:
    return all((folder / str(seed) / METRICS_FILE).exists() for seed in range(seeds))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE[;KEY=VALUE]", help="a row of the table each")
    parser.add_argument("--only", action="append", metavar="CHANGE", help=f"train this row ({AS_IT_IS!r}: the first)")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arch", default=ARCHITECTURE)
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", default="ablation", help="of the kept answer")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    base = load_recipe(args.recipe).with_(epochs=args.epochs)
    architecture = Architecture.parse(args.arch)
    changes = args.changes or changes_of(args.epochs)
    recipes = {AS_IT_IS: base} | {change: changed(base, change) for change in changes}
    if unknown := set(args.only or ()) - recipes.keys():
        parser.error(f"a row is one of {', '.join(recipes)}, but got {', '.join(unknown)}")
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for number, (change, recipe) in enumerate(recipes.items(), start=1):
        folder = args.out / (change.replace("/", "_") if change != AS_IT_IS else "base")
        if args.only and change not in args.only and not finished(folder, args.seeds):
            missing.append(change)
            continue
        # what is finished is read back by the scorer, which refuses a folder that was trained otherwise
        scores = train(args.data, recipe, architecture, args.seeds, args.workers, folder)
        ap, ap50 = ([score.metrics[key] for score in scores] for key in ("ap", "ap50"))
        rows.append(
            {
                "change": change,
                "ap": ap,
                "ap50": ap50,
                "seconds_a_training": mean(score.seconds for score in scores),
            }
        )
        spread = stdev(ap) if len(ap) > 1 else float("nan")
        minutes = (time.monotonic() - began) / 60
        print(
            f"{number}/{len(recipes)} after {minutes:.1f} min: AP {mean(ap):.4f} +- {spread:.4f} "
            f"AP50 {mean(ap50):.4f}  {change}",
            flush=True,
        )
    if missing:
        print(f"no answer yet, missing: {', '.join(missing)}")
        return
    found = {"architecture": str(architecture), "recipe": base.model_dump(mode="json"), "rows": rows}
    keep_answer(args.name, __doc__, found)


if __name__ == "__main__":
    main()
