"""Work of one run of a workload, counted from shapes alone: operations, bytes, sizes."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from torch.utils.flop_counter import FlopCounterMode

from profiler.workload import Workload, meta_outputs

__all__ = ["Work"]


@dataclass(frozen=True)
class Work:
    """Work of one run.

    Attributes:
        family: class of the module; the latencies of a family follow one law of the other figures.
        flops: as :func:`profiler.workload.count_flops` counts them.
        float_elements: floating-point numbers in inputs, outputs and weights, whose size depends on the precision.
        other_bytes: of integers and booleans there.
        channels: second axis of the largest input.
        cells: positions of the largest input: batch times the axes after the channels.
        layers: number of leaf modules, a measure of depth.
    """

    family: str
    flops: int
    float_elements: int
    other_bytes: int
    parameters: int
    channels: int
    cells: int
    layers: int

    @classmethod
    def of(cls, workload: Workload) -> Self:
        """Count a workload's work; its module may be on any device."""
        module = workload.module
        counter = FlopCounterMode(display=False)
        with counter:
            outputs = meta_outputs(module, workload.inputs)
        tensors = [*module.parameters(), *module.buffers(), *(spec.meta() for spec in workload.inputs), *outputs]
        largest = max(workload.inputs, key=lambda spec: spec.elements).shape if workload.inputs else ()
        channels = largest[1] if len(largest) > 1 else 1
        return cls(
            family=type(module).__name__,
            flops=counter.get_total_flops(),
            float_elements=sum(tensor.numel() for tensor in tensors if tensor.is_floating_point()),
            other_bytes=sum(t.numel() * t.element_size() for t in tensors if not t.is_floating_point()),
            parameters=workload.parameters,
            channels=channels,
            cells=math.prod(largest) // channels,
            layers=sum(1 for child in module.modules() if not any(child.children())),
        )

    def bytes_moved(self, float_bytes: int = 4) -> int:
        """Bytes of inputs, outputs and weights, each of which crosses the memory bus at least once."""
        return self.float_elements * float_bytes + self.other_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Self | None:
        """Inverse of :meth:`as_dict`; ``None`` for anything else, such as a row of an older release."""
        if not isinstance(values, Mapping) or set(values) != {field.name for field in fields(cls)}:
            return None
        return cls(**values)
