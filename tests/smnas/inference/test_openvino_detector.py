"""Exported files in OpenVINO: what PyTorch and ONNX Runtime find, under the number of threads asked for."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from profiler.errors import BackendUnavailableError, UserError
from smnas.data.coco import CocoFolder
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import ExportReport, canvases
from smnas.evaluation.predict import DetectionArrays
from smnas.inference.detector import Detector
from smnas.inference.metadata import ModelFileError, ModelMetadata
from smnas.inference.runtime import OpenVinoDetector, load_model

pytest.importorskip("openvino", reason="needs OpenVINO (extra openvino)")


@pytest.fixture(scope="module")
def all_images(aquarium_mini: Path) -> list[NDArray[np.uint8]]:
    """All 48 images, training and validation."""
    splits = [CocoFolder(aquarium_mini).split(name) for name in ("train", "val")]
    return [split.image(index) for split in splits for index in range(len(split))]


@pytest.mark.parametrize("name", ["rcnn", "retina", "fcos", "garpn", "cascade"])
def test_every_head_finds_what_it_finds_in_pytorch(
    name: str,
    exported: Callable[[str], ExportReport],
    checkpoint: Callable[[str], Path],
    all_images: list[NDArray[np.uint8]],
) -> None:
    model, eager = load_model(exported(name).path, runtime="openvino", threads=1), load_model(checkpoint(name))
    assert isinstance(model, OpenVinoDetector)
    assert model.metadata == exported(name).metadata
    images = canvases(all_images, *model.input_size)
    assert len(images) == 48
    expected = [eager(images[index : index + 1]) for index in range(48)]
    found = model(images)
    agreement = compare_detections(DetectionArrays(*map(np.concatenate, zip(*expected, strict=True))), found)
    assert agreement.holds, agreement
    assert agreement.differing <= 4  # overlapping boxes whose scores tie to the last bits
    assert agreement.compared > 1000
    assert found.num.dtype == found.labels.dtype == np.int64
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_a_detector_runs_in_openvino_on_as_many_threads(
    exported: Callable[[str], ExportReport], some_images: list[NDArray[np.uint8]]
) -> None:
    path = exported("rcnn").path
    usual = Detector(path, score=0.05, threads=1)(some_images)
    for threads in (1, 2):
        detector = Detector(path, runtime="openvino", score=0.05, threads=threads)
        assert isinstance(detector.model, OpenVinoDetector)
        compiled = detector.model._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
        assert compiled.get_property("NUM_STREAMS") == 1
        for ours, theirs in zip(detector(some_images), usual, strict=True):
            assert [one.name for one in ours] == [one.name for one in theirs]
            np.testing.assert_allclose([one.box for one in ours], [one.box for one in theirs], atol=1e-2)


def test_one_detector_serves_several_threads(
    exported: Callable[[str], ExportReport], some_images: list[NDArray[np.uint8]]
) -> None:
    model = load_model(exported("rcnn").path, runtime="openvino", threads=1)
    images = canvases(some_images, *model.input_size)
    expected = model(images)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(model, [images] * 8):
            np.testing.assert_array_equal(found.boxes, expected.boxes)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.95, 0.999])
def test_a_truncated_file_is_one_line(exported: Callable[[str], ExportReport], tmp_path: Path, share: float) -> None:
    content = exported("rcnn").path.read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelFileError, match=r"smnas export.*model\.onnx is damaged, cut off") as caught:
        load_model(path, runtime="openvino")
    assert "\n" not in str(caught.value)


def test_other_files_devices_and_runtimes_are_one_line(
    other_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = ModelMetadata("a", ("x",), (1,), 96, 64, "fp32")
    other, liar = other_onnx(tmp_path / "other.onnx"), other_onnx(tmp_path / "liar.onnx", **metadata.to_properties())
    checkpoint = tmp_path / "checkpoint.pt"
    for path, options, says in (
        (tmp_path / "absent.onnx", {}, "there is no file"),
        (other, {}, "something else"),
        (liar, {}, "takes images uint8"),
        (other, {"device": "abacus"}, "OpenVINO runs on cpu.* here, but got 'abacus'"),
        (other, {"runtime": "abacus"}, "a runtime is one of onnxruntime, openvino, litert, but got 'abacus'"),
        (checkpoint, {}, r"openvino runs \.onnx files .*, but got checkpoint\.pt"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            load_model(path, **{"runtime": "openvino", **options})
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailableError, match=r"openvino is not installed .*pip install 'smnas\[openvino\]'"):
        load_model(other, runtime="openvino")
