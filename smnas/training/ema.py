"""An exponential moving average of the weights: what is evaluated and kept, while the raw weights go on training."""

import copy

import torch

from smnas.models.detector import Detector

__all__ = ["WeightAverage", "decay_at"]

_RAMP = 10


def decay_at(iteration: int, decay: float) -> float:
    """The average's decay in step ``iteration`` (from 0): ``(1 + iteration) / (10 + iteration)`` up to ``decay``.

    The ramp keeps the random first weights out of the average of a short run.
    """
    return min(decay, (1 + iteration) / (_RAMP + iteration))


class WeightAverage:
    """A copy of a detector whose weights follow the trained one's.

    torch's own ``AveragedModel`` counts its updates in a tensor, and reading it would wait for the GPU in every step;
    here the count is the run's iteration, so that nothing but the weights has to be stored.

    Args:
        detector: On the device where it trains; copied.
        decay: Share of the old average that a step keeps, in the long run.
    """

    def __init__(self, detector: Detector, decay: float) -> None:
        self.detector = copy.deepcopy(detector).eval().requires_grad_(False)
        self._decay = decay
        # what is not stored (anchors, the images' mean) never changes
        self._changing = sorted(detector.state_dict().keys() & dict(detector.named_buffers()).keys())

    @torch.no_grad()
    def update(self, detector: Detector, iteration: int) -> None:
        """Take the weights of step ``iteration`` into the average; a norm's running statistics are copied."""
        share = 1 - decay_at(iteration, self._decay)
        averages = [weight.data for weight in self.detector.parameters()]
        torch._foreach_lerp_(averages, [weight.data for weight in detector.parameters()], share)
        for name in self._changing:
            self.detector.get_buffer(name).copy_(detector.get_buffer(name))
