"""A detector over a split: what comes out is in the images' own pixels and the files' own category ids."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from smnas.data.coco import CocoFolder, DetectionDataset
from smnas.data.loader import eval_batches
from smnas.evaluation.coco_eval import CocoResult
from smnas.evaluation.predict import DetectFunction, DetectionArrays, coco_results, eager_detect, evaluate
from smnas.models.target import Detections

COLOURS = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}
CATEGORIES = (4, 9, 17)


def write(root: Path) -> Path:
    """Seven black images of different sizes, each with one painted box for each of the three classes."""
    rng = np.random.default_rng(1)
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(7):
            width, height = (int(side) for side in rng.integers(150, 500, size=2))
            pixels = np.zeros((height, width, 3), dtype=np.uint8)
            for label, colour in COLOURS.items():
                x1, x2 = int(width * (label / 3 + 0.05)), int(width * (label / 3 + 0.28))
                y1, y2 = int(height * 0.3), int(height * 0.8)
                pixels[y1:y2, x1:x2] = colour
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": 50 - index,
                        "category_id": CATEGORIES[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                    }
                )
            Image.fromarray(pixels).save(root / split / f"{index}.png")
            images.append({"id": 50 - index, "file_name": f"{index}.png", "width": width, "height": height})
        categories = [{"id": category, "name": f"c{category}"} for category in CATEGORIES]
        (root / "annotations" / f"instances_{split}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    return CocoFolder(write(tmp_path_factory.mktemp("predict") / "data")).split("val")


def see_colours(images: NDArray[np.uint8]) -> DetectionArrays:
    """A perfect detector of the painted boxes, two rows of padding after them."""
    boxes = np.zeros((len(images), 5, 4), dtype=np.float32)
    scores = np.zeros((len(images), 5), dtype=np.float32)
    labels = np.zeros((len(images), 5), dtype=np.int64)
    num = np.zeros(len(images), dtype=np.int64)
    for row, image in enumerate(images):
        for label in COLOURS:
            # The share of a pixel that the resampling left in the colour puts the edge within it.
            others = [plane for plane in range(3) if plane != label]
            strength = image[label] / 255.0 * (image[others].max(axis=0) < 60)
            columns, rows = strength.max(axis=0), strength.max(axis=1)
            if not (columns > 0.9).any():
                continue
            boxes[row, num[row]] = [*edges(columns)[:1], *edges(rows)[:1], *edges(columns)[1:], *edges(rows)[1:]]
            scores[row, num[row]], labels[row, num[row]] = 0.9 - 0.1 * label, label
            num[row] += 1
    return DetectionArrays(num, boxes, scores, labels)


def edges(profile: NDArray[np.float64]) -> tuple[float, float]:
    full = np.flatnonzero(profile > 0.99)
    first, last = int(full[0]), int(full[-1])
    return first - float(profile[:first].sum()), last + 1 + float(profile[last + 1 :].sum())


def results_of(detect: DetectFunction, split: DetectionDataset, width: int, height: int, size: int) -> list[CocoResult]:
    batches = eval_batches(split, width, height, size)
    return [one for batch in batches for one in coco_results(detect(batch.images), batch, split.category_ids)]


def test_a_perfect_detector_is_found_perfect(val: DetectionDataset) -> None:
    seen: list[tuple[int, int]] = []
    metrics = evaluate(see_colours, val, 128, 96, 3, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert metrics.ap > 0.95
    assert metrics.ap75 == pytest.approx(1.0)


def test_results_are_in_the_images_pixels_and_the_files_ids(val: DetectionDataset) -> None:
    results = results_of(see_colours, val, 128, 96, 3)
    assert len(results) == 21
    truth = val.ground_truth()
    for result in results:
        (expected,) = truth.loadAnns(truth.getAnnIds(imgIds=[result["image_id"]], catIds=[result["category_id"]]))
        np.testing.assert_allclose(result["bbox"], expected["bbox"], atol=4)
    assert {round(result["score"], 4) for result in results} == {0.9, 0.8, 0.7}
    json.dumps(results)  # plain numbers only


def test_wrong_classes_score_nothing(val: DetectionDataset) -> None:
    def rotated(images: NDArray[np.uint8]) -> DetectionArrays:
        found = see_colours(images)
        return found._replace(labels=(found.labels + 1) % 3)

    assert evaluate(rotated, val, 128, 96, 3).ap == 0


def test_a_silent_detector_scores_zero(val: DetectionDataset) -> None:
    def silent(images: NDArray[np.uint8]) -> DetectionArrays:
        return see_colours(images)._replace(num=np.zeros(len(images), dtype=np.int64))

    assert results_of(silent, val, 64, 64, 4) == []
    assert evaluate(silent, val, 64, 64, 4).ap == 0


def test_boxes_are_clipped_to_the_image(val: DetectionDataset) -> None:
    def everything(images: NDArray[np.uint8]) -> DetectionArrays:
        one = np.ones((len(images), 1))
        boxes = np.tile(np.array([[[-10, -10, 999, 999]]], dtype=np.float32), (len(images), 1, 1))
        return DetectionArrays(
            np.ones(len(images), dtype=np.int64), boxes, one.astype(np.float32), np.zeros((len(images), 1), np.int64)
        )

    for index, result in enumerate(results_of(everything, val, 64, 64, 4)):
        assert result["bbox"] == [0, 0, *map(float, val.size(index))]


class Ramp(nn.Module):
    """Answers with what it was given, so that the way there and back can be checked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Detections:
        assert not self.training
        assert images.dtype == torch.uint8
        batch = len(images)
        value = images.float().mean(dim=(1, 2, 3)) * self.weight
        return Detections(
            torch.ones(batch, dtype=torch.int64),
            value[:, None, None].expand(batch, 2, 4),
            value[:, None].expand(batch, 2),
            torch.zeros(batch, 2, dtype=torch.int64),
        )


@pytest.mark.parametrize("training", [True, False])
def test_an_eager_detector_runs_in_evaluation_mode_and_is_left_as_it_was(training: bool) -> None:
    model = Ramp().train(training)
    found = eager_detect(model, "cpu")(np.full((2, 3, 4, 4), 7, dtype=np.uint8))
    assert model.training is training
    assert isinstance(found, DetectionArrays)
    assert [array.dtype for array in found] == [np.int64, np.float32, np.float32, np.int64]
    np.testing.assert_array_equal(found.boxes, np.full((2, 2, 4), 7))


@pytest.mark.slow
def test_a_real_detector_goes_the_whole_way(aquarium_mini: Path) -> None:
    from smnas.models.build import build_detector
    from smnas.space.architecture import Architecture

    torch.manual_seed(0)
    val = CocoFolder(aquarium_mini).split("val")
    detector = build_detector(Architecture.parse("basicblock_8_1-2+fpn_2-3_16+norpn+retina_16_1+64x64"), 7)
    metrics = evaluate(eager_detect(detector, "cpu"), val, 64, 64, 8)
    assert 0 <= metrics.ap < 0.2  # it has learned nothing
