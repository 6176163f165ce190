"""Initialises a network from the weights of another one with the same kind of block but other depth, width or kernels.

FNA's parameter remapping (Fang et al., arXiv 2001.02525): layer i of a stage takes the seed's layer min(i, last), the
first channels of it, and the centre of its kernel or all of it in a frame of zeros. Channels that the seed lacks keep
their initial weights, but the copied channels do not read them at first: the weights in between are zero.

States have this project's names; :func:`seed_state` renames published ones.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.errors import UserError
from smnas.models.detector import Detector, TwoStageDetector
from smnas.models.layers import GroupNorm, NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.base import Backbone
from smnas.space.families.resnet import ResNetSpec
from smnas.space.families.super_blocks import SuperBlockSpec

__all__ = [
    "Block",
    "Remapped",
    "Seed",
    "block_of",
    "match_statistics",
    "remap",
    "seed_block",
    "seed_state",
    "start_from",
]

Block = Literal["basicblock", "bottleneck", "resnext", "inverted", "super-block"]

# the first of torchvision's `features` in each stage of MobileNetV2; `features.18` is the classifier's convolution
_MOBILENET_STAGES = (1, 2, 4, 7, 14, 18)
_EPS = 1e-5  # of BatchNorm
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Seed:
    """A network to start others from.

    Attributes:
        name: For a reader, such as a file's name.
        block: Its kind of block.
        backbone: ``state_dict`` of its backbone, in this project's names.
        rest: Of its neck and heads, if it is a detector.
        digest: Of the content.
        norm, stem: Of a detector of this project; None for a published classifier.
    """

    name: str
    block: Block
    backbone: Mapping[str, Tensor]
    digest: str
    rest: Mapping[str, Tensor] | None = None
    norm: NormKind | None = None
    stem: StemKind | None = None


@dataclass(frozen=True)
class Remapped:
    """A ``state_dict`` and what of it is the seed's.

    Attributes:
        state: The new state.
        taken: Numbers that come from the seed, by name; of statistics none count.
    """

    state: Mapping[str, Tensor]
    taken: Mapping[str, int]

    @property
    def fraction(self) -> float:
        """Fraction of the parameters that come from the seed."""
        return sum(self.taken.values()) / sum(self.state[name].numel() for name in self.taken)


def block_of(backbone: Backbone) -> Block:
    """The kind of block of a coded backbone."""
    if isinstance(backbone, ResNetSpec):
        return backbone.block
    return "super-block" if isinstance(backbone, SuperBlockSpec) else "inverted"


def seed_block(seed: Mapping[str, Tensor]) -> Block:
    """The kind of block of a published network's state in this project's names."""
    if "stage1.0.conv.0.0.weight" in seed:
        return "inverted"
    if "stage1.0.conv3.weight" not in seed:
        return "basicblock"
    inner = seed["stage1.0.conv2.weight"]
    return "bottleneck" if inner.shape[0] == inner.shape[1] else "resnext"


def seed_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ResNet's, ResNeXt's or MobileNetV2's ``state_dict``, without its classifier.

    Names of torchvision, or of a MobileNetV2 whose layers are numbered consecutively inside a block.

    Raises:
        UserError: another network.
    """
    if "layer1.0.conv1.weight" in state and "conv1.weight" in state:
        names = {"conv1": "stem.conv", "bn1": "stem.norm"}
        names |= {f"layer{stage}": f"stage{stage}" for stage in range(1, 5)}
        parts = {name: name.partition(".") for name in state}
        return {f"{names[first]}.{rest}": state[name] for name, (first, _, rest) in parts.items() if first in names}
    consecutive = "features.1.conv.3.weight" in state
    if not ("features.0.0.weight" in state and (consecutive or "features.1.conv.0.0.weight" in state)):
        raise UserError(
            "weights to start from are those of a ResNet, ResNeXt or MobileNetV2 in torchvision's names, but got a "
            f"state_dict with {next(iter(state))}"
        )
    renamed = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"features\.(\d+)\.(.+)", name)
        if match is None or (index := int(match[1])) >= _MOBILENET_STAGES[-1]:
            continue
        if index == 0:
            part, leaf = match[2].split(".")
            renamed[f"stem.{('conv', 'norm')[int(part)]}.{leaf}"] = tensor
            continue
        stage = max(k for k, first in enumerate(_MOBILENET_STAGES) if first <= index)
        rest = _grouped(match[2], last=1 if index == 1 else 2) if consecutive else match[2]
        renamed[f"stage{stage}.{index - _MOBILENET_STAGES[stage]}.{rest}"] = tensor
    return renamed


def _grouped(rest: str, last: int) -> str:
    """``conv.4.bias`` to ``conv.1.1.bias``: convolution, norm and ReLU as one, but for the last, which has no ReLU."""
    _, number, leaf = rest.split(".")
    layer, part = divmod(int(number), 3)
    return f"conv.{layer + part}.{leaf}" if layer == last else f"conv.{layer}.{part}.{leaf}"


def remap(fresh: Mapping[str, Tensor], seed: Mapping[str, Tensor]) -> Remapped:
    """Start the backbone with the initial state ``fresh`` from a seed with the same kind of block.

    MobileNetV2's block before the first stage, where ``fresh`` has none, goes into the layers around it.
    """
    seed = _without_first_block(fresh, seed) if "stage0.0.conv.1.weight" in seed else dict(seed)
    if "reduce.reduce.0.weight" in fresh and "reduce.reduce.0.weight" not in seed:
        seed |= _passing_on(seed["stem.conv.weight"].shape[0])  # instead of max-pooling
    last: dict[str, int] = {}
    for name in seed:
        if match := re.match(r"(stage\d)\.(\d+)\.", name):
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    state, taken = {}, {}
    for name, own in fresh.items():
        source = seed.get(_source(name, fresh, seed, last))
        state[name], count = (own, 0) if source is None else _fitted(source, own)
        if not name.endswith(_STATISTICS):
            taken[name] = count
    return Remapped(state, taken)


def _source(name: str, fresh: Mapping[str, Tensor], seed: Mapping[str, Tensor], last: Mapping[str, int]) -> str:
    match = re.fullmatch(r"(stage\d)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    here, there = f"{match[1]}.{match[2]}", f"{match[1]}.{min(int(match[2]), last.get(match[1], 0))}"
    inside = re.fullmatch(r"conv\.(\d)\.(.+)", match[3])
    if inside is None:
        return f"{there}.{match[3]}"
    # an inverted residual without expansion lacks the first layer: layers are matched from the end
    expands = [f"{block}.conv.3.weight" in state for block, state in ((here, fresh), (there, seed))]
    return f"{there}.conv.{int(inside[1]) + expands[1] - expands[0]}.{inside[2]}"


def _fitted(source: Tensor, own: Tensor) -> tuple[Tensor, int]:
    """``source`` in the shape of ``own``, and how many of its numbers are in it."""
    source, out = source.to(own.dtype), own.clone()
    if own.ndim == 0:
        return source, 1
    count = math.prod(map(min, zip(source.shape, own.shape, strict=True)))
    if own.ndim == 4:
        source = F.pad(source, [(own.shape[-1] - source.shape[-1]) // 2] * 4)
    common = tuple(map(slice, map(min, zip(source.shape[:2], own.shape[:2], strict=True))))
    out[common[0]] = 0  # what the copied channels read of channels that the seed lacks
    out[common] = source[common]
    return out, count


def _passing_on(channels: int) -> dict[str, Tensor]:
    """A 3x3 convolution of the identity with a norm that changes nothing."""
    weight = nn.init.dirac_(torch.empty(channels, channels, 3, 3))
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    norm = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
    return {"reduce.reduce.0.weight": weight} | {f"reduce.reduce.1.{name}": value for name, value in norm.items()}


def _without_first_block(fresh: Mapping[str, Tensor], seed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put MobileNetV2's block without expansion into the second convolution of a deep stem and the next expansion.

    Its projection and the expansion are linear and one after the other. The depthwise convolution becomes a full one in
    the deep stem; where there is none, its filters' sums scale the expansion.
    """
    state, stage0, expansion = dict(seed), "stage0.0.conv.", "stage1.0.conv.0.0.weight"
    if any(name.startswith("stage0.") for name in fresh) or f"{stage0}2.running_var" not in seed:
        return state
    depthwise = seed[f"{stage0}0.0.weight"]
    scale, shift = _affine(seed, f"{stage0}2.")
    matrix = scale[:, None] * seed[f"{stage0}1.weight"][:, :, 0, 0].float()
    if "reduce.reduce.0.weight" in fresh:
        state["reduce.reduce.0.weight"] = torch.diag_embed(depthwise[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
        norm = f"{stage0}0.1."
        state |= {f"reduce.reduce.1.{name[len(norm) :]}": seed[name] for name in seed if name.startswith(norm)}
    else:
        inner_scale, inner_shift = _affine(seed, f"{stage0}0.1.")
        shift = shift + matrix @ inner_shift
        matrix = matrix * inner_scale * depthwise.float().sum((1, 2, 3))
    expand = seed[expansion][:, :, 0, 0].float()
    state[expansion] = (expand @ matrix)[:, :, None, None]
    mean = "stage1.0.conv.0.1.running_mean"
    state[mean] = seed[mean] - expand @ shift
    return state


def _affine(state: Mapping[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BatchNorm by its running statistics."""
    scale = state[f"{norm}weight"].float() / (state[f"{norm}running_var"].float() + _EPS).sqrt()
    return scale, state[f"{norm}bias"].float() - scale * state[f"{norm}running_mean"].float()


def start_from(detector: Detector, seed: Seed) -> float:
    """Start a detector's backbone, and its blocks after C4 if any, from a seed; neck and heads where all shapes agree.

    Returns:
        Fraction of the backbone's parameters that come from the seed.

    Raises:
        UserError: their kinds of block differ.
    """
    spec = detector.architecture.backbone
    if block_of(spec) != seed.block:
        raise UserError(
            f"a backbone starts from one with the same kind of block, but {seed.name} has {seed.block} and {spec} "
            f"has {block_of(spec)}"
        )
    found = remap(detector.backbone.state_dict(), seed.backbone)
    detector.backbone.load_state_dict(found.state)
    if isinstance(detector, TwoStageDetector):
        prefix = f"stage{len(detector.backbone.stages) + 1}."
        for stage in detector.roi_stages:
            behind = {f"{prefix}{name}": tensor for name, tensor in stage.blocks.state_dict().items()}
            state = remap(behind, seed.backbone).state
            stage.blocks.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    own, rest = detector.state_dict(), seed.rest or {}
    same = {name: tensor for name, tensor in rest.items() if name in own and own[name].shape == tensor.shape}
    detector.load_state_dict(same, strict=False)
    return found.fraction


def match_statistics(backbone: nn.Module, images: Tensor) -> None:
    """Give every GroupNorm's output the mean and deviation per channel that its bias and weight state.

    So its affine part, from a BatchNorm, means what it meant there. ``images`` are ``(B, 3, H, W)`` uint8.
    """

    def fit(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, GroupNorm)  # noqa: S101
        normalized = F.group_norm(inputs[0], norm.num_groups, eps=norm.eps)
        variance, mean = torch.var_mean(normalized, (0, 2, 3))
        norm.weight.div_(variance.clamp(min=0.01).sqrt())
        norm.bias.sub_(norm.weight * mean)

    hooks = [m.register_forward_pre_hook(fit) for m in backbone.modules() if isinstance(m, GroupNorm)]
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
