"""Running a TensorRT or TensorRT-RTX engine on PyTorch's tensors.

The calls are those that both modules have (``deserialize_cuda_engine``, ``create_execution_context``,
``set_tensor_address``, ``execute_async_v3``, ``create_engine_inspector``); what only TensorRT-RTX has, its cache of
compiled kernels, is asked by attribute. Not run yet: on a GPU. A test checks that TensorRT-RTX 1.7.1 has every
attribute that is used here, and another runs this file on a module that reads and writes the same addresses.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from profiler.atomic import write_whole
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
_INSPECTED_TYPES = {
    **{name: "fp32" for name in ("FP32", "Float")},
    **{name: "fp16" for name in ("FP16", "Half")},
    **{name: "bf16" for name in ("BF16", "BFloat16")},
    **{name: "int8" for name in ("INT8", "Int8")},
}
"""Types of an inspector's ``Format/Datatype``, as older and newer versions write them, by the names that users type."""


class Engine:
    """An engine with static shapes, ready to run.

    Args:
        trt: the module that built it, as :func:`profiler.backends.tensorrt.import_tensorrt` returns it.
        content: the engine's bytes.
        device: where its tensors live.
        kernels: file for the kernels that TensorRT-RTX compiles at the first run, read if it is there and written by
            :meth:`keep_kernels`; without use to a module that compiles everything when it builds.

    Attributes:
        inputs: shape and type of every input, by name.
        outputs: shape and type of every output, by name.

    Raises:
        EngineRefusedError: the module does not load it here.
    """

    def __init__(
        self, trt: Any, content: bytes, device: torch.device | str = "cuda", kernels: Path | None = None
    ) -> None:
        self._trt = trt
        self._device = torch.device(device)
        logger = logger_of(trt)
        logger.errors.clear()
        self._runtime = trt.Runtime(logger)  # engines and contexts live no longer than it
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineRefusedError(f"{trt.__name__} does not load the engine: {logger.one_line()}")
        self._kernels, self._cache = kernels, None
        if kernels is not None and hasattr(self._engine, "create_runtime_config"):
            config = self._engine.create_runtime_config()
            if hasattr(config, "create_runtime_cache"):
                self._cache = config.create_runtime_cache()
                if kernels.is_file():
                    self._cache.deserialize(kernels.read_bytes())  # what it does not take, it compiles again
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

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, on PyTorch's current stream; on a GPU the work may still be queued when this returns.

        Args:
            tensors: one per input, of its shape and type, on any device.

        Returns:
            One new tensor per output, on the engine's device.

        Raises:
            ValueError: an input is missing, or of another shape or type.
            RuntimeError: the run could not be started.
        """
        results = self.bind(tensors)
        self.run()
        return results

    def bind(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Say what the following runs read and write; see :meth:`__call__`.

        Returns:
            One new tensor per output, which every run fills anew.
        """
        held = []  # a tensor must outlive the runs that read its address
        for name, (shape, kind) in self.inputs.items():
            if name not in tensors or tuple(tensors[name].shape) != shape or tensors[name].dtype != kind:
                found = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
                raise ValueError(f"the engine reads {name} {kind} {shape}, but got {found}")
            held.append(tensors[name].to(self._device).contiguous())
            self._context.set_tensor_address(name, held[-1].data_ptr())
        results = {
            name: torch.empty(shape, dtype=kind, device=self._device) for name, (shape, kind) in self.outputs.items()
        }
        for name, tensor in results.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._bound = held, results
        return results

    def run(self) -> None:
        """Run once on what was bound, on PyTorch's current stream.

        Raises:
            RuntimeError: the run could not be started.
        """
        on_gpu = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device).cuda_stream if on_gpu else 0
        if not self._context.execute_async_v3(stream):
            raise RuntimeError("the engine could not be started")

    def layer_types(self) -> dict[str, int]:
        """How many of the finished engine's layers give each type, as its inspector says.

        Returns:
            Layers by precision; whole numbers and truth values are left out. Empty where the inspector tells no types.
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
        """Write the kernels that were compiled so far, so that the next process need not."""
        if self._cache is not None and self._kernels is not None:
            write_whole(self._kernels, bytes(self._cache.serialize()))
