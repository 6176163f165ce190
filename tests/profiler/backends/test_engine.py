"""Running an engine: the calls in their order on real addresses, and the true module's attributes."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from installed import installed_version
from torch import Tensor, nn

from profiler.backends.engine import Engine
from profiler.engines import tensorrt
from profiler.engines.store import EngineRefusedError
from profiler.engines.tensorrt import build_engine
from profiler.graphs.export import to_onnx

STAND_INS = next(folder for folder in Path(__file__).parents if folder.name == "tests") / "stand_ins"


class Mixed(nn.Module):
    """Two inputs of different types, two outputs of different types."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, image: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x) + image.float().mean()
        return y, y.argmax(dim=1)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(STAND_INS))
    return importlib.import_module("tensorrt_stub")


def test_an_engine_computes_on_the_tensors_it_is_given(stub: Any) -> None:
    torch.manual_seed(0)
    module = Mixed().eval()
    image, x = torch.randint(0, 256, (1, 3, 5), dtype=torch.uint8), torch.randn(2, 4)
    names = {"input_names": ["image", "x"], "output_names": ["y", "best"]}
    model = to_onnx(module, (image, x), **names).SerializeToString()
    engine = Engine(stub, build_engine(stub, model, "fp32", ["8.9"]).content, device="cpu")
    assert engine.inputs == {"image": ((1, 3, 5), torch.uint8), "x": ((2, 4), torch.float32)}
    assert engine.outputs == {"y": ((2, 4), torch.float32), "best": ((2,), torch.int64)}
    first = engine({"image": image, "x": x})
    strided = torch.randn(4, 2).mT  # an address alone does not tell strides
    second = engine({"image": image + 1, "x": strided})
    for found, expected in ((first, module(image, x)), (second, module(image + 1, strided))):
        torch.testing.assert_close(found["y"], expected[0])
        assert torch.equal(found["best"], expected[1])
    with pytest.raises(ValueError, match=r"reads x torch\.float32 \(2, 4\), but got"):
        engine({"image": image, "x": x.double()})
    with pytest.raises(ValueError, match="reads image"):
        engine({"x": x})


def test_a_cuda_graph_needs_a_gpu(stub: Any) -> None:
    model = to_onnx(nn.Linear(4, 4), (torch.randn(2, 4),), input_names=["x"]).SerializeToString()
    content = build_engine(stub, model, "fp32", ["8.9"]).content
    with pytest.raises(EngineRefusedError, match="a CUDA graph needs a CUDA device, but got cpu"):
        Engine(stub, content, device="cpu", cuda_graph=True)


def test_an_engine_that_is_not_loaded_is_one_line(stub: Any) -> None:
    with pytest.raises(EngineRefusedError, match="does not load the engine: the engine is for another GPU"):
        Engine(stub, b"SM120 something", device="cpu")


@pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install 'smnas[tensorrt-rtx]'"
)
def test_the_true_module_has_what_is_used_here() -> None:
    trt = tensorrt.import_tensorrt("tensorrt_rtx")
    used = {
        "Runtime": ("deserialize_cuda_engine",),
        "ICudaEngine": (
            *("create_execution_context", "num_io_tensors", "get_tensor_name"),
            *("get_tensor_shape", "get_tensor_dtype", "get_tensor_mode"),
            *("create_engine_inspector", "create_runtime_config"),
        ),
        "EngineInspector": ("get_engine_information",),
        "IRuntimeConfig": ("create_runtime_cache", "set_runtime_cache"),
        "IRuntimeCache": ("serialize", "deserialize"),
        "LayerInformationFormat": ("JSON",),
        "IExecutionContext": ("set_tensor_address", "execute_async_v3", "is_stream_capturable"),
        "TensorIOMode": ("INPUT", "OUTPUT"),
        "DataType": ("FLOAT", "HALF", "BF16", "INT8", "UINT8", "INT32", "INT64", "BOOL"),
    }
    for owner, names in used.items():
        assert not {name for name in names if not hasattr(getattr(trt, owner), name)}, owner
