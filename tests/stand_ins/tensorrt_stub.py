"""A module with the attributes of TensorRT-RTX that building reads, for what the true one can not be made to do.

A graph with ``Sin`` is not parsed, one with ``Tanh`` gives no engine, one with ``Cos`` kills the process.
"""

import ctypes
import json
import os
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

__version__ = "9.8.7"


class ComputeCapability(Enum):
    CURRENT = 0
    SM89 = 89
    SM120 = 120


class LayerType(Enum):
    CONVOLUTION = 0
    MATRIX_MULTIPLY = 1
    ACTIVATION = 2


class DataType(Enum):
    FLOAT = 1
    HALF = 10


class NetworkDefinitionCreationFlag(Enum):
    """As where every network is strongly typed."""


class BuilderFlag(Enum):
    """Without TF32."""


ProfilingVerbosity = SimpleNamespace(DETAILED=2)


class ILogger:
    INTERNAL_ERROR, ERROR, INFO = range(3)


class Builder:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Any:
        assert flags == 0
        return SimpleNamespace(num_layers=0, operators=set(), content=b"")

    def create_builder_config(self) -> Any:
        chosen: dict[int, ComputeCapability] = {}
        return SimpleNamespace(
            chosen=chosen, set_compute_capability=lambda which, index: chosen.update({index: which}) or True
        )

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        assert config.num_compute_capabilities == len(config.chosen)
        if "Cos" in network.operators:
            os._exit(1)
        if "Tanh" in network.operators:
            self.logger.log(ILogger.ERROR, "no kernel\nfor this")
            return None
        return ",".join(one.name for one in config.chosen.values()).encode() + network.content


class OnnxParser:
    num_errors = 1

    def __init__(self, network: Any, logger: Any) -> None:
        self.network = network

    def parse(self, content: bytes) -> bool:
        model = onnx.load_from_string(content)
        operators = {node.op_type for node in model.graph.node}
        weights = [one for one in model.graph.initializer if len(one.dims) == 2]
        layers = [
            SimpleNamespace(
                type=LayerType.MATRIX_MULTIPLY, name="fc", get_output=lambda _, w=one: SimpleNamespace(dtype=_dtype(w))
            )
            for one in weights
        ]
        self.network.operators, self.network.content = operators, content
        self.network.num_layers, self.network.get_layer = len(layers), layers.__getitem__
        return "Sin" not in operators

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: f"error {index}: Sin is unknown")


def _dtype(weight: onnx.TensorProto) -> DataType:
    return DataType.HALF if weight.data_type == onnx.TensorProto.FLOAT16 else DataType.FLOAT


compiled: list[Any] = []
"""Engines whose first run had to compile."""


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


LayerInformationFormat = SimpleNamespace(JSON=1)


class Runtime:
    """Loads what the builder above gives for SM89: the graph, run by ONNX Runtime on the addresses it is told."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        if not content.startswith(b"SM89"):
            self.logger.log(ILogger.ERROR, "the engine is for\nanother GPU")
            return None
        return _Engine(content.removeprefix(b"SM89"))


class _Engine:
    def __init__(self, model: bytes) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.values = {value.name: value for value in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.num_io_tensors = len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.values[name].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = {"float": "FLOAT", "float16": "HALF", "int64": "INT64", "uint8": "UINT8"}
        return SimpleNamespace(name=kinds[self.values[name].type.removeprefix("tensor(").removesuffix(")")])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        inputs = {value.name for value in self.session.get_inputs()}
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def create_runtime_config(self) -> Any:
        return _RuntimeConfig()

    def create_execution_context(self, config: Any = None) -> Any:
        return _Context(self, config)

    def create_engine_inspector(self) -> Any:
        outputs = [[{"Format/Datatype": self.get_tensor_dtype(name.name).name.title()}] for name in self._outputs()]
        layers = [{"Name": "layer", "Outputs": one} for one in [*outputs, []]] + ["only a name"]
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": layers}))

    def _outputs(self) -> list[Any]:
        return list(self.session.get_outputs())


class _RuntimeConfig:
    """Compiles one kernel for a context that has none yet."""

    def __init__(self) -> None:
        self.cache: _RuntimeCache | None = None

    def create_runtime_cache(self) -> Any:
        return _RuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class _RuntimeCache:
    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, content: bytes) -> bool:
        self.kernels = content
        return True

    def serialize(self) -> bytes:
        return self.kernels


class _Context:
    def __init__(self, engine: _Engine, config: _RuntimeConfig | None) -> None:
        self.engine = engine
        self.cache = config.cache if config is not None else None
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 0
        if self.cache is not None and not self.cache.kernels:
            self.cache.kernels = b"compiled"
            compiled.append(self.engine)
        inputs = [value.name for value in self.engine.session.get_inputs()]
        feeds = {name: self._memory(name).copy() for name in inputs}
        outputs = [name for name in self.engine.values if name not in inputs]
        for name, value in zip(outputs, self.engine.session.run(outputs, feeds), strict=True):
            self._memory(name)[...] = value
        return True

    def _memory(self, name: str) -> Any:
        kinds = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "UINT8": np.uint8}
        kind = np.dtype(kinds[self.engine.get_tensor_dtype(name).name])
        shape = self.engine.get_tensor_shape(name)
        size = int(np.prod(shape)) * kind.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), kind).reshape(shape)
