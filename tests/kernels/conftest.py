"""What the tests of operators share."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def suppression_sets() -> Callable[[str, int, int, torch.Generator], tuple[Tensor, Tensor]]:
    """Draws sets of boxes of a kind and positive scores: kind, sets, boxes of each, generator."""
    return _suppression_sets


def _suppression_sets(kind: str, sets: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    side = 32.0
    corner = torch.rand(sets, count, 2, generator=generator) * side
    size = torch.rand(sets, count, 2, generator=generator) ** 2 * side
    boxes = torch.cat([corner, (corner + size).clamp(max=side)], dim=2)
    scores = torch.rand(sets, count, generator=generator) + 0.01
    if kind == "ties":
        # whole corners give overlaps such as exactly 0.5, and a few scores many ties
        boxes, scores = boxes.round(), (scores * 4).ceil() / 4
    elif kind == "identical":
        boxes = boxes[:, torch.randint(0, max(1, count // 3), (count,), generator=generator)]
        scores = (scores * 8).ceil() / 8
    elif kind == "no area":
        flat = torch.rand(sets, count, generator=generator) < 0.5
        boxes[..., 2] = torch.where(flat, boxes[..., 0], boxes[..., 2])
    elif kind == "classes":
        boxes = boxes + torch.randint(0, 5, (sets, count, 1), generator=generator) * 33.0
    elif kind == "not finite":
        strange = torch.tensor([math.nan, math.inf, -math.inf])[torch.randint(0, 3, boxes.shape, generator=generator)]
        boxes = torch.where(torch.rand(boxes.shape, generator=generator) < 0.1, strange, boxes)
        boxes[:, 1::4] = boxes[:, :1]
    return boxes, scores
