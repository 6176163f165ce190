"""Files of several images a run: every image's boxes are those that it has alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from kernels.onnx_ops import Operators
from profiler.errors import UserError
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import ExportReport, canvases, export_detector
from smnas.deploy.graph import detector_graph
from smnas.evaluation.predict import DetectionArrays
from smnas.inference.detect import detect_inputs
from smnas.inference.detections import Detection
from smnas.inference.detector import Detector
from smnas.inference.inputs import Inputs
from smnas.inference.pipeline import DetectOptions
from smnas.inference.runtime import EagerDetector, OnnxDetector, load_model
from smnas.training.checkpoint import load_detector_checkpoint

BATCH = 4


@pytest.fixture(scope="module")
def of_four(
    checkpoint: Callable[[str], Path], some_images: list[NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory
) -> OnnxDetector:
    path = tmp_path_factory.mktemp("batch") / "model.onnx"
    report = export_detector(checkpoint("rcnn"), path, batch=BATCH, verify_images=some_images)
    assert report.metadata.batch == BATCH
    return OnnxDetector(path, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "operators"),
    [
        ("rpn+rcnn_16", "native"),
        ("garpn+cascade_2_16", "plain"),
        ("norpn+retina_16_1", "plain"),
        ("norpn+fcos_16_1", "native"),
    ],
)
def test_every_head_finds_in_a_batch_what_it_finds_one_by_one(
    head: str,
    operators: Operators,
    make_checkpoint: Callable[..., Path],
    some_images: list[NDArray[np.uint8]],
    tmp_path: Path,
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint.pt", f"basicblock_8_1-2+fpn_2-3_16+{head}+64x64")
    detector, _ = load_detector_checkpoint(checkpoint)
    graph = detector_graph(detector, operators, BATCH)
    values = {value.name: value.type.tensor_type.shape.dim for value in (*graph.graph.input, *graph.graph.output)}
    assert {sizes[0].dim_value for sizes in values.values()} == {BATCH}
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    eager = EagerDetector(checkpoint)
    images = canvases(some_images[: 2 * BATCH], *eager.input_size)
    batches = [session.run(None, {"images": images[start : start + BATCH]}) for start in (0, BATCH)]
    found = DetectionArrays(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
    alone = [eager(images[row : row + 1]) for row in range(len(images))]
    expected = DetectionArrays(*(np.concatenate(arrays) for arrays in zip(*alone, strict=True)))
    agreement = compare_detections(expected, found)
    assert agreement.compared > 250
    assert agreement.differing <= 2
    shuffled = DetectionArrays(*(np.roll(array, 1, axis=0) for array in found))
    assert compare_detections(expected, shuffled).differing > agreement.compared / 2  # the order of images counts


def test_the_last_run_is_filled_up_and_only_given_images_answer(
    of_four: OnnxDetector, exported: Callable[[str], ExportReport], some_images: list[NDArray[np.uint8]]
) -> None:
    images = canvases(some_images, *of_four.input_size)
    one = OnnxDetector(exported("rcnn").path, threads=1)
    for count in (1, 3, 4, 6):
        found = of_four(images[:count])
        assert [len(array) for array in found] == [count] * 4
        assert compare_detections(one(images[:count]), found).differing == 0
    with pytest.raises(ValueError, match="at least one image"):
        of_four(images[:0])


@pytest.mark.slow
def test_any_folder_goes_through_any_batch(
    of_four: OnnxDetector, exported: Callable[[str], ExportReport], aquarium_mini: Path, tmp_path: Path
) -> None:
    paths = sorted((aquarium_mini / "val").glob("*.jpg"))[:6]
    (tmp_path / "text.jpg").write_text("no image")
    paths.insert(2, tmp_path / "text.jpg")
    reference = detect_inputs(load_model(exported("rcnn").path, threads=1), Inputs(tuple(paths)), DetectOptions(0.05))
    expected = [image.detections for image in reference.images if image.error is None]
    for batch in (None, 1, 3, 8):
        report = detect_inputs(of_four, Inputs(tuple(paths)), DetectOptions(0.05, batch))
        assert [image.error is not None for image in report.images] == [path.name == "text.jpg" for path in paths]
        assert report.times.images == 6
        _same(expected, [image.detections for image in report.images if image.error is None])
    detector = Detector(of_four.path, score=0.05, threads=1)
    assert detector.options.batch_for(detector.model) == BATCH
    _same(expected, detector(path for path in paths if path.name != "text.jpg"))


def _same(expected: Sequence[Sequence[Detection]], found: Sequence[Sequence[Detection]]) -> None:
    assert sum(map(len, expected)) > 50
    for first, second in zip(expected, found, strict=True):
        assert [one.name for one in first] == [one.name for one in second]
        for one, other in zip(first, second, strict=True):
            assert other.score == pytest.approx(one.score, abs=1e-4)
            assert other.box == pytest.approx(one.box, abs=0.05)


@pytest.mark.slow
def test_eight_bits_come_in_batches_too(
    checkpoint: Callable[[str], Path], some_images: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_detector(
        checkpoint("retina"),
        path,
        precision="int8",
        batch=3,
        verify_images=some_images[:4],
        calibration_images=some_images[:4],  # no whole number of batches
    )
    model = OnnxDetector(path, threads=1)
    assert (model.metadata.batch, model.metadata.precision) == (3, "int8")
    assert len(model(canvases(some_images[:5], *model.input_size)).num) == 5


@pytest.mark.slow
def test_the_batch_is_in_the_file_and_older_files_are_of_one(
    of_four: OnnxDetector, exported: Callable[[str], ExportReport], tmp_path: Path
) -> None:
    model = onnx.load(exported("rcnn").path)
    older = [one for one in model.metadata_props if one.key != "smnas.batch"]
    assert len(older) == len(model.metadata_props) - 1
    del model.metadata_props[:]
    model.metadata_props.extend(older)
    onnx.save(model, tmp_path / "older.onnx")
    assert OnnxDetector(tmp_path / "older.onnx").metadata.batch == 1
    wrong = onnx.load(of_four.path)
    next(one for one in wrong.metadata_props if one.key == "smnas.batch").value = "5"
    onnx.save(wrong, tmp_path / "wrong.onnx")
    with pytest.raises(UserError, match=r"takes images uint8 \(5, 3, 64, 96\)"):
        OnnxDetector(tmp_path / "wrong.onnx")


def test_no_batch_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`batch >= 1` must hold, but got batch=0"):
        export_detector(checkpoint("rcnn"), tmp_path / "model.onnx", batch=0)
