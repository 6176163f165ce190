"""Cases of the box kernels: RoIAlign of a pyramid, and NMS by group."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, batched_nms

from benchmarks.common.detectors import random_boxes
from benchmarks.kernels.kernel_cases import Case, chosen_by, relative_error
from kernels.dispatch import Choice, use
from kernels.nms import grouped_nms_mask, grouped_nms_mask_reference
from kernels.roi_align import multi_level_roi_align, multi_level_roi_align_reference

_BINS = 7


@dataclass(frozen=True)
class PoolShape:
    """Inputs of an RCNN head in a training step: feature maps of strides 4, 8, 16 and 32, and boxes of every image."""

    batch: int
    channels: int
    side: int
    boxes: int
    canonical_size: float

    def __str__(self) -> str:
        """For the answer."""
        side = self.side // 4
        return f"{self.batch}x{self.channels}x{side}x{side} and 3 halvings, {self.boxes} boxes an image"


def pooling_cases(place: torch.device, *, quick: bool) -> Iterator[Case]:
    """RoIAlign in a training step of the nano, the small and ResNet-50-FPN's detector."""
    if quick:
        shapes, dtypes, layouts = [PoolShape(2, 8, 64, 4, 32.0)], [torch.float32], [torch.channels_last]
    else:
        # the largest first
        shapes = [
            PoolShape(4, 256, 800, 512, 224.0),
            PoolShape(16, 256, 512, 512, 224.0),
            PoolShape(8, 64, 128, 64, 112.0),
        ]
        dtypes, layouts = [torch.bfloat16, torch.float32], [torch.channels_last, torch.contiguous_format]
    for shape in shapes:
        for dtype in dtypes:
            for layout in layouts:
                for backward in (False, True):
                    yield _pooling_case(place, shape, dtype, layout, backward=backward)


def _pooling_case(
    place: torch.device, shape: PoolShape, dtype: torch.dtype, layout: torch.memory_format, *, backward: bool
) -> Case:
    generator = torch.Generator().manual_seed(0)
    strides = [4, 8, 16, 32]
    sizes = [(shape.batch, shape.channels, shape.side // stride, shape.side // stride) for stride in strides]
    host = [torch.randn(size, generator=generator).to(dtype).contiguous(memory_format=layout) for size in sizes]
    boxes = random_boxes(shape.batch, shape.boxes, float(shape.side), 1)
    upstream = torch.randn(shape.batch * shape.boxes, shape.channels, _BINS, _BINS, generator=generator).to(dtype)
    there = [feature.to(place).requires_grad_() for feature in host]
    boxes_there, upstream_there = boxes.to(place), upstream.to(place)
    names = [str(stride) for stride in strides]
    theirs = MultiScaleRoIAlign(names, _BINS, 2, canonical_scale=int(shape.canonical_size))
    sizes_of_images = [(shape.side, shape.side)] * shape.batch

    def ours() -> Tensor:
        return multi_level_roi_align(there, boxes_there, strides, _BINS, shape.canonical_size)

    def torchvisions() -> Tensor:
        # it takes boxes of the feature maps' type, and half precision is too coarse for them: in float32, as users do
        maps = {name: feature.float() for name, feature in zip(names, there, strict=True)}
        pooled: Tensor = theirs(maps, list(boxes_there), sizes_of_images)
        return pooled.to(dtype)

    def step(function: Callable[[], Tensor]) -> Callable[[], object]:
        def run() -> object:
            if backward:
                return torch.autograd.grad(function(), there, upstream_there)
            with torch.no_grad():
                return function()

        return run

    def compare(kernels: Choice) -> dict[str, float]:
        """Of the first image: the reference pools every box on every level, in float64."""
        exact = [feature[:1].double().requires_grad_() for feature in host]
        expected = multi_level_roi_align_reference(exact, boxes[:1].double(), strides, _BINS, shape.canonical_size)
        up = upstream[: shape.boxes]
        gradients = torch.autograd.grad(expected, exact, up.double())
        one = [feature[:1].to(place).contiguous(memory_format=layout).requires_grad_() for feature in host]
        with use(kernels):
            found = multi_level_roi_align(one, boxes_there[:1], strides, _BINS, shape.canonical_size)
            computed = torch.autograd.grad(found, one, up.to(place))
        errors = {"value": relative_error(found, expected)}
        return errors | {
            f"gradient of stride {stride}": relative_error(ours, slow)
            for stride, ours, slow in zip(strides, computed, gradients, strict=True)
        }

    place_of = "channels-last" if layout is torch.channels_last else "contiguous"
    # how much of the feature maps the forward pass reads depends on the boxes; it writes the pooled ones in any case
    elements = upstream.numel() * (2 if backward else 1)
    elements += sum(feature.numel() for feature in host) if backward else 0
    return Case(
        f"multi_level_roi_align, forward{' and backward' if backward else ''}",
        f"{shape}, {place_of}",
        str(dtype).removeprefix("torch."),
        {
            "kernel": chosen_by("triton", step(ours)),
            "eager": chosen_by("torch", step(ours)),
            "torchvision": step(torchvisions),
        },
        elements * upstream.element_size(),
        compare,
    )


def nms_cases(place: torch.device, *, quick: bool) -> Iterator[Case]:
    """Proposals by level in a training step, and detections by class."""
    # batch, boxes, groups, side, threshold
    sizes = [(4, 5000, 5, 800, 0.7), (16, 5000, 5, 512, 0.7), (8, 800, 4, 128, 0.7), (1, 1000, 80, 800, 0.5)]
    for batch, count, groups, side, threshold in [(2, 60, 3, 64, 0.5)] if quick else sizes:
        yield _nms_case(place, batch, count, groups, float(side), threshold)


def _nms_case(place: torch.device, batch: int, count: int, groups: int, side: float, threshold: float) -> Case:
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(batch, count, side, 2)
    scores = torch.rand(batch, count, generator=generator) + 0.01
    group = torch.randint(0, groups, (batch, count), generator=generator)
    there = boxes.to(place), scores.to(place), group.to(place)

    def ours() -> object:
        return grouped_nms_mask(*there, threshold, side)

    def torchvisions() -> object:
        return [batched_nms(*one, threshold) for one in zip(*there, strict=True)]

    def compare(kernels: Choice) -> dict[str, float]:
        with use(kernels):
            found = grouped_nms_mask(there[0][:1], there[1][:1], there[2][:1], threshold, side).cpu()
        expected = grouped_nms_mask_reference(boxes[:1], scores[:1], group[:1], threshold)
        return {"boxes of the first image kept or dropped otherwise": float((found != expected).sum())}

    return Case(
        "grouped_nms_mask",
        f"{batch} images of {count} boxes in {groups} groups, IoU {threshold}",
        "float32",
        {
            "kernel": chosen_by("triton", ours),
            "eager": chosen_by("torch", ours),
            "torchvision": torchvisions,
        },
        0,
        compare,
    )
