"""A detector on a GPU with its dense parts as CUDA graphs: one launch per part instead of one per operator.

Selection and pooling (see :data:`~smnas.models.precision.FRAGILE`) synchronise to learn the number of boxes, which a
graph can not hold, so they run eagerly between the graphs. Not run yet: on a GPU.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from profiler.backends.cuda_graph import Replayed, record
from smnas.models.detector import Detector, Step
from smnas.models.precision import FRAGILE
from smnas.models.target import Detections

__all__ = ["GraphedDetector", "Part", "split_parts"]

Outputs = tuple[Tensor, ...]
Record = Callable[[Callable[[], Outputs], torch.device], tuple[Replayed, Outputs]]


class Part(NamedTuple):
    """Consecutive steps of a detector.

    Attributes:
        dense: Whether all of them are convolutions and matmuls of fixed shapes.
        inputs: Names of earlier values that they read.
        outputs: Names of their values that later steps read.
    """

    steps: tuple[Step, ...]
    dense: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Outputs) -> Outputs:
        """Compute the outputs from the inputs, both in order."""
        values = dict(zip(self.inputs, inputs, strict=True))
        for step in self.steps:
            found = step.module(*(values[name] for name in step.inputs))
            values.update(zip(step.outputs, (found,) if isinstance(found, Tensor) else found, strict=True))
        return tuple(values[name] for name in self.outputs)


def split_parts(steps: Sequence[Step]) -> tuple[Part, ...]:
    """Split into the fewest parts that separate dense steps from others."""
    runs = [(dense, tuple(run)) for dense, run in groupby(steps, key=lambda step: not isinstance(step.module, FRAGILE))]
    parts: list[Part] = []
    wanted = set(Detections._fields)
    for dense, run in reversed(runs):
        made = [name for step in run for name in step.outputs]
        read = dict.fromkeys(name for step in run for name in step.inputs)
        inputs = tuple(name for name in read if name not in made)
        parts.append(Part(run, dense, inputs, tuple(name for name in made if name in wanted)))
        wanted.update(inputs)
    return tuple(reversed(parts))


class GraphedDetector(nn.Module):
    """An equivalent of a detector for inference, its dense parts recorded at the first batch of every size."""

    def __init__(self, detector: Detector, record: Record = record) -> None:
        super().__init__()
        self.detector = detector
        self._parts = split_parts(detector.steps)
        self._record = record
        self._recorded: dict[tuple[int, torch.Size], tuple[Outputs, Replayed, Outputs]] = {}

    def forward(self, images: Tensor) -> Detections:
        """As :meth:`smnas.models.detector.Detector.forward`."""
        values = {"images": images}
        for number, part in enumerate(self._parts):
            inputs = tuple(values[name] for name in part.inputs)
            outputs = self._replay(number, inputs) if part.dense else part.run(inputs)
            values.update(zip(part.outputs, outputs, strict=True))
        return Detections(*(values[name] for name in Detections._fields))

    def _replay(self, number: int, inputs: Outputs) -> Outputs:
        """Run a dense part on new values; the next replay overwrites the result."""
        key = number, inputs[0].shape
        if key not in self._recorded:
            own = tuple(tensor.clone() for tensor in inputs)
            graph, outputs = self._record(lambda: self._parts[number].run(own), own[0].device)
            self._recorded[key] = own, graph, outputs
        own, graph, outputs = self._recorded[key]
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        graph.replay()
        return outputs
