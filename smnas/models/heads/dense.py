"""Shared by the dense heads: towers of convolutions, and the path to detections."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from smnas.models.heads.roi_heads import select_detections
from smnas.models.layers import ConvNorm, NormKind, prior_bias
from smnas.models.options import DetectorOptions
from smnas.models.target import Detections

__all__ = ["DensePostprocess", "conv_tower", "output_convs"]


def conv_tower(norm: NormKind, in_channels: int, width: int, depth: int, *, always_norm: bool = False) -> nn.Sequential:
    """``depth`` 3x3 convolutions of ``width`` channels with ReLU; ``always_norm`` as in ConvNorm."""
    widths = [in_channels] + [width] * depth
    return nn.Sequential(*(ConvNorm(norm, a, b, 3, always_norm=always_norm) for a, b in pairwise(widths)))


def output_convs(width: int, logits: int, regressed: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The last 3x3 convolutions of both towers, to these numbers of channels; at first every score is 0.01."""
    convs = nn.Conv2d(width, logits, 3, padding=1), nn.Conv2d(width, regressed, 3, padding=1)
    for conv in convs:
        nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(convs[0].bias, prior_bias(0.01))  # type: ignore[arg-type]
    nn.init.zeros_(convs[1].bias)  # type: ignore[arg-type]
    return convs


class DensePostprocess(nn.Module):
    """Decodes the best (reference, class) pairs of each level and runs class-wise NMS.

    Attributes:
        counts: References per level, finest first.
    """

    def __init__(
        self, name: str, references: Sequence[Tensor], width: int, height: int, options: DetectorOptions
    ) -> None:
        """Register the ``(A, R)`` references of all levels as the buffer ``name``: anchors, or centres and strides."""
        super().__init__()
        self.register_buffer(name, torch.cat(list(references)).to(torch.get_default_device()), persistent=False)
        self.counts = [len(of_level) for of_level in references]
        self.width, self.height = width, height
        self.options = options

    def extra_repr(self) -> str:
        """Everything that affects the latency."""
        return (
            f"counts={self.counts}, pre_nms_top_n={self.options.pre_nms_top_n}, candidates={self.options.candidates}, "
            f"detections={self.options.detections}, score_threshold={self.options.score_threshold}"
        )

    def detect(
        self, logits: Tensor, regressed: Tensor, references: Tensor, decode: Callable[[Tensor, Tensor], Tensor]
    ) -> Detections:
        """Detections of ``(B, A, classes)`` logits and ``(B, A, 4)`` regressed values.

        ``decode`` maps ``(N, 4)`` of these and ``(N, R)`` references to ``(N, 4)`` boxes in pixels.
        """
        batch, _, classes = logits.shape
        scores, boxes, labels = [], [], []
        start = 0
        for count in self.counts:
            level = logits[:, start : start + count].flatten(1)
            top = level.topk(min(self.options.pre_nms_top_n, level.shape[1]), dim=1)
            index = top.indices // classes + start
            chosen = regressed.gather(1, index[:, :, None].expand(-1, -1, 4))
            boxes.append(decode(chosen.reshape(-1, 4), references[index.flatten()]).view(batch, -1, 4))
            scores.append(top.values.sigmoid())
            labels.append(top.indices % classes)
            start += count
        limit = torch.tensor([self.width, self.height, self.width, self.height], device=logits.device)
        box = torch.minimum(torch.cat(boxes, dim=1).clamp(min=0), limit.to(logits.dtype))
        # each pair has one score: spread over the classes so that all heads share the last step
        label = torch.cat(labels, dim=1)[:, :, None]
        spread = torch.cat(scores, dim=1)[:, :, None] * (label == torch.arange(classes, device=logits.device))
        return select_detections(spread, box[:, :, None], self.options, max(self.width, self.height))
