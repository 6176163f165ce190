"""Exported files in LiteRT: one file with everything up to NMS, which finds what PyTorch finds."""

import importlib.util
import io
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import canvases, export_detector
from smnas.evaluation.predict import DetectionArrays
from smnas.inference.detector import Detector
from smnas.inference.metadata import ModelMetadata
from smnas.inference.runtime import LiteRtDetector, load_model
from smnas.inference.runtime_litert import with_metadata

METADATA = ModelMetadata("a", ("x",), (1,), 96, 64, "fp32")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is None, reason="needs LiteRT and its converter (extra litert)"
)
@pytest.mark.parametrize("name", ["rcnn", "retina", "fcos", "garpn", "cascade"])
def test_every_head_finds_what_it_finds_in_pytorch(
    name: str, checkpoint: Callable[[str], Path], aquarium_mini: Path, tmp_path: Path
) -> None:
    splits = [CocoFolder(aquarium_mini).split(half) for half in ("train", "val")]
    originals = [split.image(index) for split in splits for index in range(len(split))]
    path = tmp_path / "model.tflite"
    report = export_detector(checkpoint(name), path, file_format="litert", verify_images=originals[:4])
    assert report.agreement.holds
    model, eager = load_model(path, threads=1), load_model(checkpoint(name))
    assert isinstance(model, LiteRtDetector)
    assert model.metadata == report.metadata
    images = canvases(originals, *model.input_size)
    expected = [eager(images[index : index + 1]) for index in range(48)]
    found = model(images)
    agreement = compare_detections(DetectionArrays(*map(np.concatenate, zip(*expected, strict=True))), found)
    assert agreement.holds, agreement
    assert agreement.differing <= 4  # overlapping boxes whose scores tie to the last bits
    assert agreement.compared > 1000
    assert found.num.dtype == found.labels.dtype == np.int64
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(model, [images[:2]] * 4):
            np.testing.assert_array_equal(again.boxes, found.boxes[:2])
    two = Detector(path, runtime="litert", threads=2, score=0.05)(originals[:2])
    assert [len(one) for one in two] == [len(one) for one in Detector(path, score=0.05)(originals[:2])]


def test_the_metadata_follows_the_model_and_is_an_ordinary_archive() -> None:
    content = with_metadata(b"TFL3 model", METADATA)
    assert content == with_metadata(b"TFL3 model", METADATA)
    assert content.startswith(b"TFL3 model")
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == ["smnas.json"]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (None, {}, r"smnas export.*there is no file"),
        (b"", {}, r"smnas export.*model\.tflite is damaged or something else"),
        (b"TFL3 model", {}, r"model\.tflite is damaged or something else"),
        (with_metadata(b"TFL3 model", METADATA)[:-1], {}, r"model\.tflite is damaged or something else"),
        (with_metadata(b"TFL3 model", METADATA), {}, r"LiteRT can not load|pip install 'smnas\[litert\]'"),
        (b"", {"runtime": "openvino"}, r"openvino runs \.onnx files .*, but got model\.tflite"),
        (b"", {"threads": 0}, r"threads must be an integer of at least 1, but got 0"),
        (b"", {"threads": 1.5}, r"threads must be an integer of at least 1, but got 1\.5"),
    ],
)
def test_other_files_and_options_are_one_line(
    content: bytes | None, options: dict[str, object], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        load_model(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_litert_file_is_float32_and_runs_in_litert(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for options, says in (
        ({"precision": "int8"}, "a litert file is fp32, but got 'int8'"),
        ({"runtime": "openvino"}, "runtime of litert files is litert, but got 'openvino'"),
    ):
        with pytest.raises(UserError, match=says):
            export_detector(checkpoint("fcos"), tmp_path / "m.tflite", file_format="litert", **options)  # type: ignore[arg-type]
