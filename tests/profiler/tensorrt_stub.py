"""A module with the attributes of TensorRT-RTX that building reads, for what the true one can not be made to do.

A graph with ``Sin`` is not parsed, one with ``Tanh`` gives no engine, one with ``Cos`` kills the process.
"""

import os
from enum import Enum
from types import SimpleNamespace
from typing import Any

import onnx

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
