"""Is this project's recipe worth choosing over torchvision's reference, on a data set of one's own?

Trains the same architecture (Faster R-CNN on ResNet-18-FPN) on the same pictures, as many of them, from scratch: with
this project's model and recipe, and with torchvision's model (``FasterRCNN`` on ``resnet_fpn_backbone``, BatchNorm) and
the numbers of its reference training (SGD 0.02 for 16 pictures, momentum 0.9, weight decay 1e-4, 1,000 steps of warm-up
within the first epoch, drops to a tenth after 8/13 and 11/13 of the epochs, flips). AP of both by pycocotools through
the same code; pictures a second measured in turns in one process.

    python benchmarks/against_torchvision.py --data ../shared/data/aquarium --epochs 20 --out runs/torchvision
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from answers import keep_answer
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from smnas.data.augment import Augmentation
from smnas.data.coco import CocoFolder
from smnas.data.loader import Batch, TrainLoader
from smnas.evaluation.predict import DetectionArrays, eager_detect, evaluate
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.space.architecture import Architecture
from smnas.training.fit import fit
from smnas.training.optimizer import build_optimizer
from smnas.training.recipe import Recipe, load_recipe

ARCHITECTURE = "basicblock_64_11-21-21-21+fpn_2-6_256+rpn+rcnn_1024+{size}x{size}"
BATCH = 16
Step = Callable[[Batch], None]


def reference_model(classes: int, size: int) -> FasterRCNN:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    # a canvas of this size goes through torchvision's own resizing unchanged
    return FasterRCNN(backbone, num_classes=classes + 1, min_size=size, max_size=size)


def reference_step(model: FasterRCNN, optimizer: torch.optim.Optimizer, device: torch.device, batch: Batch) -> None:
    images = [image.to(device).float() / 255 for image in batch.images]
    targets = [{"boxes": t.boxes.to(device), "labels": t.labels.to(device) + 1} for t in batch.targets]
    loss = torch.stack(list(model(images, targets).values())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def reference_optimizer(model: FasterRCNN) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.02 * BATCH / 16, momentum=0.9, weight_decay=1e-4)


def train_reference(data: CocoFolder, size: int, epochs: int, seed: int, device: torch.device) -> FasterRCNN:
    torch.manual_seed(seed)
    model = reference_model(len(data.classes), size).to(device).train()
    optimizer = reference_optimizer(model)
    loader = TrainLoader(data.split("train"), size, size, BATCH, seed, augmentation=Augmentation(flip=0.5))
    peak, warmup = optimizer.param_groups[0]["lr"], min(1000, len(loader))
    for epoch in range(epochs):
        factor = 0.1 ** sum(epoch >= round(share * epochs) for share in (8 / 13, 11 / 13))
        for step, batch in enumerate(loader.epoch(epoch)):
            rate = peak * factor * (min(1.0, 0.001 + step / warmup) if epoch == 0 else 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate
            reference_step(model, optimizer, device, batch)
    return model.eval()


def reference_detect(model: FasterRCNN, device: torch.device) -> Callable[[NDArray[np.uint8]], DetectionArrays]:
    """Torchvision's model as the function of arrays that the evaluation takes."""

    @torch.inference_mode()
    def detect(images: NDArray[np.uint8]) -> DetectionArrays:
        found: Sequence[dict[str, Tensor]] = model([torch.from_numpy(i).to(device).float() / 255 for i in images])
        rows = max(1, *(len(f["scores"]) for f in found))
        num = np.array([len(f["scores"]) for f in found], dtype=np.int64)
        boxes = np.zeros((len(found), rows, 4), np.float32)
        scores, labels = np.zeros((len(found), rows), np.float32), np.zeros((len(found), rows), np.int64)
        for row, f in enumerate(found):
            boxes[row, : num[row]] = f["boxes"].cpu().numpy()
            scores[row, : num[row]] = f["scores"].cpu().numpy()
            labels[row, : num[row]] = f["labels"].cpu().numpy() - 1
        return DetectionArrays(num, boxes, scores, labels)

    return detect


def our_step(detector: Detector, optimizer: torch.optim.Optimizer, recipe: Recipe, device: torch.device) -> Step:
    def step(batch: Batch) -> None:
        images = batch.images.to(device).contiguous(memory_format=torch.channels_last)
        loss = torch.stack(list(detector.loss(images, batch.targets, recipe.losses).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), recipe.clip_norm or 1e9)
        optimizer.step()

    return step


def images_per_second(data: CocoFolder, architecture: Architecture, recipe: Recipe, steps: int) -> dict[str, float]:
    """Training steps of both in turns on the same prepared batch, so that a busy machine is as busy for either."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = architecture.input_width
    batch = next(iter(TrainLoader(data.split("train"), size, size, BATCH, 0).epoch(0)))
    torch.manual_seed(0)
    detector = build_detector(architecture, len(data.classes)).to(device).train()
    detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = reference_model(len(data.classes), size).to(device).train()
    optimizer, our_optimizer = reference_optimizer(model), build_optimizer(detector, recipe)
    for group in (*optimizer.param_groups, *our_optimizer.param_groups):
        group["lr"] = 1e-5  # without a warm-up the peak rate would break the weights, and with them the proposals
    ours = our_step(detector, our_optimizer, recipe, device)
    contenders: dict[str, Step] = {
        "smnas": ours,
        "torchvision": lambda b: reference_step(model, optimizer, device, b),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(steps + 2):
        for name, step in contenders.items():
            began = time.perf_counter()
            step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - began)
    return {name: BATCH / median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20, help="0: only how fast both are")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--steps", type=int, default=8, help="timed training steps of each")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    data = CocoFolder(asked.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    architecture = Architecture.parse(ARCHITECTURE.format(size=asked.size))
    recipe = load_recipe(asked.recipe).with_(epochs=max(1, asked.epochs))
    speed = images_per_second(data, architecture, recipe, asked.steps)
    print({name: round(value, 2) for name, value in speed.items()}, "pictures a second", flush=True)
    ap: dict[str, list[dict[str, float]]] = {"smnas": [], "torchvision": []}
    for seed in range(asked.seeds if asked.epochs else 0):
        torch.manual_seed(seed)
        detector = build_detector(architecture, len(data.classes))
        fit(detector, data.split("train"), recipe, seed=seed, device=device, out_dir=asked.out / f"smnas-{seed}")
        model = train_reference(data, asked.size, asked.epochs, seed, device)
        for name, detect in (
            ("smnas", eager_detect(detector, device)),
            ("torchvision", reference_detect(model, device)),
        ):
            found = evaluate(detect, data.split("val"), asked.size, asked.size, 8).as_dict()
            ap[name].append(found)
            print(f"seed {seed} {name}: AP {found['ap']:.4f} AP50 {found['ap50']:.4f}", flush=True)
    found = {
        "epochs": asked.epochs,
        "architecture": str(architecture),
        "recipe": recipe.model_dump(mode="json"),
        "images_per_second": speed,
        "metrics": ap,
    }
    keep_answer(
        f"against-torchvision-{asked.size}px",
        "Is this project's recipe worth choosing over torchvision's reference?",
        found,
    )


if __name__ == "__main__":
    main()
