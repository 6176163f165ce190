"""Precisions by user-facing name."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["PRECISIONS", "typed_copy"]

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
}
"""Dtype of weights and floating-point inputs by precision; float32 for ``int8``, whose graph quantises inside.

See :mod:`profiler.graphs.quantized_onnx`.
"""


def typed_copy(
    module: nn.Module, inputs: Sequence[Tensor], precision: str, device: str
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Copy a module, in evaluation mode, and its inputs to a device and precision."""
    dtype = PRECISIONS[precision]
    moved = copy.deepcopy(module).to(device=device, dtype=dtype).eval().requires_grad_(False)
    return moved, tuple(
        tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype) for tensor in inputs
    )
