"""Backends that export every module, usually to ONNX, and load the graph in a runtime."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import onnx
from numpy.typing import NDArray
from torch import Tensor, nn

from profiler.backends.base import Session, check_precision
from profiler.devices import Device
from profiler.graphs.export import to_onnx, to_onnx_many
from profiler.graphs.quantized_onnx import quantized_block
from profiler.precision import typed_copy

__all__ = ["ExportingBackend"]


class ExportingBackend(ABC):
    """A runtime of exported graphs; attributes are those of :class:`profiler.backends.base.Backend`.

    Attributes:
        typed_graphs: a half precision is that of the graph; otherwise the graph is float32, and the runtime converts.
    """

    typed_graphs: ClassVar[bool] = True
    name: str
    version: str
    precisions: tuple[str, ...]
    device: Device
    threads: int

    @abstractmethod
    def load(self, model: bytes, feeds: Mapping[str, NDArray[Any]], precision: str = "fp32") -> Session:
        """Load a serialised model, with an array for each input; ``precision`` is already that of the graph."""

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor], precision: str = "fp32") -> Session:
        """Export a module and load it; see :meth:`profiler.backends.base.Backend.prepare`."""
        copied, typed = self._typed(module, inputs, precision)
        return self._load(to_onnx(copied, typed), copied, typed, precision)

    def prepare_many(
        self, items: Sequence[tuple[nn.Module, Sequence[Tensor]]], precision: str = "fp32"
    ) -> list[Callable[[], Session]]:
        """Export all modules in one go; see :meth:`profiler.backends.base.Backend.prepare_many`."""
        check_precision(self, precision)
        singly: list[Callable[[], Session]] = [partial(self.prepare, *item, precision) for item in items]
        if len(items) < 2:
            return singly
        try:
            typed = [self._typed(module, inputs, precision) for module, inputs in items]
            models = to_onnx_many(typed)
        except Exception:  # noqa: BLE001 - only a shortcut: singly exported, the faulty module raises its own error
            return singly
        return [partial(self._load, model, *item, precision) for model, item in zip(models, typed, strict=True)]

    def _typed(
        self, module: nn.Module, inputs: Sequence[Tensor], precision: str
    ) -> tuple[nn.Module, tuple[Tensor, ...]]:
        check_precision(self, precision)
        return typed_copy(module, inputs, precision if self.typed_graphs else "fp32", "cpu")

    def _load(self, model: onnx.ModelProto, module: nn.Module, inputs: Sequence[Tensor], precision: str) -> Session:
        if precision == "int8":
            model = quantized_block(model, module, inputs, symmetric=False)
        names = [value.name for value in model.graph.input]
        feeds = {name: tensor.contiguous().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return self.load(model.SerializeToString(), feeds, precision)
