"""Workloads: a module, its input shapes, and the key of its latency."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["TensorSpec", "Workload", "count_flops", "meta_outputs", "random_inputs"]

_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and distribution of one random input.

    Attributes:
        shape: batch included.
        dtype: ``float32``, ``float16``, ``bfloat16``, ``uint8``, ``int32``, ``int64`` or ``bool``.
        low: lower bound, inclusive. Floats without bounds are standard normal.
        high: upper bound, exclusive. ``uint8`` defaults to 0..255; ``int32`` and ``int64`` need both bounds.
        draw: ``values`` draws every element alone; ``boxes`` draws boxes with ``x1 <= x2`` and ``y1 <= y2`` on a last
            axis of 4, because operators do less work on inverted boxes.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None
    draw: Literal["values", "boxes"] = "values"

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, but got {self.dtype!r}")
        if any(size < 1 for size in self.shape):
            raise ValueError(f"every size must be at least 1, but got shape {self.shape}")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"low and high come together, but got low={self.low} and high={self.high}")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low < high must hold, but got low={self.low} and high={self.high}")
        if self.dtype in ("int32", "int64") and self.low is None:
            raise ValueError(f"{self.dtype} needs low and high: its range has no default")
        if self.draw == "boxes" and (self.low is None or not self.shape or self.shape[-1] != 4):
            raise ValueError(f"boxes need bounds and a last axis of 4, but got shape {self.shape} and low={self.low}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype."""
        return _DTYPES[self.dtype]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def meta(self) -> Tensor:
        """Return an input of this shape without storage, on the ``meta`` device."""
        return torch.empty(self.shape, dtype=self.torch_dtype, device="meta")

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw the input on the CPU."""
        dtype = self.torch_dtype
        if dtype == torch.bool:
            return torch.randint(0, 2, self.shape, generator=generator).to(dtype)
        if self.draw == "boxes":
            low, high = float(self.low or 0.0), float(self.high or 0.0)
            corners = _uniform((*self.shape[:-1], 2, 2), low, high, generator).sort(dim=-2).values
            return corners.flatten(-2).to(dtype)
        if dtype.is_floating_point:
            if self.low is None or self.high is None:
                return torch.randn(self.shape, generator=generator).to(dtype)
            return _uniform(self.shape, self.low, self.high, generator).to(dtype)
        first, end = (0, 256) if self.low is None or self.high is None else (int(self.low), int(self.high))
        return torch.randint(first, end, self.shape, generator=generator).to(dtype)


@dataclass(frozen=True, eq=False)
class Workload:
    """A module to time.

    Attributes:
        name: human-readable, such as ``backbone.stage2.block1``; workloads of different names may share a key.
        key: text that alone determines the latency (the computation and its shapes); the latency table's key.
        module: takes ``inputs`` as positional arguments. On ``meta`` it can be counted; measuring needs real weights.
        inputs: one spec per positional argument.
    """

    name: str
    key: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters of the module, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def flops(self) -> int:
        """Floating point operations of one run, as :func:`count_flops` counts them."""
        return count_flops(self.module, self.inputs)

    @property
    def is_meta(self) -> bool:
        """Whether any weight lacks storage."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return any(tensor.is_meta for tensor in tensors)


def count_flops(module: nn.Module, inputs: Sequence[TensorSpec]) -> int:
    """Count the operations of one run from shapes alone; the module may be on any device.

    Convolutions, matmuls and attention count, a multiply-add as two operations; element-wise work, normalisation and
    pooling do not. That is :class:`torch.utils.flop_counter.FlopCounterMode`'s convention.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        meta_outputs(module, inputs)
    return counter.get_total_flops()


def meta_outputs(module: nn.Module, inputs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """Return a module's outputs, flattened, as ``meta`` tensors, without computing; the module may be on any device."""
    weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in module.named_parameters()}
    weights |= {name: torch.empty_like(tensor, device="meta") for name, tensor in module.named_buffers()}
    with torch.no_grad():
        outputs = functional_call(module, weights, tuple(spec.meta() for spec in inputs))
    return tuple(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))


def random_inputs(inputs: Sequence[TensorSpec], seed: int = 0) -> tuple[Tensor, ...]:
    """Draw all inputs on the CPU, reproducibly for a seed."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(spec.sample(generator) for spec in inputs)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low
