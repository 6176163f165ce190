"""The detector as a Python object: what the command finds, for every kind of image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from profiler.errors import UserError
from smnas.data.errors import DataError
from smnas.deploy.export import ExportReport
from smnas.inference.detect import detect_inputs
from smnas.inference.detector import Detector
from smnas.inference.inputs import Inputs
from smnas.inference.pipeline import DetectOptions
from smnas.inference.runtime import load_model


@pytest.fixture
def detector(exported: Callable[[str], ExportReport]) -> Detector:
    return Detector(exported("rcnn").path, score=0.05, threads=1)


def test_every_kind_of_image(detector: Detector, aquarium_mini: Path) -> None:
    path = sorted((aquarium_mini / "val").glob("*.jpg"))[0]
    with Image.open(path) as image:
        pil = image.convert("RGB")
        results = detector([path, str(path), pil, image, np.asarray(pil)])
    assert detector.classes == ("fish", "jellyfish", "penguin")
    assert len(results) == 5
    assert results[0]
    assert all(found == results[0] for found in results)
    scores = [found.score for found in results[0]]
    assert scores == sorted(scores, reverse=True)
    for found in results[0]:
        assert 0 <= found.box[0] <= found.box[2] <= pil.width
        assert 0 <= found.box[1] <= found.box[3] <= pil.height
        assert found.name == detector.classes[found.label]
    assert list(detector([])) == []
    assert detector(iter([path])) == results[:1]
    assert detector(np.stack([np.asarray(pil)] * 2)) == results[:2]


def test_a_pil_image_is_treated_as_its_file_would_be(detector: Detector, aquarium_mini: Path, tmp_path: Path) -> None:
    source = sorted((aquarium_mini / "val").glob("*.jpg"))[0]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(source) as image:
        image.save(tmp_path / "turned.png", exif=exif)
        image.convert("L").save(tmp_path / "gray.png")
    deep = np.linspace(0, 65535, 60 * 80).reshape(60, 80).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name in ("turned.png", "gray.png", "deep.png"):
        with Image.open(tmp_path / name) as image:
            from_file, from_image = detector([tmp_path / name, image])
        assert from_file == from_image, name


@pytest.mark.parametrize(("kind", "batch"), [("onnx", 1), ("onnx", 3), ("checkpoint", 1), ("checkpoint", 4)])
def test_the_class_and_the_command_agree_in_batches(
    kind: str,
    batch: int,
    exported: Callable[[str], ExportReport],
    checkpoint: Callable[[str], Path],
    aquarium_mini: Path,
) -> None:
    paths = sorted((aquarium_mini / "val").glob("*.jpg"))[:5]
    file = exported("rcnn").path if kind == "onnx" else checkpoint("rcnn")
    report = detect_inputs(load_model(file, threads=1), Inputs(tuple(paths)), DetectOptions(0.05, 1, 0))
    detector = Detector(file, score=0.05, threads=1, batch=batch)
    found = detector(paths)
    assert detector.times.images == 5
    for image, objects in zip(report.images, found, strict=True):
        assert [one.name for one in objects] == [one.name for one in image.detections]
        for one, expected in zip(objects, image.detections, strict=True):
            assert one.score == pytest.approx(expected.score, abs=1e-4)
            assert one.box == pytest.approx(expected.box, abs=0.05)


def test_a_video_frame_by_frame(detector: Detector, clip: Path) -> None:
    (expected,) = detect_inputs(detector.model, Inputs(videos=(clip,)), DetectOptions(0.05)).videos
    frames = list(detector.frames(clip))
    assert [frame.index for frame in frames] == list(range(12))
    assert [(frame.time_s, frame.detections) for frame in frames] == [
        (frame.time_s, frame.detections) for frame in expected.frames
    ]
    assert frames[0].image.size == (192, 128)
    running = detector.frames(clip)
    assert next(running).index == 0
    running.close()
    assert [list(one) for one in detector([frames[3].image])] == [list(frames[3].detections)]


def test_a_damaged_video_says_so_after_its_frames(detector: Detector, damaged_clip: Path) -> None:
    seen = []
    with pytest.raises(UserError, match=r"damaged\.mp4"):
        seen.extend(frame.index for frame in detector.frames(damaged_clip))
    assert seen[:6] == list(range(6))


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), 3, None]
)
def test_what_is_no_image_is_refused(detector: Detector, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"uint8 \(H, W, 3\)"):
        detector([wrong])


def test_one_image_comes_in_a_list(detector: Detector, tmp_path: Path) -> None:
    for one in ("photo.jpg", Path("photo.jpg"), Image.new("RGB", (3, 2))):
        with pytest.raises(TypeError, match=r"\[image\] for one"):
            detector(one)  # type: ignore[arg-type]
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg"):
        detector([tmp_path / "text.jpg"])


def test_large_images_decoded_quickly_give_nearly_the_same(
    exported: Callable[[str], ExportReport], aquarium_mini: Path, tmp_path: Path
) -> None:
    """Photographs enlarged to 16 times the canvas: the detector gets pixels that differ by a few levels at most."""
    file = exported("rcnn").path
    for path in sorted((aquarium_mini / "val").glob("*.jpg"))[:4]:
        with Image.open(path) as image:
            image.resize((1152, 1536), Image.Resampling.BICUBIC).save(tmp_path / path.name, quality=90)
    paths = sorted(tmp_path.glob("*.jpg"))
    whole = Detector(file, score=0.2, threads=1)(paths)
    quick = Detector(file, score=0.2, threads=1, quick_decode=True)(paths)
    assert whole != quick  # it was decoded another way
    matched = total = 0
    for first, second in zip(whole, quick, strict=True):
        total += len(first)
        matched += sum(
            any(a.name == b.name and max(abs(x - y) for x, y in zip(a.box, b.box, strict=True)) < 24 for b in second)
            for a in first
        )
    assert total > 20
    assert matched >= 0.8 * total  # random weights are more easily moved than trained ones
    model, inputs, options = load_model(file, threads=1), Inputs(tuple(paths)), DetectOptions(0.2, quick_decode=True)
    report = detect_inputs(model, inputs, options)
    assert [list(image.detections) for image in report.images] == quick
    drawn = detect_inputs(model, inputs, options, out_dir=tmp_path / "out")
    assert [list(image.detections) for image in drawn.images] == whole
    with Image.open(tmp_path / "out" / paths[0].name) as image:
        assert image.size == (1152, 1536)
