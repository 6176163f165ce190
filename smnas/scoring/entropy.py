"""MAE-DET's score of a backbone: entropy of its feature maps without data, weights or training (arXiv 2111.13336).

The backbone counts as a plain chain of convolutions: no norm, activation or shortcut, weights and input from N(0, 1),
every output divided by its standard deviation. A convolution's deviation is then ``sqrt(C_in k^2)``, and the score is a
weighted sum over the levels C1 to C5 of ``sum of ln(deviation) up to there + ln(channels there)``.

It grows with every convolution: it is close to a count of layers, and of little use where depth is unbounded. Missing
levels add nothing, so backbones of fewer stages score less.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from smnas.space.architecture import Architecture, Backbone
from smnas.space.convolutions import Convolution, StemKind

__all__ = ["ENTROPY_FORMS", "EntropyForm", "backbone_entropy", "detector_entropy", "weighted_entropy"]


@dataclass(frozen=True)
class EntropyForm:
    """One way to score.

    Attributes:
        weights: Of the levels C1 to C5.
        by_resolution: ``(ln C + ln(H W)) * sum of ln(deviation)`` for a level instead of the sum of ``ln C`` and that
            sum, as in DeepMAD; the input size enters.
    """

    weights: tuple[float, float, float, float, float] = (0.0, 0.0, 1.0, 1.0, 6.0)
    by_resolution: bool = False


ENTROPY_FORMS: Mapping[str, EntropyForm] = {
    "entropy": EntropyForm(),
    "entropy-16": EntropyForm((0.0, 0.0, 1.0, 1.0, 16.0)),
    "entropy-deepmad": EntropyForm((1.0, 1.0, 1.0, 1.0, 8.0), by_resolution=True),
}
"""Published forms by command-line name."""

PUBLISHED = ENTROPY_FORMS["entropy"]


def backbone_entropy(
    spec: Backbone, form: EntropyForm = PUBLISHED, *, stem: StemKind = "deep", size: tuple[int, int] = (480, 480)
) -> float:
    """Score in closed form.

    Args:
        spec: Any backbone.
        form: Weights and terms.
        stem: ``deep`` or ``imagenet`` (7x7).
        size: Input (width, height) in pixels, used only ``by_resolution``.
    """
    deviations, channels = {}, {}
    for level, convolutions in _by_level(spec.convolutions(stem)).items():
        deviations[level] = sum(map(_log_deviation, convolutions))
        channels[level] = convolutions[-1].out_channels
    return weighted_entropy(deviations, channels, form, size)


def detector_entropy(architecture: Architecture, form: EntropyForm = PUBLISHED) -> float:
    """Score of a detector's backbone; neck, proposals and head do not enter."""
    return backbone_entropy(architecture.backbone, form, size=(architecture.input_width, architecture.input_height))


def weighted_entropy(
    deviations: Mapping[int, float], channels: Mapping[int, int], form: EntropyForm, size: tuple[int, int]
) -> float:
    """Score from each level's own sum of ``ln(deviation)`` and its channels, by level from 1."""
    total = score = 0.0
    for level, weight in enumerate(form.weights, start=1):
        if level not in deviations:
            break
        total += deviations[level]
        entropy = math.log(channels[level])
        if form.by_resolution:
            cells = math.prod(-(-side // 2**level) for side in size)
            score += weight * (entropy + math.log(cells)) * total
        else:
            score += weight * (entropy + total)
    return score


def _by_level(convolutions: Iterable[Convolution]) -> dict[int, list[Convolution]]:
    """Convolutions of the chain by level, in the order of running."""
    levels: dict[int, list[Convolution]] = {}
    for convolution in convolutions:
        if not convolution.shortcut:
            levels.setdefault(convolution.level, []).append(convolution)
    return levels


def _log_deviation(convolution: Convolution) -> float:
    """Half the log of the fan-in; as published, a grouped convolution counts as a dense one."""
    return 0.5 * math.log(convolution.in_channels * convolution.kernel**2)
