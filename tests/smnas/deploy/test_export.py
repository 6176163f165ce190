"""Exported files against the checkpoints they came from, on real images."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.deploy import export as export_module
from smnas.deploy import graph as graph_module
from smnas.deploy.export import ExportMismatchError, ExportReport, canvases, export_detector
from smnas.evaluation.predict import evaluate
from smnas.inference.runtime import EagerDetector, OnnxDetector
from smnas.models.build import deployable
from smnas.models.detector import Detector
from smnas.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.mark.parametrize("name", ["rcnn", "retina", "fcos", "garpn", "cascade"])
def test_every_head_finds_what_eager_finds_on_real_images(
    name: str,
    exported: Callable[[str], ExportReport],
    checkpoint: Callable[[str], Path],
    some_images: list[NDArray[np.uint8]],
) -> None:
    report = exported(name)
    assert report.agreement.compared > 500  # the check compared something
    model, eager = OnnxDetector(report.path, threads=1), EagerDetector(checkpoint(name))
    batch = canvases(some_images, *model.input_size)
    found, expected = model(batch), eager(batch)
    # One swap at most: of two boxes whose scores tie to the last bits, NMS keeps either by chance.
    assert report.agreement.differing <= 2
    # By rows, without the check's own matching.
    np.testing.assert_array_equal(found.num, expected.num)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    same = (np.abs(found.boxes - expected.boxes).max(-1) < 0.05) & (found.labels == expected.labels)
    assert same.mean() > 0.99
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.num.dtype == found.labels.dtype == np.int64


def test_a_file_that_openvino_checks_is_the_same_file(
    exported: Callable[[str], ExportReport],
    checkpoint: Callable[[str], Path],
    some_images: list[NDArray[np.uint8]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    of_onnxruntime = exported("fcos")
    graph = onnx.load(of_onnxruntime.path)
    monkeypatch.setattr(export_module, "detector_graph", lambda *_: graph)  # tracing is slow
    monkeypatch.setattr(export_module, "OnnxDetector", lambda *_, **__: pytest.fail("ran in ONNX Runtime"))
    report = export_detector(
        checkpoint("fcos"), tmp_path / "model.onnx", runtime="openvino", verify_images=some_images[:4]
    )
    assert report.path.read_bytes() == of_onnxruntime.path.read_bytes()
    assert report.agreement.holds
    assert report.agreement.compared > 100


def test_the_file_says_what_it_is(exported: Callable[[str], ExportReport]) -> None:
    report = exported("rcnn")
    properties = {p.key: json.loads(p.value) for p in onnx.load(report.path).metadata_props}
    assert properties["smnas.format"] == "smnas detector"
    assert properties["smnas.format_version"] == 1
    assert properties["smnas.architecture"] == "basicblock_8_1-1-2+fpn_2-4_16+rpn+rcnn_16+96x64"
    assert properties["smnas.classes"] == ["fish", "jellyfish", "penguin"]
    assert properties["smnas.category_ids"] == [1, 4, 9]
    assert (properties["smnas.input_width"], properties["smnas.input_height"]) == (96, 64)
    assert properties["smnas.preprocessing"] == {
        "resize": "letterbox",
        "position": "top-left",
        "pad_value": 114,
        "channels": "RGB",
        "dtype": "uint8",
        "layout": "NCHW",
    }
    assert properties["smnas.precision"] == "fp32"
    assert properties["smnas.metrics"] == {"ap": 0.25, "ap50": 0.5}
    assert set(properties["smnas.versions"]) >= {"smnas", "torch", "onnx"}
    assert OnnxDetector(report.path).metadata == report.metadata
    assert report.size_bytes == report.path.stat().st_size


def test_the_graph_has_one_static_input_and_standard_operators(exported: Callable[[str], ExportReport]) -> None:
    model = onnx.load(exported("rcnn").path)
    (images,) = model.graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in images.type.tensor_type.shape.dim] == [1, 3, 64, 96]
    assert [output.name for output in model.graph.output] == ["num", "boxes", "scores", "labels"]
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx"}


def test_ap_of_the_file_is_ap_of_the_checkpoint(
    exported: Callable[[str], ExportReport], checkpoint: Callable[[str], Path], tmp_path: Path, aquarium_mini: Path
) -> None:
    # The images' own boxes, but of the detector's three classes.
    root = tmp_path / "data"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        document = json.loads((aquarium_mini / "annotations" / f"instances_{split}.json").read_text())
        document["categories"] = [
            {"id": i, "name": n} for i, n in zip((1, 4, 9), ("fish", "jellyfish", "penguin"), strict=True)
        ]
        for annotation in document["annotations"]:
            annotation["category_id"] = (1, 4, 9)[annotation["category_id"] % 3]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        (root / split).symlink_to(aquarium_mini / split)
    dataset = CocoFolder(root).split("val")
    model, eager = OnnxDetector(exported("rcnn").path, threads=1), EagerDetector(checkpoint("rcnn"))
    ours = evaluate(model, dataset, *model.input_size, 4).as_dict()
    theirs = evaluate(eager, dataset, *eager.input_size, 4).as_dict()
    assert ours == pytest.approx(theirs, abs=1e-3, nan_ok=True)


@pytest.mark.slow
def test_a_file_that_finds_other_objects_is_not_left_behind(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(detector: Detector) -> Detector:
        copy = deployable(detector)
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.mul_(1.1)
        return copy

    monkeypatch.setattr(graph_module, "deployable", wrong)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the export before")
    with pytest.raises(ExportMismatchError, match="differing") as caught:
        export_detector(checkpoint("retina"), out)
    assert not isinstance(caught.value, UserError)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.read_bytes() == b"the export before"


@pytest.mark.parametrize(
    ("settings", "name", "says"),
    [
        ({"precision": "bf16"}, "m.onnx", "ONNX Runtime has no bfloat16 convolution on a CPU"),
        ({"precision": "int8"}, "m.onnx", r"int8 needs images to calibrate on \(--data\)"),
        ({"precision": "fp8"}, "m.onnx", "one of fp32, fp16, bf16, int8, but got 'fp8'"),
        ({"file_format": "tflite"}, "m.onnx", "one of onnx, litert, tensorrt-rtx, tensorrt, but got 'tflite'"),
        ({"capabilities": ["8.9"]}, "m.onnx", "for --format tensorrt-rtx"),
        ({}, "m.engine", r"ends in \.onnx"),
        ({"file_format": "tensorrt-rtx"}, "m.onnx", r"ends in \.engine"),
        ({"file_format": "tensorrt"}, "m.engine", "on the GPU that it is for, but PyTorch finds no GPU"),
        ({}, "folder.onnx", "can not replace a folder"),
    ],
)
def test_what_can_not_be_exported_is_said_first(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    name: str,
    says: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match=says) as caught:
        export_detector(checkpoint("rcnn"), tmp_path / name, **settings)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None])
def test_a_bad_checkpoint_is_one_line(checkpoint: Callable[[str], Path], tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(checkpoint("rcnn").read_bytes()[:20_000] if content is None else content)
    with pytest.raises(UserError) as caught:
        export_detector(path, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_canvases_are_letterboxed_at_the_top_left() -> None:
    batch = canvases([np.full((10, 40, 3), 7, np.uint8), np.full((30, 10, 3), 9, np.uint8)], 80, 60)
    assert batch.shape == (2, 3, 60, 80)
    assert (batch[0, :, :20] == 7).all()
    assert (batch[0, :, 20:] == 114).all()
    assert (batch[1, :, :, :20] == 9).all()
    assert (batch[1, :, :, 20:] == 114).all()
    with pytest.raises(ValueError, match="at least one"):
        canvases([], 80, 60)


@pytest.mark.slow
def test_the_export_of_an_unfinished_training_says_so(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    whole = load_checkpoint(checkpoint("retina"))
    save_checkpoint(tmp_path / "c.pt", replace(whole, info=replace(whole.info, epoch=1)))
    report = export_detector(tmp_path / "c.pt", tmp_path / "m.onnx")
    assert report.notes == ("the training is not finished: epoch 1 of 2",)
