"""Running a TensorRT or TensorRT-RTX engine on PyTorch's tensors.

The calls are those that both modules have (``deserialize_cuda_engine``, ``create_execution_context``,
``set_tensor_address``, ``execute_async_v3``). Not run yet: on a GPU. A test checks that TensorRT-RTX 1.7.1 has every
attribute that is used here, and another runs this file on a module that reads and writes the same addresses.

Inputs and outputs stay where they are between runs, so that a run can be a CUDA graph. An engine with a loop, as greedy
suppression is in a plain graph, may be none that can be recorded: TensorRT-RTX says so when it is asked, ordinary
TensorRT when it is tried.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from profiler.backends.cuda_graph import Replayed, record
from profiler.backends.tensorrt import logger_of
from profiler.engines import EngineRefusedError

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


class Engine:
    """An engine with static shapes, ready to run.

    Args:
        trt: the module that built it, as :func:`profiler.backends.tensorrt.import_tensorrt` returns it.
        content: the engine's bytes.
        device: where its tensors live.
        cuda_graph: record a run and replay it, instead of starting its kernels one by one.

    Attributes:
        inputs: shape and type of every input, by name.
        outputs: shape and type of every output, by name.

    Raises:
        EngineRefusedError: the module does not load it here, or it can not be a CUDA graph.
    """

    def __init__(
        self, trt: Any, content: bytes, device: torch.device | str = "cuda", *, cuda_graph: bool = False
    ) -> None:
        self._device = torch.device(device)
        logger = logger_of(trt)
        logger.errors.clear()
        self._runtime = trt.Runtime(logger)  # engines and contexts live no longer than it
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineRefusedError(f"{trt.__name__} does not load the engine: {logger.one_line()}")
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
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._graph = self._recorded() if cuda_graph else None

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, in order with PyTorch's current stream; on a GPU the work may still be queued when this returns.

        Args:
            tensors: one per input, of its shape and type, on any device. Page-locked memory is read while this returns
                and must not change before the outputs are there.

        Returns:
            One new tensor per output, on the engine's device.

        Raises:
            ValueError: an input is missing, or of another shape or type.
            RuntimeError: the run could not be started.
        """
        for name, (shape, kind) in self.inputs.items():
            if name not in tensors or tuple(tensors[name].shape) != shape or tensors[name].dtype != kind:
                found = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
                raise ValueError(f"the engine reads {name} {kind} {shape}, but got {found}")
        outside = None if self._stream is None else torch.cuda.current_stream(self._device)
        if self._stream is not None and outside is not None:
            self._stream.wait_stream(outside)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for name in self.inputs:
                self._tensors[name].copy_(tensors[name], non_blocking=True)
            self._start() if self._graph is None else self._graph.replay()
        if self._stream is not None and outside is not None:
            outside.wait_stream(self._stream)
        return {name: self._tensors[name].clone() for name in self.outputs}

    def _start(self) -> None:
        stream = 0 if self._stream is None else torch.cuda.current_stream(self._device).cuda_stream
        if not self._context.execute_async_v3(stream):
            raise RuntimeError("the engine could not be started")

    def _recorded(self) -> Replayed:
        if self._stream is None:
            raise EngineRefusedError(f"a CUDA graph needs a CUDA device, but got {self._device}")
        can_be = getattr(self._context, "is_stream_capturable", None)
        if can_be is not None and not can_be(self._stream.cuda_stream):
            raise EngineRefusedError("the engine can not be a CUDA graph: its module says that a run must wait for the GPU")
        try:
            graph, _ = record(self._start, self._device)
        except RuntimeError as error:
            raise EngineRefusedError(f"the engine can not be a CUDA graph: {str(error).splitlines()[0]}") from error
        return graph
