"""ONNX files that are no detectors."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.helper as oh
import pytest


@pytest.fixture(scope="session")
def other_onnx() -> Callable[..., Path]:
    """Writes a ReLU to a file, with the given properties: ``(path, **properties)``."""

    def write(path: Path, **properties: str) -> Path:
        graph = oh.make_graph(
            [oh.make_node("Relu", ["x"], ["y"])],
            "other",
            [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])],
            [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
        )
        model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9)
        for key, value in properties.items():
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, path)
        return path

    return write
