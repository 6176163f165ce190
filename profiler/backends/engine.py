"""Run a TensorRT or TensorRT-RTX engine on PyTorch's tensors.

Only calls common to both modules are used (``deserialize_cuda_engine``, ``create_execution_context``,
``set_tensor_address``, ``execute_async_v3``, ``create_engine_inspector``); TensorRT-RTX's cache of compiled kernels is
detected by attribute. Not run yet: on a GPU. Tests check that TensorRT-RTX 1.7.1 has every attribute used here, and run
this file on a stand-in that reads and writes the same addresses.

Inputs and outputs keep their addresses, so a run can be a CUDA graph. An engine with a loop, such as greedy NMS in a
plain graph, may not be recordable: TensorRT-RTX reports that beforehand, ordinary TensorRT fails while recording.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from profiler.atomic import write_atomic
from profiler.backends.cuda_graph import Replayed, record
from profiler.engines.store import EngineRefusedError
from profiler.engines.tensorrt import logger_of
from profiler.errors import first_line

__all__ = ["Engine"]

_TORCH_TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
_INSPECTED_TYPES = {
    **dict.fromkeys(("FP32", "Float"), "fp32"),
    **dict.fromkeys(("FP16", "Half"), "fp16"),
    **dict.fromkeys(("BF16", "BFloat16"), "bf16"),
    **dict.fromkeys(("INT8", "Int8"), "int8"),
}
"""Precision names of an inspector's ``Format/Datatype``, as older and newer versions write it."""


class Engine:
    """An engine with static shapes, ready to run.

    Args:
        trt: the module that built it, from :func:`profiler.engines.tensorrt.import_tensorrt`.
        content: the engine's bytes.
        device: of its tensors.
        cuda_graph: record a run and replay it instead of launching its kernels one by one.
        kernels: file for the kernels that TensorRT-RTX compiles at the first run, read if present, written by
            :meth:`keep_kernels`; unused by a module that compiles everything at build time.

    Attributes:
        inputs: shape and type by name, as in ``outputs``.

    Raises:
        EngineRefusedError: the module does not load it here, or it can not be a CUDA graph.
    """

    def __init__(
        self,
        trt: Any,
        content: bytes,
        device: torch.device | str = "cuda",
        *,
        cuda_graph: bool = False,
        kernels: Path | None = None,
    ) -> None:
        self._trt = trt
        self._device = torch.device(device)
        logger = logger_of(trt)
        logger.errors.clear()
        self._runtime = trt.Runtime(logger)  # engines and contexts live no longer than their runtime
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineRefusedError(f"{trt.__name__} does not load the engine: {logger.one_line()}")
        self._kernels, self._cache = kernels, None
        if kernels is not None and hasattr(self._engine, "create_runtime_config"):
            config = self._engine.create_runtime_config()
            if hasattr(config, "create_runtime_cache"):
                self._cache = config.create_runtime_cache()
                if kernels.is_file():
                    self._cache.deserialize(kernels.read_bytes())  # rejected kernels are compiled again
                config.set_runtime_cache(self._cache)
            self._context = self._engine.create_execution_context(config)
        else:
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineRefusedError(f"{trt.__name__} has no memory for the engine: {logger.one_line()}")
        self.inputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self.outputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shape = tuple(int(size) for size in self._engine.get_tensor_shape(name))
            kind = _TORCH_TYPES[self._engine.get_tensor_dtype(name).name]
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = shape, kind
        self._tensors = {
            name: torch.zeros(shape, dtype=kind, device=self._device)
            for name, (shape, kind) in {**self.inputs, **self.outputs}.items()
        }
        for name, tensor in self._tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        # on the default stream TensorRT waits for the whole device
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._graph = self._recorded() if cuda_graph else None

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, in order with PyTorch's current stream; on a GPU the work may still be queued on return.

        Args:
            tensors: one per input, of its shape and type, on any device. Pinned memory is read asynchronously and must
                not change before the outputs are there.

        Returns:
            One new tensor per output, on the engine's device.

        Raises:
            ValueError: an input is missing, or of another shape or type.
            RuntimeError: the run could not be started.
        """
        with self.on_stream():
            self.load(tensors)
            self.run()
        return {name: tensor.clone() for name, tensor in self.results.items()}

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Make the engine's stream PyTorch's current one, in order with the streams before and after."""
        if self._stream is None:
            yield
            return
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the inputs of the following runs; see :meth:`__call__`."""
        for name, (shape, kind) in self.inputs.items():
            if name not in tensors or tuple(tensors[name].shape) != shape or tensors[name].dtype != kind:
                found = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
                raise ValueError(f"the engine reads {name} {kind} {shape}, but got {found}")
        for name in self.inputs:
            self._tensors[name].copy_(tensors[name], non_blocking=True)

    def run(self) -> None:
        """Run once on the loaded inputs, on PyTorch's current stream.

        Raises:
            RuntimeError: the run could not be started.
        """
        if self._graph is None:
            self._start()
        else:
            self._graph.replay()

    @property
    def results(self) -> dict[str, Tensor]:
        """Return one tensor per output, which every run overwrites."""
        return {name: self._tensors[name] for name in self.outputs}

    def layer_types(self) -> dict[str, int]:
        """Count layers by precision of their output, without integers and booleans, as the inspector lists them.

        Empty if it lists no types.
        """
        inspector = self._engine.create_engine_inspector()
        document = json.loads(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))
        counts: Counter[str] = Counter()
        for layer in document.get("Layers", []):
            outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []  # only names, at a lower verbosity
            words = re.findall(r"\w+", str(outputs[0].get("Format/Datatype", ""))) if outputs else []
            counts.update({_INSPECTED_TYPES[word] for word in words if word in _INSPECTED_TYPES})
        return dict(sorted(counts.items()))

    def keep_kernels(self) -> None:
        """Write the kernels compiled so far, so that the next process need not compile them."""
        if self._cache is not None and self._kernels is not None:
            write_atomic(self._kernels, bytes(self._cache.serialize()))

    def _start(self) -> None:
        stream = 0 if self._stream is None else torch.cuda.current_stream(self._device).cuda_stream
        if not self._context.execute_async_v3(stream):
            raise RuntimeError("the engine could not be started")

    def _recorded(self) -> Replayed:
        if self._stream is None:
            raise EngineRefusedError(f"a CUDA graph needs a CUDA device, but got {self._device}")
        can_be = getattr(self._context, "is_stream_capturable", None)
        if can_be is not None and not can_be(self._stream.cuda_stream):
            raise EngineRefusedError("the engine can not be a CUDA graph: a run must wait for the GPU, its module says")
        try:
            graph, _ = record(self._start, self._device)
        except RuntimeError as error:
            raise EngineRefusedError(f"the engine can not be a CUDA graph: {first_line(error)}") from error
        return graph
