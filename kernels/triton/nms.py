"""Greedy NMS of one batch in two kernel launches, without host synchronisation.

The first finds the worse boxes that each box would drop: one bit each, 32 per word, all pairs at once. The second runs
one program per image down its boxes from the best one: a box whose bit is not yet set is kept, and its row of bits is
ORed in. Within 32 boxes that is a chain of scalars; the rows behind them load in parallel.

IoUs equal torchvision's CPU operator to the last bit: float32, every operation rounded by itself (no fused
multiply-add), and a NaN quotient (boxes without area, infinite boxes) exceeds nothing.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import interpreted

__all__ = ["Launch", "keep", "launch"]

_WORD = 32  # bits


@dataclass(frozen=True)
class Launch:
    """Better boxes (rows) and words of worse ones per program of the first kernel; powers of 2."""

    rows: int
    words: int
    warps: int
    scan_warps: int


def launch(boxes: int) -> Launch:
    """Choose how the pairs of ``boxes`` boxes per image are spread over programs."""
    words = triton.cdiv(boxes, _WORD)
    scan_warps = max(1, min(16, triton.next_power_of_2(words) // 64))
    return Launch(256, 8, 4, scan_warps) if interpreted() else Launch(32, 2, 4, scan_warps)


def keep(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Return the mask of :func:`kernels.nms.grouped_nms_mask_reference` for float32 boxes; neither B nor N is 0.

    ``threshold`` is a float32.
    """
    batch, count = scores.shape
    plan = launch(count)
    words = triton.cdiv(count, _WORD)
    candidate = scores > 0
    # non-candidates, NaN scores included, sort behind all candidates
    order = torch.where(candidate, scores, 0).sort(dim=1, descending=True, stable=True).indices
    candidates = candidate.sum(dim=1, dtype=torch.int32)
    # rows for all bits of the last word: the second kernel reads whole words of rows
    bits = torch.empty((batch, words * _WORD, words), dtype=torch.int32, device=boxes.device)
    kept = torch.zeros((batch, count), dtype=torch.uint8, device=boxes.device)
    _drops[(triton.cdiv(words, plan.words), triton.cdiv(count, plan.rows), batch)](
        *(boxes.contiguous(), groups.contiguous(), order, bits, count, words, threshold),
        ROWS=plan.rows,
        WORDS=plan.words,
        num_warps=plan.warps,
        enable_fp_fusion=False,
    )
    _scan[(batch,)](
        *(bits, order, candidates, kept, count, words),
        WORDS=triton.next_power_of_2(words),
        num_warps=plan.scan_warps,
    )
    return kept.view(torch.bool)


@triton.jit
def _drops(boxes, groups, order, bits, count, words, threshold, ROWS: tl.constexpr, WORDS: tl.constexpr):
    first_word = tl.program_id(0) * WORDS
    first_row = tl.program_id(1) * ROWS
    image = tl.program_id(2).to(tl.int64)
    # words that hold only better boxes are never read
    if (first_word + WORDS) * 32 > first_row:
        row = first_row + tl.arange(0, ROWS)[:, None, None]
        word = first_word + tl.arange(0, WORDS)[None, :, None]
        lane = tl.arange(0, 32)[None, None, :]
        column = word * 32 + lane
        better = image * count + tl.load(order + image * count + row, mask=row < count, other=0)
        worse = image * count + tl.load(order + image * count + column, mask=column < count, other=0)
        left_a, left_b = tl.load(boxes + better * 4), tl.load(boxes + worse * 4)
        top_a, top_b = tl.load(boxes + better * 4 + 1), tl.load(boxes + worse * 4 + 1)
        right_a, right_b = tl.load(boxes + better * 4 + 2), tl.load(boxes + worse * 4 + 2)
        bottom_a, bottom_b = tl.load(boxes + better * 4 + 3), tl.load(boxes + worse * 4 + 3)
        # a NaN coordinate makes the area NaN too, however minimum and maximum treat it
        width = tl.maximum(tl.minimum(right_a, right_b) - tl.maximum(left_a, left_b), 0.0)
        height = tl.maximum(tl.minimum(bottom_a, bottom_b) - tl.maximum(top_a, top_b), 0.0)
        shared = width * height
        area_a = (right_a - left_a) * (bottom_a - top_a)
        area_b = (right_b - left_b) * (bottom_b - top_b)
        drops = tl.div_rn(shared, area_a + area_b - shared) > threshold
        drops &= (column > row) & (column < count)
        drops &= tl.load(groups + better) == tl.load(groups + worse)
        packed = tl.sum(drops.to(tl.int32) << lane, axis=2)
        row = first_row + tl.arange(0, ROWS)[:, None]
        word = first_word + tl.arange(0, WORDS)[None, :]
        at = (image * (words * 32) + row) * words + word
        tl.store(bits + at, packed, mask=(row < count) & (word < words))


@triton.jit
def _scan(bits, order, candidates, kept, count, words, WORDS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    number = tl.load(candidates + image)
    bits += image * (words * 32) * words
    word = tl.arange(0, WORDS)
    lane = tl.arange(0, 32)
    dropped = tl.zeros([WORDS], dtype=tl.int32)
    for own in range(0, tl.cdiv(number, 32)):
        gone = tl.sum(tl.where(word == own, dropped, 0), axis=0)
        for bit in tl.static_range(32):
            row = own * 32 + bit
            stays = (row < number) & (((gone >> bit) & 1) == 0)
            gone |= tl.where(stays, tl.load(bits + row * words + own), 0)
            behind = tl.load(bits + row * words + word, mask=(word > own) & (word < words), other=0)
            dropped |= tl.where(stays, behind, 0)
        row = own * 32 + lane
        stays = (row < number) & (((gone >> lane) & 1) == 0)
        at = tl.load(order + image * count + row, mask=row < number, other=0)
        tl.store(kept + image * count + at, 1, mask=stays)
