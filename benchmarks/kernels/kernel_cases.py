"""Cases of the kernels: one operator on one shape, computed in several ways, against its reference in float64."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.detectors import NANO_BASELINE, NUM_CLASSES, RESNET50, SMALL_BASELINE, TINY_DENSE
from kernels.dispatch import Choice, use
from kernels.group_norm import group_norm_relu, group_norm_relu_reference
from kernels.weight_standardization import weight_standardize, weight_standardize_all, weight_standardize_reference
from smnas.models.build import build_detector
from smnas.models.layers import GroupNorm, WSConv2d
from smnas.space.architecture import Architecture

PAPER_BASELINE = f"{RESNET50}+800x800"
"""ResNet-50-FPN, the whole step that is timed."""


@dataclass(frozen=True)
class Case:
    """One operator on one shape.

    Attributes:
        operator: Its name, with what of it runs.
        shape: Of its inputs, as text.
        dtype: Of its inputs.
        runs: By name what does the same work once: ``kernel``, ``eager``, others.
        least_bytes: Bytes to read and write, each feature map once; 0 where no such bound makes sense.
        compare: By name, the largest error of values and gradients relative to the largest value, for a choice of
            kernels.
    """

    operator: str
    shape: str
    dtype: str
    runs: dict[str, Callable[[], object]]
    least_bytes: int
    compare: Callable[[Choice], dict[str, float]]


@dataclass(frozen=True)
class NormShape:
    """The ``(B, C, H, W)`` input of one GroupNorm of a detector."""

    size: tuple[int, ...]
    groups: int
    residual: bool
    relu: bool


def norm_shapes(architecture: str, batch: int) -> list[NormShape]:
    """Of all GroupNorms of a detector's backbone and neck, each shape once, the largest map first."""
    parsed = Architecture.parse(architecture)
    detector = build_detector(parsed, NUM_CLASSES, device="meta")
    found: set[NormShape] = set()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        if isinstance(module, GroupNorm):
            found.add(NormShape(tuple(inputs[0].shape), module.num_groups, len(inputs) == 2, module.relu))

    for module in detector.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        detector.features(torch.empty((batch, 3, parsed.input_height, parsed.input_width), device="meta"))
    return sorted(found, key=lambda one: (-math.prod(one.size[1:]), str(one)))


def norm_cases(place: torch.device, *, quick: bool) -> Iterator[Case]:
    """GroupNorm with addition and ReLU: the shapes of the nano, the small and the paper's ResNet-50 detector."""
    if quick:
        tiny = norm_shapes(TINY_DENSE, 2)
        shapes = [next(one for one in tiny if one.residual), next(one for one in tiny if not one.relu)]
        dtypes, layouts = [torch.float32], [torch.contiguous_format, torch.channels_last]
    else:
        paper, small = norm_shapes(PAPER_BASELINE, 4), norm_shapes(SMALL_BASELINE, 16)
        nano = norm_shapes(NANO_BASELINE, 8)
        # feature maps of hundreds of megabytes, of a few, and so small that launching takes the time
        shapes = [*paper[:3], *paper[len(paper) // 2 :: 4], *small[:2], small[-1], nano[0], nano[-1]]
        dtypes, layouts = [torch.bfloat16, torch.float32], [torch.channels_last, torch.contiguous_format]
    for dtype in dtypes:
        for layout in layouts:
            for number, shape in enumerate(shapes):
                # compiling takes seconds a shape: the largest ones in bf16 are enough
                compiled = number < (1 if quick else 3) and dtype is dtypes[0] and layout is layouts[0]
                for backward in (False, True):
                    yield _norm_case(place, shape, dtype, layout, backward=backward, compiled=compiled)


def _norm_case(
    place: torch.device,
    shape: NormShape,
    dtype: torch.dtype,
    layout: torch.memory_format,
    *,
    backward: bool,
    compiled: bool,
) -> Case:
    generator = torch.Generator(place).manual_seed(0)
    size, channels = shape.size, shape.size[1]

    def draw() -> Tensor:
        return torch.randn(size, generator=generator, device=place).to(dtype).contiguous(memory_format=layout)

    there = {"x": draw(), "residual": draw(), "upstream": draw()}
    there["weight"] = torch.randn(channels, generator=generator, device=place)
    there["bias"] = torch.zeros(channels, device=place)
    there = {name: tensor.requires_grad_(name != "upstream") for name, tensor in there.items()}

    def value(at: dict[str, Tensor], function: Callable[..., Tensor]) -> Tensor:
        added = at["residual"] if shape.residual else None
        return function(at["x"], shape.groups, at["weight"], at["bias"], 1e-5, added, relu=shape.relu)

    def leaves(at: dict[str, Tensor]) -> list[Tensor]:
        return [at[name] for name in ("x", "weight", "bias", *(("residual",) if shape.residual else ()))]

    def step(function: Callable[..., Tensor]) -> object:
        # PyTorch's GroupNorm takes weights of the feature maps' type on a GPU
        cast = {"weight": there["weight"].to(dtype), "bias": there["bias"].to(dtype)} if function is torchs else {}
        if not backward:
            with torch.no_grad():
                return value(there | cast, function)
        return torch.autograd.grad(value(there | cast, function), leaves(there), there["upstream"])

    torchs = _eager_norm
    by_inductor: Any = torch.compile(partial(step, torchs), dynamic=False) if compiled else None
    runs: dict[str, Callable[[], object]] = {"kernel": chosen_by("triton", lambda: step(group_norm_relu))}
    runs["eager"] = lambda: step(torchs)
    if compiled:
        runs["compile"] = by_inductor
    maps = 2 + shape.residual + backward * (3 + 2 * (shape.residual and shape.relu) + (shape.residual and shape.relu))
    kind = f"{'+add' if shape.residual else ''}{'+relu' if shape.relu else ''}"
    place_of = "channels-last" if layout is torch.channels_last else "contiguous"

    def compare(kernels: Choice) -> dict[str, float]:
        exact = {name: tensor.detach().double().requires_grad_(name != "upstream") for name, tensor in there.items()}
        expected = value(exact, group_norm_relu_reference)
        gradients = torch.autograd.grad(expected, leaves(exact), exact["upstream"])
        with use(kernels):
            found = value(there, group_norm_relu)
            theirs = torch.autograd.grad(found, leaves(there), there["upstream"])
        names = ["value", *(f"gradient of {name}" for name in ("x", "weight", "bias", "residual"))]
        pairs = zip(names, [found, *theirs], [expected, *gradients], strict=False)
        return {name: relative_error(one, other) for name, one, other in pairs}

    return Case(
        f"group_norm{kind}, forward{' and backward' if backward else ''}",
        f"{'x'.join(map(str, size))} in {shape.groups} groups, {place_of}",
        str(dtype).removeprefix("torch."),
        runs,
        maps * there["x"].numel() * there["x"].element_size(),
        compare,
    )


def _eager_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, *, relu: bool
) -> Tensor:
    with use("torch"):
        return group_norm_relu(x, groups, weight, bias, eps, residual, relu=relu)


def standardization_cases(place: torch.device, *, quick: bool) -> Iterator[Case]:
    """All filters of a detector."""
    for architecture in [TINY_DENSE] if quick else [NANO_BASELINE, SMALL_BASELINE, PAPER_BASELINE]:
        detector = build_detector(Architecture.parse(architecture), NUM_CLASSES)
        convs = [module for module in detector.modules() if isinstance(module, WSConv2d)]
        weights = [conv.weight.detach().to(place).requires_grad_() for conv in convs]
        upstream = [torch.randn_like(weight) for weight in weights]
        yield _standardization_case(architecture, weights, upstream)


def _standardization_case(architecture: str, weights: list[Tensor], upstream: list[Tensor]) -> Case:
    def step() -> object:
        return torch.autograd.grad(weight_standardize_all(weights), weights, upstream)

    def singly() -> object:
        return torch.autograd.grad([weight_standardize(weight) for weight in weights], weights, upstream)

    def compare(kernels: Choice) -> dict[str, float]:
        exact = [weight.detach().double().requires_grad_() for weight in weights]
        expected = [weight_standardize_reference(weight) for weight in exact]
        gradients = torch.autograd.grad(expected, exact, [one.double() for one in upstream])
        with use(kernels):
            found = weight_standardize_all(weights)
            theirs = torch.autograd.grad(found, weights, upstream)
        return {
            "value": max(map(relative_error, found, expected)),
            "gradient": max(map(relative_error, theirs, gradients)),
        }

    elements = sum(weight.numel() for weight in weights)
    return Case(
        "weight_standardize, forward and backward",
        f"{len(weights)} weights, {elements:,} elements, of {architecture}",
        "float32",
        {"kernel": chosen_by("triton", step), "eager": chosen_by("torch", singly)},
        5 * 4 * elements,
        compare,
    )


def chosen_by(kernels: Choice, run: Callable[[], object]) -> Callable[[], object]:
    def chosen() -> object:
        with use(kernels):
            return run()

    return chosen


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; NaN where either is not a number."""
    difference = (found.detach().double().to(expected.device) - expected.detach()).abs()
    return float(difference.max() / expected.detach().abs().max().clamp(min=1e-30))
