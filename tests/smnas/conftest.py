"""Small detectors with random weights, once a session: as checkpoints and as the files they are exported to."""

import math
import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from smnas.data.coco import CocoFolder
from smnas.deploy.export import ExportReport, export_detector
from smnas.evaluation.predict import DetectionArrays
from smnas.inference.metadata import ModelMetadata
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
HERE = Path(__file__).parent
SLOW_FIXTURES = {"exported", "deployed"}
"""Whole detectors are exported for them: whatever needs one is slow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a slow fixture."""
    for item in items:
        if HERE in item.path.parents and SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


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
        load_recipe("nano").with_(epochs=2),
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
def some_images(aquarium_mini: Path) -> list[NDArray[np.uint8]]:
    """16 real images."""
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
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path], some_images: list[NDArray[np.uint8]]
) -> Callable[[str], ExportReport]:
    """The export of one of ``ARCHITECTURES``, verified on the real images; made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)
    done: dict[str, ExportReport] = {}

    def find(name: str) -> ExportReport:
        if name not in done:
            kept = folder / f"{name}.pickle"
            with FileLock(folder / f"{name}.lock"):
                if not kept.exists():
                    made = export_detector(checkpoint(name), folder / f"{name}.onnx", verify_images=some_images)
                    kept.write_bytes(pickle.dumps(made))
            done[name] = pickle.loads(kept.read_bytes())
        return done[name]

    return find


@pytest.fixture
def damaged_clip(clip: Path, tmp_path: Path) -> Path:
    """The same video with nothing but zeros in place of frames 6 to 8 and from frame 10 on."""
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in (*packets[6:9], *packets[10:]):
        content[position : position + size] = bytes(size)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    return path


class RedBox:
    """A model that finds the bounding box of pure red, and half surely the whole canvas."""

    on_gpu = False

    def __init__(self, width: int = 96, height: int = 64) -> None:
        self.metadata = ModelMetadata("none", ("red", "all"), (7, 9), width, height, "fp32")
        self.classes, self.category_ids, self.input_size = ("red", "all"), (7, 9), (width, height)
        self.batches: list[int] = []

    def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (3, *self.input_size[::-1])
        self.batches.append(len(images))
        num, boxes = np.zeros(len(images), np.int64), np.zeros((len(images), 2, 4), np.float32)
        for row, image in enumerate(images):
            rows, columns = np.nonzero((image[0] > 200) & (image[1] < 50))
            if len(rows):
                num[row] = 2
                boxes[row, 0] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                boxes[row, 1] = 0, 0, *self.input_size
        scores = np.where(num[:, None] > 0, np.array([[0.9, 0.5]], np.float32), 0).astype(np.float32)
        return DetectionArrays(num, boxes, scores, np.tile(np.array([0, 1]), (len(images), 1)))


@pytest.fixture
def red_box() -> RedBox:
    """A stand-in for a detector whose answer is plain to see."""
    return RedBox()


@pytest.fixture(scope="session")
def red_image() -> Callable[..., Image.Image]:
    """A gray image with a red rectangle at ``(x1, y1, x2, y2)``: ``(width, height, box)``."""

    def make(width: int = 480, height: int = 200, box: tuple[int, int, int, int] = (100, 40, 200, 160)) -> Image.Image:
        image = Image.new("RGB", (width, height), "gray")
        image.paste((255, 0, 0), box)
        return image

    return make


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, red_image: Callable[..., Image.Image]) -> Path:
    """A video of 12 frames in which a red square of 40 pixels moves 8 pixels a frame; a pause after frame 5."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    container = av.open(str(path), "w")
    stream = container.add_stream("mpeg4", rate=10)
    stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 192, 128, "yuv420p", 4_000_000
    stream.codec_context.time_base = Fraction(1, 10)
    for index in range(12):
        frame = av.VideoFrame.from_image(red_image(192, 128, (8 + 8 * index, 40, 48 + 8 * index, 80)))
        frame.pts, frame.time_base = index + (4 if index > 5 else 0), Fraction(1, 10)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()
    return path
