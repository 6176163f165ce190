"""A space as a fixed row of genes: every architecture of both stages as a tuple of small integers, and back.

Crossover and models over architectures need designs of one length. The genes are families first (kind of block with its
cardinality and number of stages, pyramid levels, proposals, kind of head), then what stage 2 varies inside them (base,
blocks of every stage, places of the doublings, widths), then the input. A gene without a meaning for a family (the
blocks of a MobileNetV2) is carried along and ignored.

Decoding repairs what crossover breaks, by the space's own rules:

- Families that do not fit together become the fitting row that differs in the fewest of them; of equals the one that
  the sum of all genes picks, so that none is favoured.
- Stages give up blocks, the longest first, while there are more than the bounds allow, and get some, the shortest
  first, while there are fewer.
- A doubling behind the last block, or where one is already, does not count. Missing ones fall on the first blocks of
  the later stages, then on the first blocks that are free.

What is refused even so (a predicate of :meth:`Space.restricted`) decodes to None.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from smnas.space.architecture import (
    Architecture,
    Backbone,
    BlockKind,
    C4Spec,
    FPNSpec,
    Head,
    MobileNetV2Spec,
    Neck,
    ResNetSpec,
    SuperBlockSpec,
)
from smnas.space.preset import Space, SpaceError, compatible

__all__ = ["Encoding", "Gene"]

_FAMILIES = 4
_REMEMBERED = 1 << 14


@dataclass(frozen=True)
class Gene:
    """One place of an encoding.

    Attributes:
        name: What it decides.
        size: Its values are 0, 1, ..., size - 1.
        ordered: Whether near values are similar; else they are names only.
    """

    name: str
    size: int
    ordered: bool


class Encoding:
    """The genes of one space.

    Args:
        space: With at least one structure.

    Raises:
        SpaceError: there is none.
    """

    def __init__(self, space: Space) -> None:
        if not space.structures:
            raise SpaceError(f"a space must hold at least one architecture, but nothing in {space.name} fits together")
        self._space = space
        # A search asks for the same parents over and over.
        self.encode = lru_cache(maxsize=_REMEMBERED)(self._encode)
        self.vector = lru_cache(maxsize=_REMEMBERED)(self._vector)
        self._backbone_family = lru_cache(maxsize=_REMEMBERED)(self._find_backbone_family)
        bounds = space.modular
        self._backbones = tuple(dict.fromkeys(self._backbone_family(b) for b in space.backbones))
        self._necks = tuple(dict.fromkeys(_neck_family(n) for n in space.necks))
        self._heads = tuple(dict.fromkeys(_head_family(h) for h in space.heads))
        self._inputs = tuple(sorted(space.inputs, key=lambda size: size[0] * size[1]))
        listed = {n.width for n in space.necks if isinstance(n, FPNSpec)}
        self._fpn_widths = tuple(sorted(listed | set(bounds.fpn_widths)))
        self._head_widths = {family: self._widths_of(family) for family in self._heads}
        self._percents = tuple(
            sorted(
                {b.width_percent for b in space.backbones if isinstance(b, MobileNetV2Spec)}
                | set(bounds.mobilenetv2_percents)
            )
        )
        self._most_stages = max(bounds.stages)
        most_in_a_stage = bounds.max_blocks - min(bounds.stages) + 1
        self.genes: tuple[Gene, ...] = (
            Gene("backbone", len(self._backbones), False),
            Gene("neck", len(self._necks), False),
            Gene("proposals", len(space.rpns), False),
            Gene("head", len(self._heads), False),
            Gene("input", len(self._inputs), True),
            Gene("fpn_width", max(len(self._fpn_widths), 1), True),
            Gene("head_width", max(map(len, self._head_widths.values())), True),
            Gene("base", len(bounds.bases), True),
            Gene("width_percent", max(len(self._percents), 1), True),
            *(Gene(f"stage{i}_blocks", most_in_a_stage, True) for i in range(1, self._most_stages + 1)),
            *(Gene(f"doubling{i}", bounds.max_blocks + 1, True) for i in range(1, bounds.max_doublings + 1)),
        )
        self._fitting = np.array(
            sorted({self.encode(structure)[:_FAMILIES] for structure in space.structures}), dtype=np.int64
        )

    def _widths_of(self, family: Head) -> tuple[int, ...]:
        listed = {head.width for head in self._space.heads if _head_family(head) == family}
        return tuple(sorted(listed | set(self._space.modular.head_widths.for_head(family))))

    def _encode(self, architecture: Architecture) -> tuple[int, ...]:
        """The genes of an architecture of the space.

        Raises:
            ValueError: a part of it is none of the space's.
        """
        a, bounds = architecture, self._space.modular
        head = _head_family(a.head)
        base, percent, blocks, doublings = 0, 0, [0] * self._most_stages, [bounds.max_blocks] * bounds.max_doublings
        family = self._backbone_family(a.backbone)
        if isinstance(a.backbone, MobileNetV2Spec):
            percent = self._percents.index(a.backbone.width_percent)
        elif isinstance(a.backbone, ResNetSpec) and family[1]:
            base = bounds.bases.index(a.backbone.base)
            lengths = [len(stage) for stage in a.backbone.stages]
            blocks[: len(lengths)] = [length - 1 for length in lengths]
            places = [i for i, digit in enumerate(a.backbone.code.replace("-", "")) if digit == "2"]
            doublings[: len(places)] = places
        return (
            self._backbones.index(family),
            self._necks.index(_neck_family(a.neck)),
            self._space.rpns.index(a.rpn),
            self._heads.index(head),
            self._inputs.index((a.input_width, a.input_height)),
            0 if isinstance(a.neck, C4Spec) else self._fpn_widths.index(a.neck.width),
            self._head_widths[head].index(a.head.width),
            base,
            percent,
            *blocks,
            *doublings,
        )

    def decode(self, genes: Sequence[int]) -> Architecture | None:
        """The architecture of a row of genes, repaired as the module says; None where the space refuses it.

        Args:
            genes: As many as :attr:`genes`, each inside its size.
        """
        bounds = self._space.modular
        backbone_at, neck_at, rpn_at, head_at = self._families(genes)
        size, fpn_width, head_width, base, percent = genes[_FAMILIES : _FAMILIES + 5]
        rest = genes[_FAMILIES + 5 :]
        backbone, evolved = self._backbones[backbone_at]
        if isinstance(backbone, MobileNetV2Spec):
            backbone = MobileNetV2Spec(self._percents[percent])
        elif isinstance(backbone, ResNetSpec) and evolved:
            code = self._code(len(backbone.stages), rest[: self._most_stages], rest[self._most_stages :])
            backbone = replace(backbone, base=bounds.bases[base], code=code)
        neck = self._necks[neck_at]
        if isinstance(neck, FPNSpec):
            neck = replace(neck, width=self._fpn_widths[fpn_width])
        head = self._heads[head_at]
        widths = self._head_widths[head]
        head = replace(head, width=widths[min(head_width, len(widths) - 1)])
        architecture = compatible(backbone, neck, self._space.rpns[rpn_at], head, self._inputs[size])
        return None if architecture is None or not self._space.permits(architecture) else architecture

    def _vector(self, architecture: Architecture) -> NDArray[np.float64]:
        """Features for models: names as indicators, ordered genes in 0..1, and logarithms of rough costs."""
        genes = self.encode(architecture)
        columns: list[float] = []
        for gene, value in zip(self.genes, genes, strict=True):
            if gene.ordered:
                columns.append(value / max(gene.size - 1, 1))
            else:
                columns += [float(value == choice) for choice in range(gene.size)]
        features = np.array([*columns, *_log_costs(architecture)])
        features.setflags(write=False)  # it is handed out again
        return features

    def _find_backbone_family(self, backbone: Backbone) -> tuple[Backbone, bool]:
        """One backbone for all that stage 2 turns into each other, and whether it does; else the backbone itself.

        Backbones of super-blocks have no genes: one that the space lists is a family of its own.
        """
        if isinstance(backbone, MobileNetV2Spec):
            return MobileNetV2Spec(100), True
        if isinstance(backbone, ResNetSpec) and self._space.modular.contains_backbone(backbone):
            return _resnet_family(backbone.block, backbone.paths, len(backbone.stages)), True
        return backbone, False

    def _families(self, genes: Sequence[int]) -> tuple[int, ...]:
        wanted = np.array(genes[:_FAMILIES])
        different = (self._fitting != wanted).sum(axis=1)
        nearest = np.flatnonzero(different == different.min())
        return tuple(self._fitting[nearest[sum(genes) % len(nearest)]].tolist())

    def _code(self, stages: int, blocks: Sequence[int], doublings: Sequence[int]) -> str:
        bounds = self._space.modular
        lengths = [1 + more for more in blocks[:stages]]
        while sum(lengths) > bounds.max_blocks:
            lengths[lengths.index(max(lengths))] -= 1
        while sum(lengths) < bounds.min_blocks:
            lengths[lengths.index(min(lengths))] += 1
        total = sum(lengths)
        firsts = [sum(lengths[:stage]) for stage in range(1, stages)]
        doubled = {place for place in doublings if place < total}
        for place in (*firsts, *range(total)):
            if len(doubled) >= bounds.min_doublings:
                break
            doubled.add(place)
        digits = "".join("2" if place in doubled else "1" for place in range(total))
        return "-".join(digits[begin : begin + length] for begin, length in zip((0, *firsts), lengths, strict=True))


# Millions of designs share a few families: making one checks it, and that takes longer than the rest of an encoding.


@lru_cache(maxsize=_REMEMBERED)
def _resnet_family(block: BlockKind, paths: tuple[int, int], stages: int) -> ResNetSpec:
    return ResNetSpec(block, 8, "-".join("1" * stages), paths)


@lru_cache(maxsize=_REMEMBERED)
def _neck_family(neck: Neck) -> Neck:
    return replace(neck, width=8) if isinstance(neck, FPNSpec) else neck


@lru_cache(maxsize=_REMEMBERED)
def _head_family(head: Head) -> Head:
    return replace(head, width=8)


def _log_costs(a: Architecture) -> tuple[float, ...]:
    """Logarithms of: pixels, multiply-adds and width of the backbone, of the neck, width of the head; and the depth."""
    pixels = a.input_width * a.input_height
    if isinstance(a.backbone, MobileNetV2Spec):
        cost, last, depth = 3e8 * (a.backbone.width_percent / 100) ** 2 * pixels / 224**2, 320.0, 17
    elif isinstance(a.backbone, SuperBlockSpec):
        cost, depth = 0.0, a.backbone.depth
        for level, stage in enumerate(a.backbone.stages):
            weights = sum(b.repeats * b.width * (2 * b.out + b.kernel**2 * b.width) for b in stage)
            cost += weights * pixels / 16 / 4**level
        last = float(a.backbone.super_blocks[-1].out)
    else:
        cost, depth = 0.0, a.backbone.depth
        for level, widths in enumerate(a.backbone.stage_widths()):
            per_pixel = 17.0 if a.backbone.block in ("bottleneck", "inverted") else 18.0
            cost += per_pixel * sum(width * width for width in widths) * pixels / 16 / 4**level
        last = float(a.backbone.stage_widths()[-1][-1] * a.backbone.expansion)
    neck = 8.0 if isinstance(a.neck, C4Spec) else 9.0 * a.neck.width**2 * pixels / 4**a.neck.low
    return tuple(map(math.log, (pixels, cost, last, max(neck, 1.0), a.head.width, depth)))
