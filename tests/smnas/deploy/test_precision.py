"""Lower precisions: what is in the graph, what is not, and that a loss of AP is measured and can fail the export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image

from profiler.errors import UserError
from profiler.graphs.export import in_modules
from profiler.graphs.typed_onnx import dense_nodes
from smnas.data.coco import CocoFolder
from smnas.deploy import accuracy as accuracy_module
from smnas.deploy.accuracy import Accuracy, AccuracyLossError, evaluate_model
from smnas.deploy.export import ExportReport, export_detector
from smnas.evaluation.predict import DetectionArrays, evaluate
from smnas.inference.runtime import OnnxDetector
from smnas.models.precision import fragile_modules
from smnas.training.checkpoint import load_detector_checkpoint


@pytest.fixture(scope="session")
def relabelled(aquarium_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real images with their boxes, of the test detectors' three classes."""
    root = tmp_path_factory.mktemp("relabelled")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        document = json.loads((aquarium_mini / "annotations" / f"instances_{split}.json").read_text())
        document["categories"] = [{"id": i, "name": n} for i, n in ((1, "fish"), (4, "jellyfish"), (9, "penguin"))]
        for annotation in document["annotations"]:
            annotation["category_id"] = (1, 4, 9)[annotation["category_id"] % 3]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        (root / split).symlink_to(aquarium_mini / split)
    return root


@pytest.fixture(scope="session")
def half(
    checkpoint: Callable[[str], Path],
    some_images: list[NDArray[np.uint8]],
    relabelled: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> ExportReport:
    out = tmp_path_factory.mktemp("half") / "model.onnx"
    dataset = CocoFolder(relabelled).split("val")
    return export_detector(
        checkpoint("rcnn"), out, precision="fp16", verify_images=some_images[:8], dataset=dataset, max_ap_drop=0.005
    )


@pytest.mark.slow
def test_half_precision_is_in_the_network_and_not_in_boxes_and_scores(
    half: ExportReport, checkpoint: Callable[[str], Path]
) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(half.path))
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    fragile = fragile_modules(load_detector_checkpoint(checkpoint("rcnn"))[0])
    assert sorted(fragile) == ["postprocess", "proposals", "roi_stage1.pool"]
    assert all(types[node.output[0]] == TensorProto.FLOAT16 for node in dense_nodes(model))
    kept = [node for node in model.graph.node if in_modules(node, fragile)]
    assert len(kept) > 50
    assert not any(types.get(name) == TensorProto.FLOAT16 for node in kept for name in node.output)
    assert [types[name] for name in ("images", "num", "boxes", "scores", "labels")] == [
        *(TensorProto.UINT8, TensorProto.INT64),
        *(TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64),
    ]


@pytest.mark.slow
def test_its_ap_was_measured_on_the_file(half: ExportReport, relabelled: Path) -> None:
    assert half.metadata.precision == "fp16"
    assert half.agreement.holds
    assert half.rounding is not None
    assert half.rounding.compared > 100
    assert half.accuracy is not None
    assert abs(half.accuracy.drop) <= 0.005
    model = OnnxDetector(half.path, threads=1)
    dataset = CocoFolder(relabelled).split("val")
    again = evaluate(model, dataset, *model.input_size, 4)
    assert half.accuracy.images == len(dataset)
    assert half.accuracy.ap == pytest.approx(again.ap)
    assert model.metadata.metrics["ap"] == pytest.approx(again.ap)
    assert half.notes == ()


@pytest.mark.slow
def test_eight_bits_are_in_the_network_alone(
    checkpoint: Callable[[str], Path], some_images: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    report = export_detector(
        checkpoint("retina"),
        tmp_path / "model.onnx",
        precision="int8",
        verify_images=some_images[:4],
        calibration_images=some_images[4:8],
    )
    model = onnx.load(report.path)
    makers = {name: node for node in model.graph.node for name in node.output}
    dense = dense_nodes(model)
    assert len(dense) > 10
    kept = [node for node in dense if makers.get(node.input[1]) is None]
    assert kept == [dense[0], *(node for node in dense if in_modules(node, ("head.logits", "head.deltas")))]
    eight = [node for node in dense if node not in kept]
    assert len(eight) >= 8
    assert all(makers[name].op_type == "DequantizeLinear" for node in eight for name in node.input[:2])
    fragile = [node for node in model.graph.node if in_modules(node, ("postprocess",))]
    assert not any(node.op_type.endswith("Linear") for node in fragile)
    assert OnnxDetector(report.path).metadata.precision == "int8"
    assert report.notes == ("what int8 costs in AP was not measured: no --data",)


@pytest.mark.slow
def test_too_large_a_loss_fails_and_leaves_the_file_before(
    checkpoint: Callable[[str], Path], relabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accuracy_module.evaluate_model
    monkeypatch.setattr(  # as if the checkpoint were better than it is
        accuracy_module,
        "evaluate_model",
        lambda model, *rest: real(model, *rest) if isinstance(model, OnnxDetector) else _Perfect(),
    )
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the export before")
    with pytest.raises(AccuracyLossError, match=r"may lose 0\.05 AP at most, but got AP 0\.0") as caught:
        export_detector(
            checkpoint("retina"), out, precision="fp16", dataset=CocoFolder(relabelled).split("val"), max_ap_drop=0.05
        )
    assert not isinstance(caught.value, UserError)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.read_bytes() == b"the export before"


class _Perfect:
    ap = ap50 = 1.0


def test_data_of_other_categories_is_refused(
    checkpoint: Callable[[str], Path], aquarium_mini: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="must have the model's categories, 1 fish, 4 jellyfish, 9 penguin, but got"):
        export_detector(checkpoint("retina"), tmp_path / "m.onnx", dataset=CocoFolder(aquarium_mini).split("val"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_trained_with_the_root_category_is_still_evaluated(tmp_path: Path, red_box: Any) -> None:
    """Roboflow's category 0, no class of the data today, was one when the model was trained; its ids stay right."""
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        image = Image.new("RGB", (96, 64), "gray")
        image.paste((255, 0, 0), (10, 10, 50, 40))
        image.save(tmp_path / split / "a.png")
        document = {
            "images": [{"id": 0, "file_name": "a.png", "width": 96, "height": 64}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 7, "bbox": [10, 10, 40, 30]}],
            "categories": [
                {"id": 0, "name": "colours", "supercategory": "none"},
                {"id": 7, "name": "red", "supercategory": "colours"},
            ],
        }
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(document))
    dataset = CocoFolder(tmp_path).split("val")
    red_box.classes, red_box.category_ids = ("colours", "red"), (0, 7)
    found = red_box.__call__

    class Old:
        classes, category_ids, input_size, metadata = ("colours", "red"), (0, 7), (96, 64), red_box.metadata

        def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
            arrays = found(images)
            return arrays._replace(labels=1 - arrays.labels)

    assert evaluate_model(Old(), dataset).ap == pytest.approx(1.0)  # type: ignore[arg-type]
    Old.classes = ("other", "red")
    with pytest.raises(UserError, match="must have the model's categories"):
        evaluate_model(Old(), dataset)  # type: ignore[arg-type]


def test_a_loss_is_told_with_its_sign() -> None:
    better = Accuracy(48, 0.25, 0.5, 0.26, 0.51)
    assert better.drop == pytest.approx(-0.01)
    assert str(better) == "AP 0.2600 (AP50 0.5100), fp32 checkpoint 0.2500 (0.5000), loss -0.0100 on 48 images"
