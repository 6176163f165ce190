"""The losses of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

__all__ = ["USUAL_LOSSES", "Assignment", "BoxLoss", "LossOptions", "overlap_loss"]

BoxLoss = Literal["smooth-l1", "giou", "ciou"]
Assignment = Literal["overlap", "atss"]

_OVERLAP_LOSSES: dict[str, Callable[..., Tensor]] = {"giou": generalized_box_iou_loss, "ciou": complete_box_iou_loss}
_WEIGHT = 2.0  # weight of the mean over boxes, equal to FCOS's


@dataclass(frozen=True)
class LossOptions:
    """Choice of losses.

    Attributes:
        box: For anchors and regions: ``smooth-l1`` (each head's usual loss, on encoded offsets), or ``giou`` or
            ``ciou`` (Rezatofighi et al., arXiv 1902.09630; Zheng et al., arXiv 1911.08287) on boxes. FCOS always uses
            ``giou``.
        assignment: Positive anchors by a fixed IoU threshold (``overlap``) or one adapted to each object (``atss``).
            FCOS and guided anchors have their own rules.
    """

    box: BoxLoss = "smooth-l1"
    assignment: Assignment = "overlap"


USUAL_LOSSES = LossOptions()


def overlap_loss(kind: BoxLoss, boxes: Tensor, objects: Tensor) -> Tensor:
    """Weighted mean of the ``giou`` or ``ciou`` loss of ``(N, 4)`` boxes, ``xyxy`` in pixels; 0 without boxes."""
    total: Tensor = _OVERLAP_LOSSES[kind](boxes, objects, reduction="sum")
    return _WEIGHT * total / max(1, len(boxes))
