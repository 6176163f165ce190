"""A law in place of measured blocks, for tests of the strategy ``mae-det``."""

from typing import Self

from profiler.prediction.predict import Latency, LatencyModel
from smnas.latency.prediction import MeasuredPart
from smnas.space.architecture import Architecture
from smnas.space.convolutions import multiply_adds


class LawfulLatency:
    """A bottleneck takes 0.02 ms and 1 ms a gigaMAC of its convolutions, the rest 3 ms."""

    model = LatencyModel()

    def __init__(self) -> None:
        self.completed: list[Architecture] = []

    def measure_blocks(self, architectures: list[Architecture]) -> None:
        self.completed += architectures

    @property
    def predictor(self) -> Self:
        return self

    def measured_parts(self, architecture: Architecture) -> tuple[MeasuredPart, ...]:
        width, height = architecture.input_width, architecture.input_height
        chain = [c for c in architecture.backbone.convolutions() if c.level > 1]
        units, unit = [], []
        for index, conv in enumerate(chain):
            unit.append(conv)
            ends = sum(not c.shortcut for c in unit) == 3
            if ends and not (index + 1 < len(chain) and chain[index + 1].shortcut):
                units.append(0.02 + 1e-9 * multiply_adds(unit, width, height))
                unit = []
        names = [f"backbone.stage1.block{number}" for number in range(1, len(units) + 1)]
        parts = [MeasuredPart("backbone.stem", 0.1), *map(MeasuredPart, names, units)]
        return (*parts, MeasuredPart("neck", 0.9), MeasuredPart("head", 2.0))

    def measure_and_predict(self, architecture: Architecture) -> Latency:
        ms = sum(part.ms for part in self.measured_parts(architecture))
        return Latency(ms, ms, ms, True)
