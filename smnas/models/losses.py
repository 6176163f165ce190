"""Which losses train boxes: a recipe's choices, apart from the architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

__all__ = ["USUAL_LOSSES", "Assignment", "BoxLoss", "LossOptions", "overlap_loss"]

BoxLoss = Literal["smooth-l1", "giou", "ciou"]
Assignment = Literal["overlap", "atss"]

_OVERLAP_LOSSES: dict[str, Callable[..., Tensor]] = {"giou": generalized_box_iou_loss, "ciou": complete_box_iou_loss}
_WEIGHT = 2.0  # of the mean over boxes, as FCOS's head weighs it here


@dataclass(frozen=True)
class LossOptions:
    """What is minimised.

    Attributes:
        box: Of anchors and regions: ``smooth-l1`` (the usual loss of each head, on coded offsets), or ``giou`` or
            ``ciou`` (Rezatofighi et al., arXiv 1902.09630; Zheng et al., arXiv 1911.08287) on the boxes themselves.
            FCOS's head always has ``giou``.
        assignment: Which anchors are positive: those above a fixed ``overlap``, or above one that is adapted to each
            object (``atss``). FCOS's head and guided anchors have rules of their own.
    """

    box: BoxLoss = "smooth-l1"
    assignment: Assignment = "overlap"


USUAL_LOSSES = LossOptions()


def overlap_loss(kind: BoxLoss, boxes: Tensor, objects: Tensor) -> Tensor:
    """The weighted mean of a loss of overlap; 0 without boxes.

    Args:
        kind: ``giou`` or ``ciou``.
        boxes: ``(N, 4)`` predicted, ``xyxy`` in pixels.
        objects: ``(N, 4)`` wanted.
    """
    total: Tensor = _OVERLAP_LOSSES[kind](boxes, objects, reduction="sum")
    return _WEIGHT * total / max(1, len(boxes))
