"""Exponential moving average of the weights, which is evaluated and kept while the raw weights train."""

import copy

import torch

from smnas.models.detector import Detector

__all__ = ["WeightAverage", "decay_at"]

_RAMP = 10


def decay_at(iteration: int, decay: float) -> float:
    """Decay in step ``iteration`` (from 0): ``(1 + iteration) / (10 + iteration)``, at most ``decay``.

    The ramp keeps the random initial weights out of the average of a short run.
    """
    return min(decay, (1 + iteration) / (_RAMP + iteration))


class WeightAverage:
    """A copy of a detector with averaged weights; ``decay`` is the fraction that a step keeps after the ramp.

    torch's ``AveragedModel`` counts its updates in a tensor, and reading it would synchronize with the GPU in every
    step; here the count is the run's iteration, so only the weights need to be stored.
    """

    def __init__(self, detector: Detector, decay: float) -> None:
        self.detector = copy.deepcopy(detector).eval().requires_grad_(False)
        self._decay = decay
        # buffers outside the state dict (anchors, the images' mean) never change
        self._changing = sorted(detector.state_dict().keys() & dict(detector.named_buffers()).keys())

    @torch.no_grad()
    def update(self, detector: Detector, iteration: int) -> None:
        """Add the weights of step ``iteration`` to the average; running statistics of norms are copied."""
        share = 1 - decay_at(iteration, self._decay)
        averages = [weight.data for weight in self.detector.parameters()]
        torch._foreach_lerp_(averages, [weight.data for weight in detector.parameters()], share)
        for name in self._changing:
            self.detector.get_buffer(name).copy_(detector.get_buffer(name))
