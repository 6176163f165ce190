"""Latency of thousands of detectors at once that differ in their super-blocks only, from the latency table.

No table can hold a block of every width, so the blocks of some detectors are fitted: a bottleneck's latency is a
non-negative sum of a constant, its multiply-adds by kind of convolution and its written elements; stem and pyramid are
similar. All other blocks are the same for all of these detectors. The sum is calibrated to end-to-end latency like any
prediction.

This guides a search; its results are predicted again from the rows of their own blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from profiler.errors import UserError
from profiler.prediction.predict import LatencyModel
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.prediction import MeasuredPart
from smnas.space.architecture import Architecture, FPNSpec
from smnas.space.families.super_blocks import SuperBlockPopulation, block_halvings, block_levels
from smnas.space.super_block_cost import unit_weights

__all__ = ["SuperBlockLatency", "fit_super_block_latency", "non_negative_least_squares"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SuperBlockLatency:
    """A predictor, built by :func:`fit_super_block_latency`.

    Attributes:
        frame: A detector with the common neck, proposals, head and input.
        units: ``(5,)`` ms per feature of a bottleneck.
        stem: ``(2,)`` ms per feature of the stem.
        neck: ``(2,)`` ms per feature of the pyramid.
        others_ms: Sum of all other blocks.
        others: Number of other blocks.
        model: Maps the sum of blocks to end-to-end latency.
        relative_error: Leave-one-out root mean square of the relative error of the sum of blocks.
    """

    frame: Architecture
    units: Floats
    stem: Floats
    neck: Floats
    others_ms: float
    others: int
    model: LatencyModel
    relative_error: float = float("nan")

    def __call__(self, population: SuperBlockPopulation) -> Floats:
        """``(N,)`` predicted medians in ms."""
        counts = 2 + population.repeats.sum(axis=1) + self.others  # stem and pyramid are one block each
        return np.asarray(self.model.predict_many(self.sums_ms(population), counts).ms)

    def sums_ms(self, population: SuperBlockPopulation) -> Floats:
        """``(N,)`` sums of the blocks' medians in ms."""
        first, repeated = _unit_features(population, self.frame)
        units = first.sum(axis=1) + ((population.repeats - 1)[..., None] * repeated).sum(axis=1)
        stem, neck = _stem_features(population, self.frame), _neck_features(population, self.frame)
        return np.asarray(units @ self.units + stem @ self.stem + neck @ self.neck + self.others_ms)


def fit_super_block_latency(detectors: Sequence[Architecture], latency: DetectorLatency) -> SuperBlockLatency:
    """Fit on the blocks of at least two detectors that differ in super-blocks of one layout; missing ones are measured.

    Raises:
        LatencyFailedError: one of them does not build or run.
        UserError: they have no pyramid.
    """
    frame = detectors[0]
    if not isinstance(frame.neck, FPNSpec):
        raise UserError(
            f"a latency that is fitted over backbones needs a detector with a pyramid, but got {frame.neck}"
        )
    if len({_frame_of(detector) for detector in detectors}) != 1 or len(detectors) < 2:
        raise ValueError("at least two detectors with one neck, proposals, head and input are needed")
    latency.measure_blocks(detectors)
    predictor = latency.predictor
    samples = [_sample(detector, predictor.measured_parts(detector)) for detector in detectors]
    fitted = _fit(samples, frame, predictor.model)
    errors = []
    for left_out, sample in enumerate(samples):
        without = _fit([other for index, other in enumerate(samples) if index != left_out], frame, predictor.model)
        errors.append(float(without.sums_ms(sample.backbone)[0]) / sample.total_ms - 1.0)
    return SuperBlockLatency(
        frame,
        fitted.units,
        fitted.stem,
        fitted.neck,
        fitted.others_ms,
        fitted.others,
        fitted.model,
        float(np.sqrt(np.mean(np.square(errors)))),
    )


@dataclass(frozen=True)
class _Sample:
    """One measured detector."""

    backbone: SuperBlockPopulation
    units_ms: Floats
    stem_ms: float
    neck_ms: float
    others_ms: float
    others: int

    @property
    def total_ms(self) -> float:
        return float(self.units_ms.sum()) + self.stem_ms + self.neck_ms + self.others_ms


def _sample(detector: Architecture, parts: Sequence[MeasuredPart]) -> _Sample:
    units = [part.ms for part in parts if part.name.startswith("backbone.stage")]
    stem = sum(part.ms for part in parts if part.name == "backbone.stem")
    neck = sum(part.ms for part in parts if part.name == "neck")
    others = [part.ms for part in parts if not part.name.startswith("backbone.") and part.name != "neck"]
    population = SuperBlockPopulation.of([detector.backbone])
    return _Sample(population, np.array(units), stem, neck, sum(others), len(others))


def _fit(samples: Sequence[_Sample], frame: Architecture, model: LatencyModel) -> SuperBlockLatency:
    features, targets = [], []
    for sample in samples:
        first, repeated = _unit_features(sample.backbone, frame)
        for block, repeats in enumerate(sample.backbone.repeats[0].tolist()):
            features += [first[0, block], *([repeated[0, block]] * (repeats - 1))]
        targets.append(sample.units_ms)
    stems = np.concatenate([_stem_features(sample.backbone, frame) for sample in samples])
    necks = np.concatenate([_neck_features(sample.backbone, frame) for sample in samples])
    return SuperBlockLatency(
        frame=frame,
        units=_relative_fit(np.array(features), np.concatenate(targets)),
        stem=_relative_fit(stems, np.array([sample.stem_ms for sample in samples])),
        neck=_relative_fit(necks, np.array([sample.neck_ms for sample in samples])),
        others_ms=float(np.mean([sample.others_ms for sample in samples])),
        others=samples[0].others,
        model=model,
    )


def _relative_fit(features: Floats, ms: Floats) -> Floats:
    """Non-negative coefficients of the least squares of the relative error."""
    scale = features.max(axis=0)
    scale[scale == 0.0] = 1.0
    return np.asarray(non_negative_least_squares(features / scale / ms[:, None], np.ones(len(ms))) / scale)


def non_negative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """``(F,)`` ``x >= 0`` that minimises ``|matrix x - target|`` for ``(M, F)`` and ``(M,)``, exactly.

    The solution is the unconstrained one over its positive columns; with a few columns all subsets are tried.
    """
    columns = matrix.shape[1]
    best, best_error = np.zeros(columns), float(target @ target)
    for used in product((False, True), repeat=columns):
        if not any(used):
            continue
        mask = np.array(used)
        solution = np.linalg.lstsq(matrix[:, mask], target, rcond=None)[0]
        if (solution < 0.0).any():
            continue
        error = float(np.square(matrix[:, mask] @ solution - target).sum())
        if error < best_error:
            best, best_error = np.zeros(columns), error
            best[mask] = solution
    return best


def _frame_of(detector: Architecture) -> tuple[object, ...]:
    return (detector.neck, detector.rpn, detector.head, detector.input_width, detector.input_height)


def _cells(frame: Architecture, level: int) -> int:
    """Positions of one level's feature map."""
    width, height = (-(-side // (1 << level)) for side in (frame.input_width, frame.input_height))
    return width * height


def _unit_features(p: SuperBlockPopulation, frame: Architecture) -> tuple[Floats, Floats]:
    """``(N, B, 5)`` of the first bottleneck of each super-block, and of a repeated one.

    A constant, multiply-adds of 1x1, of 3x3 and of 5x5 convolutions, and written elements.
    """
    read, _, _, projection = unit_weights(p)
    levels = block_levels(p.layout)
    out = np.array([_cells(frame, level) for level in levels.tolist()])
    into = np.where(block_halvings(p.layout), [_cells(frame, level - 1) for level in levels.tolist()], out)
    middle = (p.width * p.kernel) ** 2 * out
    is_3 = p.kernel == 3
    one = np.ones_like(p.out)
    written = (p.width + p.out) * out
    first = (
        one,
        read * p.width * into + p.out * p.width * out + projection * out,
        np.where(is_3, middle, 0),
        np.where(is_3, 0, middle),
        p.width * into + written + np.where(projection > 0, p.out, 0) * out,
    )
    repeated = (
        one,
        2 * p.out * p.width * out,
        first[2],
        first[3],
        p.width * out + written,
    )
    return np.stack(first, axis=-1).astype(np.float64), np.stack(repeated, axis=-1).astype(np.float64)


def _stem_features(p: SuperBlockPopulation, frame: Architecture) -> Floats:
    """``(N, 2)``: a constant and the written elements."""
    return np.column_stack((np.ones(len(p)), p.stem * _cells(frame, 1))).astype(np.float64)


def _neck_features(p: SuperBlockPopulation, frame: Architecture) -> Floats:
    """``(N, 2)``: a constant and the elements that the laterals read."""
    ends = np.cumsum(p.layout) - 1
    channels = np.column_stack((p.stem, p.out[:, ends]))
    low = frame.neck.low if isinstance(frame.neck, FPNSpec) else 1
    reading = sum(channels[:, level - 1] * _cells(frame, level) for level in range(low, channels.shape[1] + 1))
    return np.column_stack((np.ones(len(p)), reading)).astype(np.float64)
