"""Is `smnas detect` faster than torchvision's eager Faster R-CNN, and where does its time go?

Both are Faster R-CNN on ResNet-18-FPN with BatchNorm, and both have the same weights: random ones, with statistics and
head weights that make scores and boxes differ as a trained detector's do. So proposals, detections and arithmetic are
the same, and the numbers of detections found are in the answer to show it. Both start from the same JPEG files, whose
shape is the canvas's, so that neither pads. torchvision reads with Pillow and runs in eager mode; ours is the exported
file in ONNX Runtime, as the command runs it: in turn (`workers=0`) and with threads beside the network (`workers=2`).
They take turns on a few images at a time, so that a busy machine is as busy for each.

A nano detector on the same images shows the stages where the network is small, and images of 12 megapixels where
decoding is large.

    python -m benchmarks.deploy.detect_speed --data ../shared/data/aquarium --threads 2
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.turns import ratios, take_turns
from smnas.deploy.export import export_detector
from smnas.inference.detect import detect_inputs
from smnas.inference.inputs import Inputs
from smnas.inference.pipeline import DetectOptions, StageTimes
from smnas.inference.runtime import Model, load_model
from smnas.models.build import build_detector
from smnas.models.layers import NormKind
from smnas.space.architecture import Architecture
from smnas.space.convolutions import StemKind
from smnas.space.preset import load_space
from smnas.training.checkpoint import Checkpoint, CheckpointInfo, save_checkpoint
from smnas.training.recipe import load_recipe

WIDTH, HEIGHT = 576, 768  # a whole number of positions on every level, and the images' shape
RESNET18 = f"basicblock_64_11-21-21-21+fpn_2-6_256+rpn+rcnn_1024+{WIDTH}x{HEIGHT}"
CLASSES = 7
SCORE = 0.01  # the threshold of the exported file, and of torchvision here
# torchvision's names to ours, as regular expressions of a name's beginning
NAMES = {
    r"backbone\.body\.conv1\.": "backbone.stem.conv.",
    r"backbone\.body\.bn1\.": "backbone.stem.norm.",
    r"backbone\.body\.layer(\d)\.": r"backbone.stage\1.",
    r"backbone\.fpn\.inner_blocks\.(\d)\.0\.": r"neck.lateral.\1.0.",
    r"backbone\.fpn\.layer_blocks\.(\d)\.0\.": r"neck.smooth.\1.0.",
    r"rpn\.head\.conv\.0\.0\.": "rpn.conv.0.",
    r"rpn\.head\.cls_logits\.": "rpn.objectness.",
    r"rpn\.head\.bbox_pred\.": "rpn.deltas.",
    r"roi_heads\.box_head\.fc6\.": "roi_stage1.head.fc1.",
    r"roi_heads\.box_head\.fc7\.": "roi_stage1.head.fc2.",
    r"roi_heads\.box_predictor\.cls_score\.": "roi_stage1.head.logits.",
    r"roi_heads\.box_predictor\.bbox_pred\.": "roi_stage1.head.deltas.",
}


def reference(paths: Sequence[Path]) -> FasterRCNN:
    """Torchvision's model with weights that keep the scale of feature maps, and statistics of the images."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    model = FasterRCNN(backbone, num_classes=CLASSES + 1, min_size=WIDTH, max_size=HEIGHT, box_score_thresh=SCORE)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    images = torch.stack([_tensor(path) for path in paths[:4]])
    backbone.train()(model.transform.normalize(images))
    for name, module in model.named_modules():
        if name.endswith("bn2"):  # branches weaker than shortcuts, or rounding errors would grow
            nn.init.constant_(module.weight, 0.5)
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith("backbone.body"):
            # boxes move a little, scores a lot
            gain = 0.02 if "bbox_pred" in name else 1.5
            nn.init.normal_(module.weight, std=(gain / module.weight[0].numel()) ** 0.5)
    return model.eval().requires_grad_(False)


def _tensor(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels: Tensor = pil_to_tensor(image.convert("RGB"))
    return pixels.float() / 255


def under_our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for theirs, value in state.items():
        (ours,) = (re.sub(f"^{old}", new, theirs) for old, new in NAMES.items() if re.match(old, theirs))
        # the background is torchvision's first class and our last, and has no box
        kept = value[4:] if "box_predictor.bbox_pred" in theirs else value
        found[ours] = kept.roll(-1, dims=0) if "cls_score" in theirs else kept
    return found


def exported(folder: Path, architecture: Architecture, state: dict[str, Tensor] | None, threads: int) -> Model:
    """The file of a detector: with these weights, of torchvision's kind; without, a fresh one of ours."""
    norm: NormKind = "gn-ws" if state is None else "bn"
    stem: StemKind = "deep" if state is None else "imagenet"
    torch.manual_seed(0)
    detector = build_detector(architecture, CLASSES, norm=norm, stem=stem)
    if state is not None:
        detector.load_state_dict(state)
    names, ids = tuple(f"class{number}" for number in range(CLASSES)), tuple(range(1, CLASSES + 1))
    info = CheckpointInfo(str(architecture), names, ids, norm, stem, load_recipe("nano"), 0, 1)
    save_checkpoint(folder / "checkpoint.pt", Checkpoint(info, detector.state_dict()))
    export_detector(folder / "checkpoint.pt", folder / "model.onnx")
    return load_model(folder / "model.onnx", threads=threads)


Result = tuple[float, list[int], StageTimes | None]


def theirs(model: FasterRCNN) -> Callable[[Sequence[Path]], Result]:
    @torch.inference_mode()
    def run(paths: Sequence[Path]) -> Result:
        began = time.perf_counter()
        found = [len(model([_tensor(path)])[0]["scores"]) for path in paths]
        return time.perf_counter() - began, found, None

    return run


def ours(model: Model, workers: int, quick_decode: bool = False) -> Callable[[Sequence[Path]], Result]:
    options = DetectOptions(SCORE, 1, workers, quick_decode)

    def run(paths: Sequence[Path]) -> Result:
        report = detect_inputs(model, Inputs(tuple(paths)), options)
        return report.times.wall_s, [len(image.detections) for image in report.images], report.times

    return run


@torch.inference_mode()
def shared(model: FasterRCNN, file: Model, paths: Sequence[Path]) -> float:
    """The fraction of torchvision's detections that the file finds too: of that class, with an IoU above 0.9."""
    report = detect_inputs(file, Inputs(tuple(paths)), DetectOptions(SCORE, 1, 0))
    matched = total = 0
    for path, image in zip(paths, report.images, strict=True):
        found = model([_tensor(path)])[0]
        labels = torch.tensor([one.label + 1 for one in image.detections])
        overlap = box_iou(found["boxes"], torch.tensor([one.box for one in image.detections]))
        matched += int(((overlap > 0.9) & (found["labels"][:, None] == labels)).any(1).sum())
        total += len(found["boxes"])
    return matched / total


def in_turns(
    contenders: dict[str, Callable[[Sequence[Path]], Result]], groups: Sequence[Sequence[Path]]
) -> dict[str, dict[str, Any]]:
    """Images a second of each, by the median turn, and the share of each stage in the wall time of all turns."""
    for run in contenders.values():
        run(groups[0][:1])
    rounds = [take_turns({name: partial(run, group) for name, run in contenders.items()}, 1) for group in groups]
    turns = {name: [one[name][0] for one in rounds] for name in contenders}
    answer: dict[str, dict[str, Any]] = {}
    for name, results in turns.items():
        seconds = [wall / len(found) for wall, found, _ in results]
        answer[name] = {
            "images_per_s": 1 / median(seconds),
            "seconds_per_image_by_turn": seconds,
            "detections_per_image": float(np.mean([count for _, found, _ in results for count in found])),
        }
        stages = [times for _, _, times in results if times is not None]
        if stages:
            wall = sum(wall for wall, _, _ in results)
            answer[name]["share_of_wall_time"] = {
                stage: sum(getattr(times, f"{stage}_s") for times in stages) / wall
                for stage in ("decode", "preprocess", "network", "postprocess")
            }
    return answer


def ratio(found: dict[str, dict[str, Any]], fast: str, slow: str) -> dict[str, float]:
    """How many times as fast, by the median of the turns' ratios, with the smallest and the largest."""
    times = ratios(found[slow]["seconds_per_image_by_turn"], found[fast]["seconds_per_image_by_turn"])
    return {"median": median(times), "least": min(times), "most": max(times)}


def portraits(data: Path, count: int) -> list[Path]:
    """Images of the canvas's aspect ratio."""
    found = []
    for path in sorted((data / "val").glob("*.jpg")):
        with Image.open(path) as image:
            if image.width * HEIGHT == image.height * WIDTH:
                found.append(path)
    return found[:count]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--images", type=int, default=3, help="per turn")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    paths = portraits(args.data, args.turns * args.images)
    groups = [paths[turn * args.images :][: args.images] for turn in range(args.turns)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = reference(paths)
        resnet = exported(folder, Architecture.parse(RESNET18), under_our_names(model.state_dict()), args.threads)
        large = in_turns({"torchvision": theirs(model), "in turn": ours(resnet, 0), "beside": ours(resnet, 2)}, groups)
        print({name: (one["images_per_s"], one["detections_per_image"]) for name, one in large.items()}, flush=True)
        small = load_space("nano").baseline_architecture
        nano = exported(folder, small, None, args.threads)
        # a turn of the small network is repeated, or it would be too short to time
        little = in_turns({"in turn": ours(nano, 0), "beside": ours(nano, 2)}, [group * 8 for group in groups])
        photos = []
        for path in paths[: args.images]:
            photos.append(folder / path.name)
            with Image.open(path) as image:
                image.resize((3024, 4032), Image.Resampling.LANCZOS).save(photos[-1], quality=90)
        photographs = {
            kind: in_turns(
                {"in turn": ours(file, 0), "beside": ours(file, 2), "beside, quick decode": ours(file, 2, True)},
                [photos] * (args.turns // 2),
            )
            for kind, file in (("resnet18", resnet), ("nano", nano))
        }
        same = shared(model, resnet, paths[:2])
    keep_answer(
        f"detect-speed-{args.threads}-threads",
        __doc__,
        {
            "threads": args.threads,
            "images": f"{len(paths)} JPEG files of 384x512, {args.images} a turn",
            "resnet18": {
                "architecture": RESNET18,
                "share_of_torchvisions_detections_found": same,
                "times_as_fast_in_turn": ratio(large, "in turn", "torchvision"),
                "times_as_fast_beside": ratio(large, "beside", "torchvision"),
                **large,
            },
            "nano": {
                "architecture": str(small),
                "beside_against_in_turn": ratio(little, "beside", "in turn"),
                **little,
            },
            "photographs_of_12_megapixels": {
                kind: {
                    "beside_against_in_turn": ratio(found, "beside", "in turn"),
                    "quick_decode_against_whole": ratio(found, "beside, quick decode", "beside"),
                    **found,
                }
                for kind, found in photographs.items()
            },
        },
        backend="onnxruntime",
    )


if __name__ == "__main__":
    main()
