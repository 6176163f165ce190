"""A search space as data: lists of structural choices, and bounds for the modular stage.

A preset is a TOML file in ``presets/``. The structural space (stage 1 of SM-NAS) holds every compatible combination of
the choices; the modular space (stage 2) every backbone code and width within the bounds, for one structure.
"""

import json
import tomllib
from functools import cached_property
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator

from smnas.space.architecture import (
    Architecture,
    ArchitectureError,
    Backbone,
    C4Spec,
    Head,
    Neck,
    RPNKind,
    parse_backbone,
    parse_head,
    parse_neck,
    parse_rpn,
    parse_size,
    same_structure,
)
from smnas.space.families.base import Bounds, SpaceError, ascending
from smnas.space.families.by_name import FAMILIES, BackboneBounds

__all__ = [
    "HeadWidths",
    "ModularBounds",
    "Space",
    "SpaceError",
    "StructuralChoices",
    "compatible",
    "load_space",
    "parse_space",
    "parts",
    "preset_names",
    "space_toml",
]


class StructuralChoices(Bounds):
    """Choices of stage 1, written as in an architecture string."""

    backbones: tuple[str, ...] = Field(min_length=1)
    necks: tuple[str, ...] = Field(min_length=1)
    rpns: tuple[str, ...] = Field(min_length=1)
    heads: tuple[str, ...] = Field(min_length=1)
    inputs: tuple[str, ...] = Field(min_length=1, description="WIDTHxHEIGHT in pixels")

    @field_validator("*")
    @classmethod
    def _distinct(cls, choices: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(choices)) != len(choices):
            raise ValueError("a choice must be listed once")
        return choices


class HeadWidths(Bounds):
    """Head widths for stage 2, by kind of head. An empty list keeps the parent's width."""

    rcnn: tuple[int, ...] = ()
    cascade: tuple[int, ...] = ()
    retina: tuple[int, ...] = ()
    fcos: tuple[int, ...] = ()

    _check = field_validator("*")(ascending)

    def for_head(self, head: Head) -> tuple[int, ...]:
        """The widths for the kind of ``head``, ascending."""
        widths: tuple[int, ...] = getattr(self, head.KIND)
        return widths


class ModularBounds(BackboneBounds):
    """Bounds of stage 2, which keeps the kind of block and the number of stages."""

    fpn_widths: tuple[int, ...] = Field(default=(), description="pyramid widths, ascending; empty keeps the parent's")
    head_widths: HeadWidths = HeadWidths()

    _check = field_validator("fpn_widths")(ascending)


class Space(Bounds):
    """A named search space, frozen.

    ``recipe`` is the default training recipe; every search trains the ``baseline`` beside its candidates.
    """

    name: str
    description: str
    recipe: str = "small"
    baseline: str
    structural: StructuralChoices
    modular: ModularBounds

    @model_validator(mode="after")
    def _readable(self) -> Self:
        # parse every part now, so that an invalid preset fails on loading and not hours into a search
        try:
            _ = (self.backbones, self.necks, self.rpns, self.heads, self.inputs)
            baseline = self.baseline_architecture
        except ArchitectureError as error:
            raise ValueError(str(error)) from error
        if not self.contains(baseline):
            raise ValueError(f"the baseline must be an architecture of the space, but got {baseline}")
        return self

    @cached_property
    def backbones(self) -> tuple[Backbone, ...]:
        """Backbone choices of the structural space."""
        return tuple(map(parse_backbone, self.structural.backbones))

    @cached_property
    def necks(self) -> tuple[Neck, ...]:
        """Neck choices of the structural space."""
        return tuple(map(parse_neck, self.structural.necks))

    @cached_property
    def rpns(self) -> tuple[RPNKind, ...]:
        """Proposal choices of the structural space."""
        return tuple(map(parse_rpn, self.structural.rpns))

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """Head choices of the structural space."""
        return tuple(map(parse_head, self.structural.heads))

    @cached_property
    def inputs(self) -> tuple[tuple[int, int], ...]:
        """Input sizes, (width, height) in pixels."""
        return tuple(map(parse_size, self.structural.inputs))

    @property
    def baseline_architecture(self) -> Architecture:
        """The parsed baseline."""
        return Architecture.parse(self.baseline)

    @cached_property
    def structures(self) -> tuple[Architecture, ...]:
        """Every compatible combination of the structural choices, in the preset's order."""
        found = []
        for backbone, neck, rpn, head in product(self.backbones, self.necks, self.rpns, self.heads):
            for width, height in self.inputs:
                architecture = compatible(backbone, neck, rpn, head, (width, height))
                if architecture is None:
                    break  # compatibility does not depend on the input size
                found.append(architecture)
        return tuple(found)

    @property
    def structural_choices(self) -> tuple[tuple[object, ...], ...]:
        """The five lists of choices, in the order of :func:`parts`."""
        return (self.backbones, self.necks, self.rpns, self.heads, self.inputs)

    @cached_property
    def structure_table(self) -> NDArray[np.int64]:
        """``(N, 5)``: indices of the choices of each of :attr:`structures`."""
        places = [{choice: place for place, choice in enumerate(row)} for row in self.structural_choices]
        rows = [
            [place[part] for place, part in zip(places, parts(structure), strict=True)] for structure in self.structures
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, len(places))

    def structural_size(self) -> int:
        """Exact number of architectures of stage 1."""
        return len(self.structures)

    def modular_size(self) -> int:
        """Exact number of architectures of stage 2 with a pyramid and an RCNN head."""
        bounds = self.modular
        backbones = sum(family.count(bounds, self.backbones) for family in FAMILIES)
        return backbones * max(len(bounds.fpn_widths), 1) * max(len(bounds.head_widths.rcnn), 1)

    def contains_structural(self, architecture: Architecture) -> bool:
        """Whether every part is a structural choice."""
        listed = zip(parts(architecture), self.structural_choices, strict=True)
        return all(part in choices for part, choices in listed)

    def contains_modular(self, architecture: Architecture) -> bool:
        """Whether stage 2 can derive ``architecture`` from a structural choice of this space."""
        bounds = self.modular
        neck, head = architecture.neck, architecture.head
        widths = bounds.head_widths.for_head(head)
        return (
            (architecture.backbone.evolves(bounds, self.backbones) or architecture.backbone in self.backbones)
            and any(same_structure(neck, choice) for choice in self.necks)
            and (isinstance(neck, C4Spec) or neck in self.necks or neck.width in bounds.fpn_widths)
            and any(same_structure(head, choice) for choice in self.heads)
            and (head in self.heads or head.width in widths)
            and architecture.rpn in self.rpns
            and (architecture.input_width, architecture.input_height) in self.inputs
        )

    def contains(self, architecture: Architecture) -> bool:
        """Whether either stage can propose ``architecture``."""
        return self.contains_structural(architecture) or self.contains_modular(architecture)


def parts(architecture: Architecture) -> tuple[object, ...]:
    """The five structural choices of an architecture: backbone, neck, proposals, head, (width, height)."""
    a = architecture
    return (a.backbone, a.neck, a.rpn, a.head, (a.input_width, a.input_height))


def compatible(backbone: Backbone, neck: Neck, rpn: RPNKind, head: Head, size: tuple[int, int]) -> Architecture | None:
    """The architecture of these parts, or None if they do not fit together."""
    try:
        return Architecture(backbone, neck, rpn, head, *size)
    except ArchitectureError:
        return None


def preset_names() -> tuple[str, ...]:
    """The built-in presets, smallest first."""
    folder = resources.files("smnas.space") / "presets"
    names = [entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")]
    order = ("nano", "small", "paper")
    return tuple(sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name)))


def load_space(name: str) -> Space:
    """Load a built-in preset by name, or a space from a ``.toml`` file.

    Raises:
        SpaceError: no such preset or file, or a rule is broken; the message lists the known names.
    """
    if name.endswith(".toml"):
        try:
            return parse_space(Path(name).read_text(encoding="utf-8"), source=name)
        except (OSError, UnicodeDecodeError) as error:
            raise SpaceError(f"a space's file is readable TOML, but got {name}: {error}") from None
    if name not in preset_names():
        raise SpaceError(f"a preset must be one of {', '.join(preset_names())} or a .toml file, but got {name!r}")
    text = (resources.files("smnas.space") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return parse_space(text, source=f"{name}.toml")


def parse_space(text: str, source: str) -> Space:
    """Read a space's TOML text; ``source`` names it in errors.

    Raises:
        SpaceError: the text is not TOML, has an unknown key or breaks a rule.
    """
    try:
        return Space.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SpaceError(f"a preset must be TOML, but {source} is not: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise SpaceError(f"{source}: {where}: {message}" if where else f"{source}: {message}") from error


def space_toml(space: Space) -> str:
    """The TOML text of a space; :func:`parse_space` reads an equal space."""
    tables: list[tuple[str, dict[str, Any]]] = [("", space.model_dump(mode="json"))]
    lines = []
    for name, table in tables:  # grows as nested tables are found
        lines += [f"\n[{name}]"] if name else []
        for key, value in table.items():
            if isinstance(value, dict):
                tables.append((f"{name}.{key}" if name else key, value))
            else:
                lines.append(f"{key} = {json.dumps(value)}")  # JSON strings, numbers and lists are also TOML
    return "\n".join(lines) + "\n"
