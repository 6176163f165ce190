"""Small detectors with random weights, once a session: as checkpoints and as the files they are exported to."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from smnas.data.coco import CocoFolder
from smnas.deploy.export import ExportReport, export_detector
from smnas.models.build import build_detector
from smnas.models.detector import OneStageDetector
from smnas.space.architecture import Architecture
from smnas.training.checkpoint import Checkpoint, CheckpointInfo, save_checkpoint
from smnas.training.recipe import load_recipe

ARCHITECTURES = {
    "rcnn": "basicblock_8_1-1-2+fpn_2-4_16+rpn+rcnn_16+96x64",
    "retina": "basicblock_8_1-1-2+fpn_3-4_16+norpn+retina_16_1+64x96",
    "fcos": "basicblock_8_1-1-2+fpn_2-4_16+norpn+fcos_16_1+96x64",
    "garpn": "basicblock_8_1-1-2+fpn_2-4_16+garpn+cascade_2_16+96x64",
    "cascade": "basicblock_8_1-1-2-1+c4+rpn+cascade_2_16+128x96",
}
CLASSES = ("fish", "jellyfish", "penguin")
CATEGORY_IDS = (1, 4, 9)


def write_checkpoint(
    path: Path,
    architecture: str,
    classes: tuple[str, ...] = CLASSES,
    category_ids: tuple[int, ...] = CATEGORY_IDS,
) -> Path:
    """A detector whose scores and boxes differ as a trained one's do, so that there is something to compare."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        detector = build_detector(Architecture.parse(architecture), len(classes))
    state = detector.state_dict()
    for name, value in state.items():
        if name.endswith(("logits.weight", "objectness.weight", "rpn.location.weight", "rpn.shape.weight")):
            # A fresh one is so small that all scores nearly tie; a much larger one saturates at 1 and ties there.
            value.mul_(30.0)
        if name.endswith(("deltas.weight", "distances.weight")):
            value.mul_(3.0)
        if isinstance(detector, OneStageDetector) and name.endswith("logits.bias"):
            value.add_(4.0)  # a fresh focal-loss head starts at a score of 0.01 everywhere
    info = CheckpointInfo(
        architecture,
        classes,
        category_ids,
        "gn-ws",
        "deep",
        load_recipe("nano"),
        seed=3,
        train_images=10,
        epoch=2,
        metrics={"ap": 0.25, "ap50": 0.5, "ap_small": math.nan},
    )
    save_checkpoint(path, Checkpoint(info, state))
    return path


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """Writes a small detector's checkpoint: ``(path, architecture, classes, category_ids)``."""
    return write_checkpoint


@pytest.fixture(scope="session")
def pictures(aquarium_mini: Path) -> list[NDArray[np.uint8]]:
    """16 real pictures."""
    folder = CocoFolder(aquarium_mini)
    return [folder.split(name).image(index) for name in ("train", "val") for index in range(8)]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of one of ``ARCHITECTURES``."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def find(name: str) -> Path:
        path = folder / f"{name}.pt"
        return path if path.exists() else write_checkpoint(path, ARCHITECTURES[name])

    return find


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path], pictures: list[NDArray[np.uint8]]
) -> Callable[[str], ExportReport]:
    """The export of one of ``ARCHITECTURES``, verified on the real pictures."""
    folder = tmp_path_factory.mktemp("exported")
    done: dict[str, ExportReport] = {}

    def find(name: str) -> ExportReport:
        if name not in done:
            done[name] = export_detector(checkpoint(name), folder / f"{name}.onnx", verify_images=pictures)
        return done[name]

    return find
