"""Does every kind of head overfit 16 real images, from scratch, on a CPU?

Trains one detector of each head on the first 16 images of a data set and evaluates it on the same 16.

    python -m benchmarks.training.overfit --data ../shared/data/aquarium-mini --epochs 150 --out runs/overfit
"""

import json
import shutil
import time
from pathlib import Path

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.training_runs import training_workers
from smnas.data.coco import CocoFolder
from smnas.scoring.base import Score
from smnas.scoring.workers.processes import Job
from smnas.space.architecture import Architecture
from smnas.training.recipe import load_recipe

BODY = "basicblock_16_11-21-21+fpn_2-4_48"
HEADS = {
    "rcnn": "rpn+rcnn_128",
    "rcnn on guided anchors": "garpn+rcnn_128",
    "cascade of 2": "rpn+cascade_2_128",
    "cascade of 3": "rpn+cascade_3_128",
    "cascade of 4": "rpn+cascade_4_128",
    "retina": "norpn+retina_48_2",
    "fcos": "norpn+fcos_48_2",
}
IMAGES = 16


def first_images(source: Path, out: Path) -> Path:
    """A data set of the first images of ``source``, the same for training and evaluation."""
    shutil.rmtree(out, ignore_errors=True)
    document = json.loads((source / "annotations" / "instances_train.json").read_text())
    document["images"] = document["images"][:IMAGES]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    (out / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (out / split).mkdir()
        for image in document["images"]:
            shutil.copy(source / "train" / image["file_name"], out / split)
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return out


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    data = first_images(args.data, args.out / "data")
    recipe = load_recipe("nano").with_(flip=0.0, mosaic=0.0, batch_size=4)
    jobs = [
        Job(
            number,
            Architecture.parse(f"{BODY}+{head}+{args.size}x{args.size}"),
            0,
            args.epochs,
            args.out / name.replace(" ", "-"),
        )
        for number, (name, head) in enumerate(HEADS.items())
    ]
    names = list(HEADS)
    answers = {}
    boxes = sum(len(CocoFolder(data).split("train").boxes(i)[0]) for i in range(IMAGES))
    began = time.monotonic()
    with training_workers(data, recipe, args.workers) as pool:
        for job, outcome in pool.score_all(jobs):
            if isinstance(outcome, Score):
                answers[names[job.number]] = {
                    "architecture": str(job.architecture),
                    "ap": outcome.metrics["ap"],
                    "ap50": outcome.metrics["ap50"],
                    "minutes": outcome.seconds / 60,
                }
            else:
                answers[names[job.number]] = {"architecture": str(job.architecture), "failed": outcome.reason}
            print(names[job.number], answers[names[job.number]], flush=True)
    found = {
        "boxes": boxes,
        "minutes": (time.monotonic() - began) / 60,
        "recipe": recipe.model_dump(mode="json"),
        "heads": answers,
    }
    keep_answer("overfit", __doc__, found)


if __name__ == "__main__":
    main()
