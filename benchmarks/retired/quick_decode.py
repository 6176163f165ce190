"""Does a detector find the same when large images are read or resized in cheaper ways?

A detector that has learned a small data set by heart looks at its own images, enlarged to photographs with a sensor's
noise: decoded whole and resized in one step, and otherwise.

- `gap_4` and others: whole squares are averaged first, so that as many pixels a side are left for one of the canvas. 4
  is what every image is resized by.
- `margin_4` and others: JPEG files decoded at a fraction of their size (`--quick-decode`), so that as many pixels are
  left; 4 is the least that is taken.
- As controls: a copy that was saved once more at quality 92, and canvases of which one value in ten or in a hundred is
  a gray level off.

    python -m benchmarks.training.overfit --data ../shared/data/aquarium-mini --out runs/overfit
    python -m benchmarks.retired.quick_decode --model runs/overfit/rcnn/checkpoint.pt --data runs/overfit/data
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common.answers import keep_answer
from smnas.data import image as image_module
from smnas.data import letterbox as letterbox_module
from smnas.data.coco import CocoFolder, DetectionDataset
from smnas.data.image import Decoded, decode
from smnas.data.letterbox import letterbox
from smnas.deploy.agreement import box_iou
from smnas.evaluation.coco_eval import evaluate_results
from smnas.inference.detections import Detection, named_detections
from smnas.inference.runtime import Model, load_model

ENLARGED = 12
NOISE = 6.0
SCORE = 0.3
Decode = Callable[[Path], Decoded]
Seen = tuple[NDArray[np.uint8], list[tuple[Detection, ...]]]


def photograph(pixels: NDArray[np.uint8], path: Path, rng: np.random.Generator) -> Path:
    height, width = pixels.shape[:2]
    large = Image.fromarray(pixels).resize((width * ENLARGED, height * ENLARGED), Image.Resampling.LANCZOS)
    noisy = np.asarray(large) + rng.normal(0, NOISE, (large.height, large.width, 3)).astype(np.float32)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def saved_again(path: Path) -> Decoded:
    copy = io.BytesIO()
    decode(path).image.save(copy, "JPEG", quality=92)
    return Decoded(Image.open(copy).convert("RGB"))


def quickly(model: Model, margin: int) -> Decode:
    def run(path: Path) -> Decoded:
        image_module._MARGIN = margin
        return decode(path, canvas=model.input_size)

    return run


def look(
    model: Model, paths: list[Path], decode_one: Decode = decode, gap: float | None = None, noise: float = 0.0
) -> tuple[Seen, dict[str, object]]:
    """Canvases, detections in pixels of the images before they were enlarged, and what was done to the images.

    Args:
        model: The detector.
        paths: Photographs.
        decode_one: How they are decoded.
        gap: How they are resized.
        noise: Share of the canvas's values that are a gray level off.
    """
    canvases, found, reductions = [], [], []
    letterbox_module._GAP = gap
    rng = np.random.default_rng(0)
    resize_s = 0.0
    for path in paths:
        decoded = decode_one(path)
        decoded.image.load()
        began = time.process_time()
        canvas, scale = letterbox(decoded.image, *model.input_size)
        resize_s += time.process_time() - began
        off = rng.choice([-1, 1], canvas.shape) * (rng.random(canvas.shape) < noise)
        canvas = (canvas + off).clip(0, 255).astype(np.uint8)
        size = (decoded.size[0] // ENLARGED, decoded.size[1] // ENLARGED)
        arrays = model(np.ascontiguousarray(canvas.transpose(2, 0, 1))[None])
        canvases.append(canvas)
        found.append(named_detections(model, arrays, 0, scale / decoded.reduction * ENLARGED, size, 0.0))
        reductions.append(decoded.reduction)
    facts = {"reductions": sorted(set(reductions)), "resize_processor_ms": resize_s / len(paths) * 1e3}
    return (np.stack(canvases), found), facts


def ap(split: DetectionDataset, found: list[tuple[Detection, ...]]) -> dict[str, float]:
    results = [
        {
            "image_id": image_id,
            "category_id": one.category_id,
            "bbox": [one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]],
            "score": one.score,
        }
        for image_id, detections in zip(split.image_ids, found, strict=True)
        for one in detections
    ]
    metrics = evaluate_results(split.ground_truth(), results).as_dict()  # type: ignore[arg-type]
    return {"ap": metrics["ap"], "ap50": metrics["ap50"]}


def difference(whole: Seen, other: Seen) -> dict[str, float]:
    """Of the canvases in gray levels; of detections with a score of 0.3 or more, each with its nearest partner."""
    levels = np.abs(whole[0].astype(int) - other[0])
    overlaps, scores = [], []
    for first, second in zip(whole[1], other[1], strict=True):
        for one in (one for one in first if one.score >= SCORE):
            same = [two for two in second if two.name == one.name]
            boxes = np.array([two.box for two in same], np.float32).reshape(-1, 4)
            overlap = box_iou(np.array([one.box], np.float32), boxes)[0]
            best = int(overlap.argmax()) if same else -1
            overlaps.append(float(overlap[best]) if same else 0.0)
            scores.append(abs(same[best].score - one.score) if same else one.score)
    return {
        "gray_levels_mean": float(levels.mean()),
        "gray_levels_most": int(levels.max()),
        "detections": len(overlaps),
        "visibly_different": sum(o < 0.9 or s > 0.05 for o, s in zip(overlaps, scores, strict=True)),
        "iou_median": float(np.median(overlaps)),
        "iou_lowest_twentieth": float(np.percentile(overlaps, 5)),
        "score_difference_highest_twentieth": float(np.percentile(scores, 95)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(asked.model)
    split = CocoFolder(asked.data).split("train")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [photograph(split.image(i), Path(folder) / split.path(i).name, rng) for i in range(len(split))]
        whole, facts = look(model, paths)
        answer: dict[str, object] = {
            "architecture": model.metadata.architecture,
            "whole": {**facts, **ap(split, whole[1])},
        }
        ways: dict[str, dict[str, Any]] = {
            "one_level_in_a_hundred": {"noise": 0.01},
            "one_level_in_ten": {"noise": 0.1},
            "saved_again": {"decode_one": saved_again},
            **{f"gap_{gap}": {"gap": float(gap)} for gap in (8, 6, 4, 3, 2)},
            **{f"margin_{margin}": {"decode_one": quickly(model, margin), "gap": 4.0} for margin in (8, 4, 2)},
        }
        for name, way in ways.items():
            other, facts = look(model, paths, **way)
            answer[name] = {**facts, **ap(split, other[1]), **difference(whole, other)}
            print(name, answer[name], flush=True)
    question = (__doc__ or "").partition("\n")[0]
    keep_answer("quick-decode", question, {"images": f"{len(split)} of 2304x3072", **answer})


if __name__ == "__main__":
    main()
