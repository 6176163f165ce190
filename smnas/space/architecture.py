"""The architecture of a detector: a frozen value with one canonical string.

``backbone+neck+rpn+head+WxH``, for example
``basicblock_54_1211-211-1111-12111+fpn_2-6_128+rpn+cascade_3_1024+800x600``. The string is safe in a shell and in a
file name and serves as a primary key: ``Architecture.parse(str(a)) == a``.

The backbone notation ``{block}_{base}_{code}`` is SM-NAS's (Yao et al., AAAI 2020): ``1`` is a block that keeps its
channels, ``2`` one that doubles them, and ``-`` starts the next stage. This project adds the block ``inverted``
(MobileNetV2's inverted residual with searched depth and width), cardinalities other than ResNeXt's 32x4d
(``resnext64x4_64_...``), a notation for MAE-DET's super-blocks (``k1kxk1_64_256b64k3r3-512b128k3r4-...``), and a suffix
for the extra levels of a pyramid.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import ClassVar, Literal

from smnas.space.families.base import ArchitectureError, Backbone, matched, require
from smnas.space.families.by_name import parse_backbone

__all__ = [
    "Architecture",
    "ArchitectureError",
    "Backbone",
    "C4Spec",
    "CascadeSpec",
    "DenseSpec",
    "ExtraLevels",
    "FCOSSpec",
    "FPNSpec",
    "Head",
    "Neck",
    "RCNNSpec",
    "RPNKind",
    "RetinaSpec",
    "parse_backbone",
    "parse_head",
    "parse_neck",
    "parse_rpn",
    "parse_size",
    "same_structure",
]

ExtraLevels = Literal["head", "pool", "conv"]

_EXTRA_LETTERS: dict[ExtraLevels, str] = {"head": "", "pool": "p", "conv": "c"}
_DEFAULT_DENSE_DEPTH = 4


@dataclass(frozen=True, order=True)
class C4Spec:
    """No pyramid: the RPN and the RoIs read C4 (stride 16); stages after C4 run on each RoI."""

    def __str__(self) -> str:
        return "c4"


@dataclass(frozen=True, order=True)
class FPNSpec:
    """A feature pyramid ``fpn_{low}-{high}_{width}`` with outputs P_low..P_high of ``width`` channels.

    Laterals read C_low up to the backbone's coarsest level: a finer level reaches no output, and reading less of the
    top equals a backbone with fewer stages. Outputs above the coarsest level are further downsampled: as usual for the
    head (``extra="head"``), or the other way, by pooling under a dense head (``fpn_3-7_256p``) or by convolutions under
    a two-stage head (``fpn_2-6_256c``).
    """

    low: int
    high: int
    width: int
    extra: ExtraLevels = "head"

    def __post_init__(self) -> None:
        require(
            1 <= self.low <= self.high <= 7,
            "pyramid levels must satisfy 1 <= low <= high <= 7",
            f"{self.low}-{self.high}",
        )
        require(
            8 <= self.width <= 1024 and self.width % 8 == 0,
            "a pyramid width is a multiple of 8 from 8 to 1024",
            self.width,
        )

    def __str__(self) -> str:
        return f"fpn_{self.low}-{self.high}_{self.width}{_EXTRA_LETTERS[self.extra]}"


Neck = C4Spec | FPNSpec


class RPNKind(StrEnum):
    """Source of region proposals: none, an RPN, or Guided Anchoring."""

    NONE = "norpn"
    RPN = "rpn"
    GUIDED = "garpn"


def _require_head_width(width: int) -> None:
    require(8 <= width <= 4096 and width % 8 == 0, "a head width is a multiple of 8 from 8 to 4096", width)


@dataclass(frozen=True, order=True)
class RCNNSpec:
    """Two fully connected layers of ``width`` on each RoI: ``rcnn_1024``."""

    KIND: ClassVar = "rcnn"

    width: int

    def __post_init__(self) -> None:
        _require_head_width(self.width)

    def __str__(self) -> str:
        return f"rcnn_{self.width}"


@dataclass(frozen=True, order=True)
class CascadeSpec:
    """Two to four successive RoI stages, each with two fully connected layers of ``width``: ``cascade_3_1024``."""

    KIND: ClassVar = "cascade"

    stages: int
    width: int

    def __post_init__(self) -> None:
        require(2 <= self.stages <= 4, "a cascade has 2, 3 or 4 stages", self.stages)
        _require_head_width(self.width)

    def __str__(self) -> str:
        return f"cascade_{self.stages}_{self.width}"


@dataclass(frozen=True, order=True)
class DenseSpec:
    """A one-stage head on a pyramid, without proposals: ``depth`` convolutions of ``width`` per branch."""

    KIND: ClassVar[str]

    width: int
    depth: int = _DEFAULT_DENSE_DEPTH

    def __post_init__(self) -> None:
        _require_head_width(self.width)
        require(1 <= self.depth <= 8, f"a {self.KIND} head has 1 to 8 convolutions in each branch", self.depth)

    def __str__(self) -> str:
        return f"{self.KIND}_{self.width}" + ("" if self.depth == _DEFAULT_DENSE_DEPTH else f"_{self.depth}")


@dataclass(frozen=True, order=True)
class RetinaSpec(DenseSpec):
    """RetinaNet's head: ``retina_256``, ``retina_256_2``."""

    KIND: ClassVar = "retina"


@dataclass(frozen=True, order=True)
class FCOSSpec(DenseSpec):
    """FCOS's anchor-free head: ``fcos_256``, ``fcos_256_2``."""

    KIND: ClassVar = "fcos"


Head = RCNNSpec | CascadeSpec | RetinaSpec | FCOSSpec


@dataclass(frozen=True, order=True)
class Architecture:
    """Backbone, neck, proposals, head and input size in pixels.

    Raises:
        ArchitectureError: the parts do not fit together; the message names the rule.
    """

    backbone: Backbone
    neck: Neck
    rpn: RPNKind
    head: Head
    input_width: int
    input_height: int

    def __post_init__(self) -> None:
        one_stage = isinstance(self.head, DenseSpec)
        require(
            one_stage == (self.rpn is RPNKind.NONE),
            "a RetinaNet or FCOS head goes with norpn, an RCNN or cascade head with rpn or garpn",
            self.rpn,
            self.head,
        )
        top = self.backbone.top_level
        if isinstance(self.neck, C4Spec):
            require(not one_stage, "a RetinaNet or FCOS head needs a feature pyramid", self.neck, self.head)
            require(top >= 4, "the c4 neck needs a backbone that reaches C4 (three stages or more)", self.backbone)
        else:
            require(
                self.neck.low <= top,
                f"the pyramid's finest level must exist in the backbone, whose coarsest is C{top}",
                self.neck,
            )
            # one network, one string: a letter that changes nothing is refused
            require(
                self.neck.extra == "head" or self.neck.high > top,
                f"a pyramid names its extra levels' kind only where it reaches above C{top}",
                self.neck,
            )
            require(
                self.neck.extra != ("conv" if one_stage else "pool"),
                "a pyramid's extra levels come by convolutions under a dense head and by pooling under another, and a "
                "letter is written only for the other way",
                self.neck,
                self.head,
            )
        for name, size in (("width", self.input_width), ("height", self.input_height)):
            require(32 <= size <= 4096, f"the input {name} must be between 32 and 4096 pixels", size)

    @cached_property
    def _text(self) -> str:
        return f"{self.backbone}+{self.neck}+{self.rpn}+{self.head}+{self.input_width}x{self.input_height}"

    def __str__(self) -> str:
        return self._text

    def __hash__(self) -> int:
        # hot in a long search, which checks every proposal against thousands of architectures
        return hash(self._text)

    @property
    def id(self) -> str:
        """Ten hexadecimal digits, stable across machines and versions."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:10]

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Read the canonical string.

        Raises:
            ArchitectureError: ``text`` is not an architecture.
        """
        parts = text.split("+")
        require(len(parts) == 5, "an architecture is backbone+neck+rpn+head+WIDTHxHEIGHT", repr(text))
        backbone, neck, rpn, head, size = parts
        parsed = cls(parse_backbone(backbone), parse_neck(neck), parse_rpn(rpn), parse_head(head), *parse_size(size))
        require(str(parsed) == text, f"an architecture is written canonically ({parsed})", repr(text))
        return parsed


def same_structure(a: Neck | Head, b: Neck | Head) -> bool:
    """Whether two necks or two heads differ at most in their width."""
    alike = type(a) is type(b)
    return alike and (isinstance(a, C4Spec) or isinstance(b, C4Spec) or replace(a, width=b.width) == b)


def parse_neck(text: str) -> Neck:
    """Read ``c4`` or ``fpn_LOW-HIGH_WIDTH[c|p]``; raises :class:`ArchitectureError`."""
    if text == "c4":
        return C4Spec()
    if match := re.fullmatch(r"fpn_(\d)-(\d)_(\d{1,4})([cp]?)", text):
        extra = {letter: extra for extra, letter in _EXTRA_LETTERS.items()}[match[4]]
        return FPNSpec(int(match[1]), int(match[2]), int(match[3]), extra)
    raise ArchitectureError(f"a neck is c4 or fpn_LOW-HIGH_WIDTH[c|p], but got {text!r}")


def parse_rpn(text: str) -> RPNKind:
    """Read ``norpn``, ``rpn`` or ``garpn``; raises :class:`ArchitectureError`."""
    require(text in list(RPNKind), f"the proposal part must be one of {', '.join(RPNKind)}", repr(text))
    return RPNKind(text)


def parse_size(text: str) -> tuple[int, int]:
    """Read ``WIDTHxHEIGHT`` in pixels; raises :class:`ArchitectureError`."""
    match = matched(r"(\d{1,4})x(\d{1,4})", text, "an input size is WIDTHxHEIGHT in pixels")
    return int(match[1]), int(match[2])


def parse_head(text: str) -> Head:
    """Read ``rcnn_WIDTH``, ``cascade_STAGES_WIDTH``, ``retina_WIDTH[_DEPTH]`` or ``fcos_WIDTH[_DEPTH]``.

    Raises:
        ArchitectureError: ``text`` is none of these.
    """
    if match := re.fullmatch(r"rcnn_(\d{1,5})", text):
        return RCNNSpec(int(match[1]))
    if match := re.fullmatch(r"cascade_(\d)_(\d{1,5})", text):
        return CascadeSpec(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(retina|fcos)_(\d{1,5})(?:_(\d))?", text):
        dense = RetinaSpec if match[1] == "retina" else FCOSSpec
        return dense(int(match[2]), int(match[3] or _DEFAULT_DENSE_DEPTH))
    raise ArchitectureError(
        f"a head is rcnn_WIDTH, cascade_STAGES_WIDTH, retina_WIDTH[_DEPTH] or fcos_WIDTH[_DEPTH], but got {text!r}"
    )
