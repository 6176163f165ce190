"""Detector files as they are loaded: the same interface for both kinds, one line for files that are neither."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from profiler.errors import BackendUnavailableError, UserError
from smnas.deploy.export import ExportReport
from smnas.inference.metadata import ModelFileError, ModelMetadata
from smnas.inference.runtime import EagerDetector, OnnxDetector, load_model


def test_both_kinds_have_one_interface(
    exported: Callable[[str], ExportReport], checkpoint: Callable[[str], Path]
) -> None:
    onnx_model, eager = load_model(exported("rcnn").path, threads=1), load_model(checkpoint("rcnn"))
    assert isinstance(onnx_model, OnnxDetector)
    assert isinstance(eager, EagerDetector)
    for model in (onnx_model, eager):
        assert model.classes == ("fish", "jellyfish", "penguin")
        assert model.category_ids == (1, 4, 9)
        assert model.input_size == (96, 64)
        assert model.metadata.metrics == {"ap": 0.25, "ap50": 0.5}
        assert (model.metadata.epochs, model.metadata.seed) == (2, 3)
        found = model(np.zeros((3, 3, 64, 96), np.uint8))
        assert [array.shape[0] for array in found] == [3, 3, 3, 3]
        assert found.boxes.shape[1:] == (100, 4)
    assert "CPUExecutionProvider" in onnx_model.providers


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 64, 96), np.float32),
        np.zeros((1, 3, 96, 64), np.uint8),
        np.zeros((3, 64, 96), np.uint8),
        np.zeros((1, 64, 96, 3), np.uint8),
    ],
)
def test_a_wrong_batch_is_refused(
    images: np.ndarray, exported: Callable[[str], ExportReport], checkpoint: Callable[[str], Path]
) -> None:
    for path in (exported("rcnn").path, checkpoint("rcnn")):
        with pytest.raises(ValueError, match=r"uint8 \(B, 3, 64, 96\)"):
            load_model(path, threads=1)(images)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95, 0.999])
def test_a_truncated_file_is_one_line(exported: Callable[[str], ExportReport], tmp_path: Path, share: float) -> None:
    content = exported("rcnn").path.read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelFileError, match=r"smnas export.*model\.onnx") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_one_line(other_onnx: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("I am no model.\n" * 50)
    for path, says in (
        (text, "no ONNX file"),
        (other_onnx(tmp_path / "other.onnx"), "something else"),
        (tmp_path / "absent.onnx", "no file"),
        (tmp_path, r"\.onnx, \.tflite, \.engine or \.pt"),
        (tmp_path / "model.trt", r"\.onnx, \.tflite, \.engine or \.pt"),
        (tmp_path / "absent.engine", "there is no file"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)


def test_an_onnx_that_only_pretends_is_refused(other_onnx: Callable[..., Path], tmp_path: Path) -> None:
    metadata = ModelMetadata("a", ("x",), (1,), 96, 64, "fp32")
    path = other_onnx(tmp_path / "liar.onnx", **metadata.to_properties())
    with pytest.raises(ModelFileError, match="takes images uint8"):
        OnnxDetector(path)


def test_metadata_comes_back_and_damage_is_named() -> None:
    metadata = ModelMetadata("a+b", ("x", "ÿ\n"), (1, 2), 96, 64, "fp32", {"ap": 0.1}, 3, 4, {"torch": "2"})
    properties = metadata.to_properties()
    assert ModelMetadata.from_properties({**properties, "author": "someone"}, "m.onnx") == metadata
    for damaged, says in (
        ({**properties, "smnas.classes": "[1,"}, "damaged"),
        ({**properties, "smnas.format_version": "2"}, "format 1, but m.onnx has 2"),
        ({**properties, "smnas.colour": '"blue"'}, "one too many"),
        ({k: v for k, v in properties.items() if k != "smnas.classes"}, "lacks a property"),
        ({}, "something else"),
    ):
        with pytest.raises(ModelFileError, match=says):
            ModelMetadata.from_properties(damaged, "m.onnx")


def test_a_provider_that_is_not_there_is_refused(exported: Callable[[str], ExportReport]) -> None:
    with pytest.raises(BackendUnavailableError, match=r"CPUExecutionProvider.*but got TensorrtExecutionProvider"):
        OnnxDetector(exported("rcnn").path, providers=("TensorrtExecutionProvider", "CPUExecutionProvider"))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_falling_back_from_a_gpu_is_an_error(
    exported: Callable[[str], ExportReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("needs an ONNX Runtime that can not load its CUDA provider")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    assert OnnxDetector(exported("rcnn").path).providers == ("CPUExecutionProvider",)  # there is no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BackendUnavailableError, match="CUDAExecutionProvider, but it fell back to CPUExecution"):
        OnnxDetector(exported("rcnn").path)
