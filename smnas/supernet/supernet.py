"""One set of weights for every detector of a space.

A detector's parameters are slices of shared tensors: the first channels, the centre of the largest kernel, the first
layers of a stage or a tower, the first stages of a cascade (Cai et al., "Once-for-All", arXiv 1908.09791). What does
not nest has tensors of its own: each kind of block and its laterals, each kind of head. The forward pass is that of
the detector itself, and its gradients reach the shared tensors.

GroupNorm normalizes a slice as it does a whole tensor, and needs no statistics.
"""

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from profiler.errors import UserError
from smnas.models.backbones.by_family import build_backbone
from smnas.models.build import build_detector
from smnas.models.detector import Detector, TwoStageDetector
from smnas.models.heads.rpn import ProposalLayer
from smnas.models.layers import NormKind, standardized_together
from smnas.models.losses import USUAL_LOSSES, LossOptions
from smnas.models.target import Target
from smnas.space.architecture import Architecture, Backbone, FPNSpec, Head, Neck
from smnas.space.families.by_name import FAMILIES
from smnas.space.preset import Space, compatible, space_toml
from smnas.space.sampling import sample_modular, sample_structural

__all__ = ["Supernet"]

_TRAINING_BYTES = 16  # of a weight, its gradient and AdamW's two averages
_SMALL = 400  # shorter side in pixels from which detectors have other anchors, see DetectorOptions.for_architecture


class Supernet(nn.Module):
    """The shared weights of a space's detectors.

    In training mode :meth:`loss` runs one detector, drawn from the global generator, of the images' size.

    Args:
        space: The space.
        num_classes: Classes, without the background.
        norm: ``gn-ws`` or ``gn``.
        state: The ``state_dict`` of an equal supernet; by default it is freshly initialised, in seconds to a minute.

    Raises:
        UserError: the norm is ``bn``, whose statistics are those of one detector; or training such weights would not
            fit in the machine's memory.
    """

    def __init__(
        self, space: Space, num_classes: int, *, norm: NormKind = "gn-ws", state: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        if norm == "bn":
            raise UserError("shared weights go with --norm gn-ws or gn, but got bn")
        self.space, self.num_classes, self.norm = space, num_classes, norm
        initial = _initial(space, num_classes, norm) if state is None else state
        for name, tensor in initial.items():
            self.register_parameter(name, nn.Parameter(tensor))

    @property
    def label(self) -> str:
        """Name and digest of the space, as a checkpoint states it."""
        return f"supernet of {self.space.name} {hashlib.sha256(space_toml(self.space).encode()).hexdigest()[:10]}"

    def holds(self, architecture: Architecture) -> bool:
        """Whether ``architecture`` is made of slices of these weights."""
        return self._slices(self._built(architecture)) is not None

    def activate(self, architecture: Architecture) -> Detector:
        """The detector with slices as weights: it has no parameters, and gradients reach the shared tensors.

        Raises:
            UserError: it is not held.
        """
        detector = self._built(architecture)
        for name, tensor in self._required(detector).items():
            path, _, leaf = name.rpartition(".")
            module = detector.get_submodule(path)
            delattr(module, leaf)
            setattr(module, leaf, tensor)
        return detector.train(self.training)

    @torch.no_grad()
    def extract(self, architecture: Architecture) -> Detector:
        """An ordinary detector with a copy of the slices, in evaluation mode.

        Raises:
            UserError: it is not held.
        """
        detector = self._built(architecture)
        slices = self._required(detector)
        for name, parameter in detector.named_parameters():
            parameter.copy_(slices[name])
        return detector.eval()

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Architecture:
        """A random detector for inputs of (width, height) ``size``: of the structural or the modular space, evenly."""
        found = sample_structural(self.space, rng)
        if rng.random() < 1 / 2:
            found = sample_modular(self.space, found, rng)
        return Architecture(found.backbone, found.neck, found.rpn, found.head, *size)

    def forward(self, images: Tensor, architecture: Architecture) -> tuple[Tensor, ...]:
        """Detect objects by one detector, as :meth:`Detector.forward`."""
        return self.activate(architecture)(images)  # type: ignore[no-any-return]

    def loss(self, images: Tensor, targets: Sequence[Target], losses: LossOptions = USUAL_LOSSES) -> dict[str, Tensor]:
        """Losses of one random detector, see :meth:`Detector.loss`."""
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        detector = self.activate(self.draw((images.shape[3], images.shape[2]), rng))
        with standardized_together(detector):
            return detector.loss(images, targets, losses)

    def _built(self, architecture: Architecture) -> Detector:
        device = next(self.parameters()).device
        with _Uninitialised():
            return build_detector(architecture, self.num_classes, norm=self.norm).to(device)

    def _slices(self, detector: Detector) -> dict[str, Tensor] | None:
        """The slice of each of the detector's parameters by its name; None if one is not there."""
        found = {}
        names = _shared_names(detector)
        for name, parameter in detector.named_parameters():
            shared = self._parameters.get(names[name])
            if shared is None or any(n > most for n, most in zip(parameter.shape, shared.shape, strict=True)):
                return None
            found[name] = shared[_slice(parameter.shape, shared.shape)]
        return found

    def _required(self, detector: Detector) -> dict[str, Tensor]:
        slices = self._slices(detector)
        if slices is None:
            raise UserError(
                f"the shared weights must be those of the detector's space, but got {detector.architecture}"
            )
        return slices


class _Uninitialised(TorchFunctionMode):
    """Modules built inside keep their parameters as allocated, which takes less time and no random numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in ("kaiming_uniform_", "normal_", "uniform_"):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def _slice(part: Sequence[int], whole: Sequence[int]) -> tuple[slice, ...]:
    """The first channels, and the centre of a kernel."""
    starts = [(most - n) // 2 if axis >= 2 else 0 for axis, (n, most) in enumerate(zip(part, whole, strict=True))]
    return tuple(slice(start, start + n) for start, n in zip(starts, part, strict=True))


def _kind(backbone: Backbone) -> str:
    """The family, with the block and its cardinality: backbones of other kinds share nothing."""
    return str(backbone).partition("_")[0]


def _shared_names(detector: Detector) -> dict[str, str]:
    """The name of the shared tensor of each parameter, ``/`` for a dot."""
    architecture, neck = detector.architecture, detector.architecture.neck
    kind, head, top = _kind(architecture.backbone), architecture.head.KIND, architecture.backbone.top_level
    # without a pyramid, what reads C4 depends on the backbone
    reads = "" if isinstance(neck, FPNSpec) else f"{kind}.c4-{top}."
    rpn = "garpn"
    if isinstance(detector, TwoStageDetector) and isinstance(detector.proposals, ProposalLayer):
        rpn = f"rpn{detector.proposals.per_cell}"
    prefixes = {"backbone": kind, "rpn": f"{reads}{rpn}", "head": head}
    names = {}
    for name, aligned in _aligned([name for name, _ in detector.named_parameters()]).items():
        part, _, rest = aligned.partition(".")
        if part in prefixes:
            shared = f"{prefixes[part]}.{rest}"
        elif part == "neck" and isinstance(neck, FPNSpec):
            group, number, leaf = rest.split(".", 2)
            level = int(number) + (top + 1 if group == "extra" else neck.low)
            shared = f"{kind if group == 'lateral' else 'neck'}.{group}{level}.{leaf}"
        elif rest.startswith("head."):
            shared = f"{reads}{head}.{part}.{rest}"
        else:  # with the c4 neck, the stages of a cascade share the backbone's last stage
            shared = f"{kind}.stage4.{rest.removeprefix('blocks.')}"
        if rest == "log_scales" and isinstance(neck, FPNSpec):
            shared += str(neck.low)
        names[name] = shared.replace(".", "/")
    return names


def _aligned(names: Collection[str]) -> dict[str, str]:
    """Each name, of an inverted residual without expansion as if its first convolution were there."""
    unexpanded = {
        name.removesuffix("0.0.weight")
        for name in names
        if name.endswith(".conv.0.0.weight") and f"{name.removesuffix('0.0.weight')}3.weight" not in names
    }

    def shifted(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) + (match[1] in unexpanded)}"

    return {name: re.sub(r"^(.*\.conv\.)(\d)(?=\.)", shifted, name) for name in names}


def _initial(space: Space, num_classes: int, norm: NormKind) -> dict[str, Tensor]:
    """Tensors that hold every detector of the space, initialised as those of the largest ones."""
    shared: dict[str, Tensor] = {}
    evolved = [spec for family in FAMILIES for spec in family.covering(space.modular, space.backbones)]
    backbones = list(dict.fromkeys((*space.backbones, *evolved)))
    sizes = {min(size) < _SMALL: size for size in space.inputs}.values()
    for parts in product(_widest(backbones), _necks(space), space.rpns, _heads(space), sizes):
        if (architecture := compatible(*parts)) is not None:
            detector = build_detector(architecture, num_classes, norm=norm)
            names = _shared_names(detector)
            _merge(shared, {names[name]: parameter for name, parameter in detector.named_parameters()})
    for spec in backbones:
        parameters = dict(build_backbone(spec, norm).named_parameters())
        names = {name: f"{_kind(spec)}.{aligned}".replace(".", "/") for name, aligned in _aligned(parameters).items()}
        _merge(shared, {names[name]: parameter for name, parameter in parameters.items()})
        count = sum(tensor.numel() for tensor in shared.values())
        if _TRAINING_BYTES * count > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise UserError(
                f"shared weights, their gradients and averages must fit in memory, but {space.name} has over "
                f"{count / 1e6:.0f} million; narrow its bounds (`smnas space --toml`)"
            )
    return shared


def _widest(backbones: Sequence[Backbone]) -> list[Backbone]:
    """Of each kind and number of stages, those whose stages are not all at most as wide as another one's."""
    widths: dict[tuple[str, int], dict[tuple[int, ...], Backbone]] = {}
    for spec in backbones:
        group = widths.setdefault((_kind(spec), spec.top_level), {})
        own = tuple(spec.stage_channels(index) for index in range(spec.top_level - 1))
        if not any(all(a <= b for a, b in zip(own, other, strict=True)) for other in group):
            for other in [o for o in group if all(a <= b for a, b in zip(o, own, strict=True))]:
                del group[other]
            group[own] = spec
    return [spec for group in widths.values() for spec in group.values()]


def _necks(space: Space) -> list[Neck]:
    """Every neck, as wide as the widest."""
    listed = [neck.width for neck in space.necks if isinstance(neck, FPNSpec)]
    most = max((*listed, *space.modular.fpn_widths), default=0)
    return list(dict.fromkeys(replace(n, width=most) if isinstance(n, FPNSpec) else n for n in space.necks))


def _heads(space: Space) -> list[Head]:
    """The deepest head of each kind, as wide as the widest."""
    deepest: dict[str, Head] = {}
    for head in sorted(space.heads, key=lambda head: (getattr(head, "stages", 0), getattr(head, "depth", 0))):
        before = deepest.get(head.KIND, head)
        most = max(head.width, before.width, *space.modular.head_widths.for_head(head))
        deepest[head.KIND] = replace(head, width=most)
    return list(deepest.values())


def _merge(shared: dict[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Enlarge shared tensors so that they hold these; what neither fills is drawn with their deviation."""
    for name, parameter in tensors.items():
        tensor = parameter.detach()
        before = shared.get(name, tensor)
        shape = tuple(map(max, zip(tensor.shape, before.shape, strict=True)))
        if shape == before.shape:
            shared[name] = before
            continue
        whole = tensor.new_empty(shape).normal_(0.0, float(tensor.std(correction=0)))
        for part in (tensor, before):
            whole[_slice(part.shape, shape)] = part
        shared[name] = whole
