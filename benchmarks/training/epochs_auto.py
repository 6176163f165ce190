"""Does a schedule that ends by itself find as good a detector as the best number of epochs, and at what cost?

Trains one architecture with fixed numbers of epochs and with ``--epochs auto``, with several seeds each, and prints the
AP on held-out images and the images trained on. Without ``--data`` the images are generated shapes.

    nice -n 15 python -m benchmarks.training.epochs_auto --out runs/epochs-auto
    nice -n 15 python -m benchmarks.training.epochs_auto --data my-images --epochs 50 100 200 --out runs/auto
"""

from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.common.answers import argument_parser, keep_answer
from smnas.data.coco import CocoFolder
from smnas.data.shapes import generate_shapes
from smnas.scoring.trained_ap import TrainedAP
from smnas.space.architecture import Architecture
from smnas.training.recipe import load_recipe

ARCHITECTURE = "basicblock_8_1-21-21+fpn_3-5_32+norpn+fcos_32_1+64x64"


def shapes(out: Path) -> tuple[Path, Path]:
    """Generated images for training and validation, and others to measure on."""
    data, others = out / "data", out / "others"
    if not data.exists():
        generate_shapes(data, train=240, val=80, width=96, height=96, seed=0)
    if not others.exists():
        generate_shapes(others, train=1, val=200, width=96, height=96, seed=1)
    return data, others


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--test-data", type=Path)
    parser.add_argument("--arch", default=ARCHITECTURE)
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--epochs", type=int, nargs="+", default=[12, 25, 50])
    parser.add_argument("--most", type=int, default=300, help="epochs of a schedule that ends by itself")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--name", default="epochs-auto", help="of the kept answer")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, test = (args.data, args.test_data) if args.data else shapes(args.out)
    folder, recipe = CocoFolder(data, test=test), load_recipe(args.recipe)
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for epochs in (*args.epochs, None):
            scorer = TrainedAP(folder, recipe, automatic=epochs is None)
            score = scorer.score_final(
                Architecture.parse(args.arch),
                seed=seed,
                epochs=epochs or args.most,
                out_dir=args.out / f"{epochs or 'auto'}-{seed}",
            )
            images = score.epochs * len(folder.split("train"))
            row = {"epochs": epochs or "auto", "seed": seed, "ap": score.value, "images": images}
            rows.append(row | {"seconds": score.seconds, "stop_reason": score.stop_reason})
            print(
                f"seed {seed}, epochs {epochs or 'auto'}: AP {score.value:.4f}, {images} images, {score.seconds:.0f} s "
                f"({score.stop_reason or 'fixed'})",
                flush=True,
            )
    kinds = {kind: [row for row in rows if row["epochs"] == kind] for kind in (*args.epochs, "auto")}
    means = {kind: {key: mean(row[key] for row in of) for key in ("ap", "images")} for kind, of in kinds.items()}
    best = max(args.epochs, key=lambda kind: means[kind]["ap"])
    print(
        f"auto against {best} epochs: AP {means['auto']['ap']:.4f} against {means[best]['ap']:.4f}, "
        f"{means['auto']['images'] / means[best]['images']:.2f} times the images"
    )
    keep_answer(args.name, __doc__, {"architecture": args.arch, "best": best, "means": means, "rows": rows})


if __name__ == "__main__":
    main()
