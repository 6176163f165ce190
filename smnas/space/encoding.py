"""A fixed-length integer encoding of every architecture of both stages, for crossover and surrogate models.

The first genes select families (kind of block with cardinality and number of stages, pyramid levels, proposals, kind of
head); the input and what stage 2 varies inside a family follow. Genes without a meaning for the selected family, such
as the blocks of a MobileNetV2, are kept and ignored.

Decoding repairs what crossover breaks. An incompatible combination of families becomes the compatible one that differs
in the fewest; ties are broken by the sum of all genes, so that none is favoured. Backbone genes are repaired by their
family (:class:`smnas.space.families.base.Genes`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from smnas.space.architecture import Architecture, Backbone, C4Spec, FPNSpec, Head, Neck
from smnas.space.families.base import Gene
from smnas.space.families.by_name import FAMILIES
from smnas.space.preset import Space, SpaceError, compatible

__all__ = ["Encoding", "Gene"]

_FAMILIES = 4
_REMEMBERED = 1 << 14


class Encoding:
    """The genes of one space.

    Raises:
        SpaceError: the space has no structures.
    """

    def __init__(self, space: Space) -> None:
        if not space.structures:
            raise SpaceError(f"a space must hold at least one architecture, but nothing in {space.name} fits together")
        self._space = space
        # a search encodes the same parents repeatedly
        self.encode = lru_cache(maxsize=_REMEMBERED)(self._encode)
        self.vector = lru_cache(maxsize=_REMEMBERED)(self._vector)
        self._backbone_family = lru_cache(maxsize=_REMEMBERED)(self._find_backbone_family)
        bounds = space.modular
        self._necks = tuple(dict.fromkeys(_neck_family(n) for n in space.necks))
        self._heads = tuple(dict.fromkeys(_head_family(h) for h in space.heads))
        self._inputs = tuple(sorted(space.inputs, key=lambda size: size[0] * size[1]))
        listed = {n.width for n in space.necks if isinstance(n, FPNSpec)}
        self._fpn_widths = tuple(sorted(listed | set(bounds.fpn_widths)))
        self._head_widths = {family: self._widths_of(family) for family in self._heads}
        families = {family: family.genes(bounds, space.backbones) for family in FAMILIES}
        self._family_genes = {family: genes for family, genes in families.items() if genes is not None}
        # the widths of all families, then the other genes
        places = [(family, at) for family, own in self._family_genes.items() for at in range(len(own.genes))]
        self._places = sorted(places, key=lambda place: place[1] > 0)
        self._neutral = [self._family_genes[family].neutral[at] for family, at in self._places]
        self._at = {
            family: [place for place, (owner, _) in enumerate(self._places) if owner is family]
            for family in self._family_genes
        }
        self._backbones = tuple(dict.fromkeys(self._backbone_family(b) for b in space.backbones))
        self.genes: tuple[Gene, ...] = (
            Gene("backbone", len(self._backbones), False),
            Gene("neck", len(self._necks), False),
            Gene("proposals", len(space.rpns), False),
            Gene("head", len(self._heads), False),
            Gene("input", len(self._inputs), True),
            Gene("fpn_width", max(len(self._fpn_widths), 1), True),
            Gene("head_width", max(map(len, self._head_widths.values())), True),
            *(self._family_genes[family].genes[at] for family, at in self._places),
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
            ValueError: a part of it is not in the space.
        """
        a = architecture
        head = _head_family(a.head)
        family, evolved = self._backbone_family(a.backbone)
        own = list(self._neutral)
        if evolved:
            kind = type(a.backbone)
            for place, value in zip(self._at[kind], self._family_genes[kind].encode(a.backbone), strict=True):
                own[place] = value
        return (
            self._backbones.index((family, evolved)),
            self._necks.index(_neck_family(a.neck)),
            self._space.rpns.index(a.rpn),
            self._heads.index(head),
            self._inputs.index((a.input_width, a.input_height)),
            0 if isinstance(a.neck, C4Spec) else self._fpn_widths.index(a.neck.width),
            self._head_widths[head].index(a.head.width),
            *own,
        )

    def decode(self, genes: Sequence[int]) -> Architecture | None:
        """The repaired architecture of a row of genes, each within its size; None if the space rejects it."""
        backbone_at, neck_at, rpn_at, head_at = self._families(genes)
        size, fpn_width, head_width, *own = genes[_FAMILIES:]
        backbone, evolved = self._backbones[backbone_at]
        if evolved:
            kind = type(backbone)
            backbone = self._family_genes[kind].decode(backbone, [own[place] for place in self._at[kind]])
        neck = self._necks[neck_at]
        if isinstance(neck, FPNSpec):
            neck = replace(neck, width=self._fpn_widths[fpn_width])
        head = self._heads[head_at]
        widths = self._head_widths[head]
        head = replace(head, width=widths[min(head_width, len(widths) - 1)])
        return compatible(backbone, neck, self._space.rpns[rpn_at], head, self._inputs[size])

    def _vector(self, architecture: Architecture) -> NDArray[np.float64]:
        """Features for surrogate models: one-hot labels, ordered genes in 0..1, and logarithms of rough costs."""
        genes = self.encode(architecture)
        columns: list[float] = []
        for gene, value in zip(self.genes, genes, strict=True):
            if gene.ordered:
                columns.append(value / max(gene.size - 1, 1))
            else:
                columns += [float(value == choice) for choice in range(gene.size)]
        features = np.array([*columns, *_log_costs(architecture)])
        features.setflags(write=False)  # shared by the cache
        return features

    def _find_backbone_family(self, backbone: Backbone) -> tuple[Backbone, bool]:
        """A representative of all backbones that stage 2 derives from each other, and True; or the backbone and False.

        In families without genes, each listed backbone is a family of its own.
        """
        genes = self._family_genes.get(type(backbone))
        family = None if genes is None else genes.family(backbone)
        return (backbone, False) if family is None else (family, True)

    def _families(self, genes: Sequence[int]) -> tuple[int, ...]:
        wanted = np.array(genes[:_FAMILIES])
        different = (self._fitting != wanted).sum(axis=1)
        nearest = np.flatnonzero(different == different.min())
        return tuple(self._fitting[nearest[sum(genes) % len(nearest)]].tolist())


# Millions of designs share few families, and validating a new spec costs more than the rest of an encoding.


@lru_cache(maxsize=_REMEMBERED)
def _neck_family(neck: Neck) -> Neck:
    return replace(neck, width=8) if isinstance(neck, FPNSpec) else neck


@lru_cache(maxsize=_REMEMBERED)
def _head_family(head: Head) -> Head:
    return replace(head, width=8)


def _log_costs(a: Architecture) -> tuple[float, ...]:
    """Logarithms of pixels, backbone multiply-adds and width, neck multiply-adds, head width, and depth."""
    pixels = a.input_width * a.input_height
    cost, last, depth = a.backbone.rough_cost(pixels)
    neck = 8.0 if isinstance(a.neck, C4Spec) else 9.0 * a.neck.width**2 * pixels / 4**a.neck.low
    return tuple(map(math.log, (pixels, cost, last, max(neck, 1.0), a.head.width, depth)))
