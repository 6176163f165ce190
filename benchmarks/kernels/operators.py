"""Do the operators of ``kernels`` compute on the device what their references compute on a CPU?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.detectors import random_boxes
from benchmarks.common.gpu_question import Answer, Setting
from benchmarks.common.machine import one_line
from benchmarks.common.turns import largest_error
from kernels.nms import nms_mask, nms_mask_reference
from kernels.roi_align import multi_level_roi_align, multi_level_roi_align_reference, roi_levels
from kernels.weight_standardization import weight_standardize, weight_standardize_reference

Pair = tuple[str, Tensor, Tensor]
"""What is compared, on the device, and by the reference on the CPU."""


@dataclass(frozen=True)
class Case:
    """One operator on one shape.

    Attributes:
        operator: Its name.
        shape: Of its inputs, as text.
        dtype: Of the device's inputs; references run in float32 on the same numbers.
        run: Computes both sides.
    """

    operator: str
    shape: str
    dtype: str
    run: Callable[[torch.device], list[Pair]]


def run(setting: Setting, answer: Answer) -> str:
    """Compare every case; one that raises is a row with its reason."""
    failed = 0
    largest: dict[str, float] = {}
    for case in (case for cases in (_standardization, _nms, _roi_align) for case in cases(quick=setting.quick)):
        head = {"operator": case.operator, "shape": case.shape, "dtype": case.dtype}
        try:
            for what, found, expected in case.run(setting.place):
                row = _difference(found, expected)
                answer.add("rows", {**head, "compared": what, **row})
                if case.dtype == "float32":
                    largest[case.operator] = max(largest.get(case.operator, 0.0), float(row["max_abs_error"]))
        except Exception as error:  # noqa: BLE001 - an operator that does not run is this case's answer
            failed += 1
            answer.add("rows", {**head, "failed": one_line(error)})
    answer.put(largest_float32_error=largest)
    errors = ", ".join(f"{operator} {error:.1e}" for operator, error in largest.items())
    return f"largest float32 errors: {errors}; {failed} cases failed"


def _difference(found: Tensor, expected: Tensor) -> dict[str, float | int]:
    ours, theirs = found.detach().cpu().double().numpy(), expected.detach().double().numpy()
    return {
        "max_abs_error": largest_error(ours, theirs),
        "largest_reference": float(np.abs(theirs).max(initial=0.0)),
        "elements": ours.size,
        "differing": int((ours != theirs).sum()),
    }


def _standardization(*, quick: bool) -> Iterator[Case]:
    shapes = [(16, 3, 3, 3), (128, 64, 3, 3)] if quick else [(16, 3, 3, 3), (128, 64, 3, 3), (512, 512, 3, 3)]
    for shape in shapes:

        def run(place: torch.device, shape: tuple[int, ...] = shape) -> list[Pair]:
            generator = torch.Generator().manual_seed(0)
            weight, upstream = (torch.randn(shape, generator=generator) for _ in range(2))
            slow = weight.clone().requires_grad_()
            fast = weight.to(place).requires_grad_()
            expected, found = weight_standardize_reference(slow), weight_standardize(fast)
            (slow_grad,) = torch.autograd.grad(expected, slow, upstream)
            (fast_grad,) = torch.autograd.grad(found, fast, upstream.to(place))
            return [("value", found, expected), ("gradient", fast_grad, slow_grad)]

        yield Case("weight_standardize", "x".join(map(str, shape)), "float32", run)


def _nms(*, quick: bool) -> Iterator[Case]:
    sizes = [(2, 100)] if quick else [(1, 300), (8, 500), (1, 3000)]
    for batch, count in sizes:
        for threshold in (0.5, 0.7):

            def run(
                place: torch.device, batch: int = batch, count: int = count, threshold: float = threshold
            ) -> list[Pair]:
                boxes = random_boxes(batch, count, 512.0, seed=count)
                scores = torch.rand(batch, count, generator=torch.Generator().manual_seed(1)) - 0.1
                found = nms_mask(boxes.to(place), scores.to(place), threshold)
                return [(f"mask at IoU {threshold}", found, nms_mask_reference(boxes, scores, threshold))]

            yield Case("nms_mask", f"boxes {batch}x{count}x4", "float32", run)


def _roi_align(*, quick: bool) -> Iterator[Case]:
    # batch, channels, cells of the finest map, levels, boxes, canonical size: the nano and the small baseline's
    sizes = [(2, 64, 32, 4, 100, 112.0)] if quick else [(8, 64, 32, 4, 100, 112.0), (2, 256, 128, 4, 256, 224.0)]
    for batch, channels, cells, levels, boxes, canonical in sizes:
        shape = f"features {batch}x{channels}x{cells}x{cells} and {levels - 1} halvings, boxes {batch}x{boxes}x4"
        for dtype in (torch.float32, torch.bfloat16, torch.float16):

            def run(
                place: torch.device,
                dtype: torch.dtype = dtype,
                size: tuple[int, int, int, int, int, float] = (batch, channels, cells, levels, boxes, canonical),
            ) -> list[Pair]:
                batch, channels, cells, levels, boxes, canonical = size
                generator = torch.Generator().manual_seed(2)
                # rounded first, so that both sides read the same numbers
                features = [
                    torch.randn(batch, channels, cells >> level, cells >> level, generator=generator).to(dtype)
                    for level in range(levels)
                ]
                strides = [4 << level for level in range(levels)]
                roi = random_boxes(batch, boxes, cells * 4.0, seed=3)
                return _pooled(place, features, roi, strides, canonical)

            yield Case("multi_level_roi_align", shape, str(dtype).removeprefix("torch."), run)


def _pooled(
    place: torch.device, features: list[Tensor], boxes: Tensor, strides: list[int], canonical: float
) -> list[Pair]:
    """Levels, the inference operator, the training path, and (in float32) its gradient."""
    slow = [feature.float().requires_grad_() for feature in features]
    expected = multi_level_roi_align_reference(slow, boxes, strides, 7, canonical)
    fast = [feature.to(place).requires_grad_() for feature in features]
    there = boxes.to(place)
    with torch.no_grad():
        inference = multi_level_roi_align(fast, there, strides, 7, canonical)
    training = multi_level_roi_align(fast, there, strides, 7, canonical)
    levels = roi_levels(there, strides, canonical), roi_levels(boxes, strides, canonical)
    pairs = [
        ("levels", *levels),
        ("inference value", inference, expected),
        ("training value", training, expected),
    ]
    if features[0].dtype == torch.float32:
        upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
        slow_grads = torch.autograd.grad(expected, slow, upstream)
        fast_grads = torch.autograd.grad(training, fast, upstream.to(place))
        pairs += [
            (f"gradient of level {level}", fast_grads[level], slow_grads[level]) for level in range(len(features))
        ]
    return pairs
