"""A detector's architecture: a frozen value with one canonical string.

``backbone+neck+rpn+head+WxH``, for example
``basicblock_54_1211-211-1111-12111+fpn_2-6_128+rpn+cascade_3_1024+800x600``. The string is safe in a shell and in a
file name, diffs, greps and is a primary key: ``Architecture.parse(str(a)) == a``.

The backbone notation ``{block}_{base}_{code}`` is SM-NAS's (Yao et al., AAAI 2020): in the code, ``1`` is a block that
keeps its channels, ``2`` one that doubles them and ``-`` starts the next stage. Of this project are the block kind
``inverted`` (MobileNetV2's inverted residuals with a searched depth and width), a cardinality and path width other than
ResNeXt's 32x4d (``resnext64x4_64_...``), the notation of MAE-DET's super-blocks
(``k1kxk1_64_256b64k3r3-512b128k3r4-...``), and a letter behind a pyramid for how its extra levels come about.
"""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Literal, get_args

from profiler.errors import UserError

__all__ = [
    "Architecture",
    "ArchitectureError",
    "Backbone",
    "BlockKind",
    "C4Spec",
    "CascadeSpec",
    "DenseSpec",
    "ExtraLevels",
    "FCOSSpec",
    "FPNSpec",
    "Head",
    "MobileNetV2Spec",
    "Neck",
    "RCNNSpec",
    "RPNKind",
    "ResNetSpec",
    "RetinaSpec",
    "SuperBlock",
    "SuperBlockSpec",
    "parse_backbone",
    "parse_head",
    "parse_neck",
]

BlockKind = Literal["basicblock", "bottleneck", "resnext", "inverted"]
ExtraLevels = Literal["head", "pool", "conv"]

_EXPANSION: dict[str, int] = {"basicblock": 1, "bottleneck": 4, "resnext": 4, "inverted": 1}
_KNOWN_BLOCKS = f"the block must be one of {', '.join(_EXPANSION)}"
_RESNEXT_PATHS = (32, 4)  # 32x4d, the cardinality and path width that the word `resnext` alone stands for
_EXTRA_LETTERS: dict[ExtraLevels, str] = {"head": "", "pool": "p", "conv": "c"}
_DEFAULT_DENSE_DEPTH = 4


class ArchitectureError(UserError):
    """A string that is not an architecture, or a combination of modules that does not fit together."""


def _require(holds: bool, rule: str, *got: object) -> None:
    """Raise unless ``holds``. What was got is joined by ``+``, and only then: a search makes millions of designs."""
    if not holds:
        raise ArchitectureError(f"{rule}, but got {'+'.join(map(str, got))}")


@dataclass(frozen=True, order=True)
class ResNetSpec:
    """A residual backbone ``{block}_{base}_{code}``.

    Attributes:
        block: ``basicblock``, ``bottleneck``, ``resnext`` or ``inverted``.
        base: Width of the first block before any doubling (64 for the published ResNets).
        code: Blocks per stage, e.g. ``11-21-21-21`` for ResNet-18.
        paths: ResNeXt's cardinality and the channels of one path at width 64, written ``resnext64x4_64_...``;
            ``resnext_`` alone is 32x4d. Other blocks have no paths and keep the default.
    """

    block: BlockKind
    base: int
    code: str
    paths: tuple[int, int] = _RESNEXT_PATHS

    def __post_init__(self) -> None:
        _require(self.block in _EXPANSION, _KNOWN_BLOCKS, self.block)
        _require(
            8 <= self.base <= 512 and self.base % 2 == 0, "the base width must be even and between 8 and 512", self.base
        )
        _require(
            re.fullmatch(r"[12]+(-[12]+){0,3}", self.code) is not None,
            "a backbone code is one to four stages of the digits 1 and 2 joined by '-', as in 11-21-21-21",
            repr(self.code),
        )
        # more fits into no file name and no memory
        _require(self.depth <= 100, "a backbone code has 100 blocks at most", self.depth)
        width = self.base << self.doublings
        _require(width <= 8192, "a backbone's width must stay within 8192 channels", width)
        _require(
            self.block == "resnext" or self.paths == _RESNEXT_PATHS,
            "only resnext has a cardinality and a path width",
            f"{self.block} with {self.paths}",
        )
        _require(
            2 <= self.paths[0] <= 256 and 1 <= self.paths[1] <= 256,
            "a ResNeXt has 2 to 256 paths of 1 to 256 channels",
            f"{self.paths[0]}x{self.paths[1]}",
        )

    def __str__(self) -> str:
        paths = "" if self.paths == _RESNEXT_PATHS else "{}x{}".format(*self.paths)
        return f"{self.block}{paths}_{self.base}_{self.code}"

    @property
    def stages(self) -> tuple[str, ...]:
        """The code of every stage, top to bottom."""
        return tuple(self.code.split("-"))

    @property
    def depth(self) -> int:
        """Number of residual blocks."""
        return sum(map(len, self.stages))

    @property
    def doublings(self) -> int:
        """How often the width doubles along the backbone."""
        return self.code.count("2")

    @property
    def top_level(self) -> int:
        """The coarsest pyramid level: C2 is the first stage (stride 4), so four stages end at C5 (stride 32)."""
        return 1 + len(self.stages)

    @property
    def expansion(self) -> int:
        """Output channels of a block divided by its width."""
        return _EXPANSION[self.block]

    def stage_widths(self) -> tuple[tuple[int, ...], ...]:
        """Width (channels before expansion) of every block, by stage."""
        width = self.base
        widths = []
        for stage in self.stages:
            row = []
            for digit in stage:
                width *= int(digit)
                row.append(width)
            widths.append(tuple(row))
        return tuple(widths)


@dataclass(frozen=True, order=True)
class MobileNetV2Spec:
    """MobileNetV2 with a width multiplier in percent: ``mobilenetv2_100``."""

    width_percent: int

    def __post_init__(self) -> None:
        _require(
            10 <= self.width_percent <= 400, "a MobileNetV2 width is between 10 and 400 percent", self.width_percent
        )

    def __str__(self) -> str:
        return f"mobilenetv2_{self.width_percent}"

    @property
    def top_level(self) -> int:
        """MobileNetV2 ends at stride 32."""
        return 5


@dataclass(frozen=True, order=True)
class SuperBlock:
    """A K1KXK1 super-block of MAE-DET (Sun et al., arXiv 2111.13336), ``256b64k3r3``: bottlenecks in a row.

    Each one is a 1x1 convolution to ``width``, a ``kernel`` x ``kernel`` one and a 1x1 one to ``out``, with a shortcut.

    Attributes:
        out: Channels that it writes.
        width: Channels inside, between the 1x1 convolutions.
        kernel: Side of the middle convolution, 3 or 5.
        repeats: How many bottlenecks.
    """

    out: int
    width: int
    kernel: int
    repeats: int

    def __post_init__(self) -> None:
        for what, channels in (("output", self.out), ("width", self.width)):
            _require(
                8 <= channels <= 4096 and channels % 8 == 0,
                f"a super-block's {what} is a multiple of 8 from 8 to 4096",
                channels,
            )
        _require(self.kernel in (3, 5), "a super-block's kernel is 3 or 5", self.kernel)
        _require(1 <= self.repeats <= 99, "a super-block repeats its bottleneck 1 to 99 times", self.repeats)

    def __str__(self) -> str:
        return f"{self.out}b{self.width}k{self.kernel}r{self.repeats}"


@dataclass(frozen=True, order=True)
class SuperBlockSpec:
    """A backbone of K1KXK1 super-blocks, ``k1kxk1_{stem}_{stages}``.

    Stages are joined by ``-`` and the super-blocks of a stage by ``.``; every stage halves the resolution at its first
    bottleneck, the first stage that of the stem (C1), so that there is no second stem convolution and no pooling.

    Attributes:
        stem: Channels of the stem.
        stages: Super-blocks by stage, one to four stages; stage k ends at C_(k+1).
    """

    stem: int
    stages: tuple[tuple[SuperBlock, ...], ...]

    def __post_init__(self) -> None:
        _require(
            8 <= self.stem <= 512 and self.stem % 8 == 0,
            "the stem of super-blocks is a multiple of 8 from 8 to 512 channels",
            self.stem,
        )
        _require(1 <= len(self.stages) <= 4, "a backbone of super-blocks has one to four stages", len(self.stages))
        sizes = list(map(len, self.stages))
        _require(
            min(sizes) >= 1 and sum(sizes) <= 8,
            "a stage has one super-block or more and a backbone has 8 at most",
            "-".join(map(str, sizes)),
        )

    def __str__(self) -> str:
        return f"k1kxk1_{self.stem}_" + "-".join(".".join(map(str, stage)) for stage in self.stages)

    @property
    def super_blocks(self) -> tuple[SuperBlock, ...]:
        """All super-blocks, top to bottom."""
        return tuple(block for stage in self.stages for block in stage)

    @property
    def depth(self) -> int:
        """Number of bottlenecks."""
        return sum(block.repeats for block in self.super_blocks)

    @property
    def top_level(self) -> int:
        """The coarsest pyramid level: C2 is the first stage (stride 4), so four stages end at C5 (stride 32)."""
        return 1 + len(self.stages)


Backbone = ResNetSpec | MobileNetV2Spec | SuperBlockSpec


@dataclass(frozen=True, order=True)
class C4Spec:
    """No pyramid: proposals and RoIs read C4 (stride 16); a stage behind C4 runs on every RoI instead."""

    def __str__(self) -> str:
        return "c4"


@dataclass(frozen=True, order=True)
class FPNSpec:
    """A feature pyramid ``fpn_{low}-{high}_{width}`` with outputs P_low..P_high.

    Laterals read C_low up to the backbone's coarsest level, which its code decides: a finer level would reach no
    output, and a pyramid that reads less of the top is that of a backbone with fewer stages. Outputs above the coarsest
    level come from further down-sampling.

    Attributes:
        low: Finest output.
        high: Coarsest output.
        width: Channels of every output.
        extra: How outputs above the backbone's coarsest level come about: as is usual with the head (``head``), or the
            other way, by pooling under a dense head (``fpn_3-7_256p``) or by convolutions under a two-stage one
            (``fpn_2-6_256c``).
    """

    low: int
    high: int
    width: int
    extra: ExtraLevels = "head"

    def __post_init__(self) -> None:
        _require(
            1 <= self.low <= self.high <= 7,
            "pyramid levels must satisfy 1 <= low <= high <= 7",
            f"{self.low}-{self.high}",
        )
        _require(
            8 <= self.width <= 1024 and self.width % 8 == 0,
            "a pyramid width is a multiple of 8 from 8 to 1024",
            self.width,
        )

    def __str__(self) -> str:
        return f"fpn_{self.low}-{self.high}_{self.width}{_EXTRA_LETTERS[self.extra]}"


Neck = C4Spec | FPNSpec


class RPNKind(StrEnum):
    """How region proposals are made: not at all, by an RPN, or by Guided Anchoring."""

    NONE = "norpn"
    RPN = "rpn"
    GUIDED = "garpn"


def _require_head_width(width: int) -> None:
    _require(8 <= width <= 4096 and width % 8 == 0, "a head width is a multiple of 8 from 8 to 4096", width)


@dataclass(frozen=True, order=True)
class RCNNSpec:
    """Two fully connected layers of ``width`` on every RoI: ``rcnn_1024``."""

    width: int

    def __post_init__(self) -> None:
        _require_head_width(self.width)

    def __str__(self) -> str:
        return f"rcnn_{self.width}"


@dataclass(frozen=True, order=True)
class CascadeSpec:
    """Two to four RoI stages in a row, each two fully connected layers of ``width``: ``cascade_3_1024``."""

    stages: int
    width: int

    def __post_init__(self) -> None:
        _require(2 <= self.stages <= 4, "a cascade has 2, 3 or 4 stages", self.stages)
        _require_head_width(self.width)

    def __str__(self) -> str:
        return f"cascade_{self.stages}_{self.width}"


@dataclass(frozen=True, order=True)
class RetinaSpec:
    """RetinaNet's dense head, ``depth`` convolutions of ``width`` in each branch: ``retina_256``, ``retina_256_2``."""

    width: int
    depth: int = _DEFAULT_DENSE_DEPTH

    def __post_init__(self) -> None:
        _require_head_width(self.width)
        _require(1 <= self.depth <= 8, "a RetinaNet head has 1 to 8 convolutions in each branch", self.depth)

    def __str__(self) -> str:
        suffix = "" if self.depth == _DEFAULT_DENSE_DEPTH else f"_{self.depth}"
        return f"retina_{self.width}{suffix}"


@dataclass(frozen=True, order=True)
class FCOSSpec:
    """An anchor-free dense head, ``depth`` convolutions of ``width`` in each branch: ``fcos_256``, ``fcos_256_2``."""

    width: int
    depth: int = _DEFAULT_DENSE_DEPTH

    def __post_init__(self) -> None:
        _require_head_width(self.width)
        _require(1 <= self.depth <= 8, "an FCOS head has 1 to 8 convolutions in each branch", self.depth)

    def __str__(self) -> str:
        suffix = "" if self.depth == _DEFAULT_DENSE_DEPTH else f"_{self.depth}"
        return f"fcos_{self.width}{suffix}"


DenseSpec = RetinaSpec | FCOSSpec  # one-stage heads, which read a pyramid and need no proposals
Head = RCNNSpec | CascadeSpec | DenseSpec


@dataclass(frozen=True, order=True)
class Architecture:
    """One detector: backbone, neck, proposals, head and the input size in pixels.

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
        _require(
            one_stage == (self.rpn is RPNKind.NONE),
            "a RetinaNet or FCOS head goes with norpn, an RCNN or cascade head with rpn or garpn",
            self.rpn,
            self.head,
        )
        top = self.backbone.top_level
        if isinstance(self.neck, C4Spec):
            _require(not one_stage, "a RetinaNet or FCOS head needs a feature pyramid", self.neck, self.head)
            _require(top >= 4, "the c4 neck needs a backbone that reaches C4 (three stages or more)", self.backbone)
        else:
            _require(
                self.neck.low <= top,
                f"the pyramid's finest level must exist in the backbone, whose coarsest is C{top}",
                self.neck,
            )
            # one network, one string: a letter that changes nothing is refused
            _require(
                self.neck.extra == "head" or self.neck.high > top,
                f"a pyramid names its extra levels' kind only where it reaches above C{top}",
                self.neck,
            )
            _require(
                self.neck.extra != ("conv" if one_stage else "pool"),
                "a pyramid's extra levels come by convolutions under a dense head and by pooling under another, and a "
                "letter is written only for the other way",
                self.neck,
                self.head,
            )
        for name, size in (("width", self.input_width), ("height", self.input_height)):
            _require(32 <= size <= 4096, f"the input {name} must be between 32 and 4096 pixels", size)

    @cached_property
    def _text(self) -> str:
        return f"{self.backbone}+{self.neck}+{self.rpn}+{self.head}+{self.input_width}x{self.input_height}"

    def __str__(self) -> str:
        return self._text

    def __hash__(self) -> int:
        # A long search asks of thousands of architectures whether it has seen them, again for every proposal.
        return hash(self._text)

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that are stable across machines and versions."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:10]

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Read the canonical string.

        Raises:
            ArchitectureError: ``text`` is not an architecture.
        """
        parts = text.split("+")
        _require(len(parts) == 5, "an architecture is backbone+neck+rpn+head+WIDTHxHEIGHT", repr(text))
        backbone, neck, rpn, head, size = parts
        _require(rpn in list(RPNKind), f"the proposal part must be one of {', '.join(RPNKind)}", repr(rpn))
        match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", size)
        if match is None:
            raise ArchitectureError(f"an input size is WIDTHxHEIGHT in pixels, but got {size!r}")
        parsed = cls(
            parse_backbone(backbone), parse_neck(neck), RPNKind(rpn), parse_head(head), int(match[1]), int(match[2])
        )
        _require(str(parsed) == text, f"an architecture is written canonically ({parsed})", repr(text))
        return parsed


def parse_backbone(text: str) -> Backbone:
    """Read ``{block}_{base}_{code}``, ``resnext{C}x{W}_..``, ``mobilenetv2_{percent}`` or ``k1kxk1_{stem}_{stages}``.

    Raises:
        ArchitectureError: ``text`` is not a backbone.
    """
    if match := re.fullmatch(r"mobilenetv2_(\d{1,4})", text):
        return MobileNetV2Spec(int(match[1]))
    for block in get_args(BlockKind):
        if match := re.fullmatch(rf"{block}_(\d{{1,4}})_([0-9-]+)", text):
            return ResNetSpec(block, int(match[1]), match[2])
    if match := re.fullmatch(r"resnext(\d{1,3})x(\d{1,3})_(\d{1,4})_([0-9-]+)", text):
        return ResNetSpec("resnext", int(match[3]), match[4], (int(match[1]), int(match[2])))
    if text.startswith("k1kxk1_"):
        return _parse_super_blocks(text)
    raise ArchitectureError(
        f"a backbone is {{{'|'.join(get_args(BlockKind))}}}_BASE_CODE, resnext{{PATHS}}x{{WIDTH}}_BASE_CODE, "
        f"mobilenetv2_PERCENT or k1kxk1_STEM_STAGES, but got {text!r}"
    )


def _parse_super_blocks(text: str) -> SuperBlockSpec:
    match = re.fullmatch(r"k1kxk1_(\d{1,4})_([0-9bkr.-]+)", text)
    if match is None:
        raise ArchitectureError(
            "super-blocks are k1kxk1_STEM_STAGES, stages joined by '-' and super-blocks within one by '.', "
            f"but got {text!r}"
        )
    stages = tuple(tuple(map(_parse_super_block, stage.split("."))) for stage in match[2].split("-"))
    return SuperBlockSpec(int(match[1]), stages)


def _parse_super_block(text: str) -> SuperBlock:
    match = re.fullmatch(r"(\d{1,4})b(\d{1,4})k(\d{1,2})r(\d{1,2})", text)
    if match is None:
        raise ArchitectureError(
            f"a super-block is {{OUT}}b{{WIDTH}}k{{KERNEL}}r{{REPEATS}}, as in 256b64k3r3, but got {text!r}"
        )
    out, width, kernel, repeats = map(int, match.groups())
    return SuperBlock(out, width, kernel, repeats)


def parse_neck(text: str) -> Neck:
    """Read ``c4`` or ``fpn_LOW-HIGH_WIDTH[c|p]``; raises :class:`ArchitectureError`."""
    if text == "c4":
        return C4Spec()
    if match := re.fullmatch(r"fpn_(\d)-(\d)_(\d{1,4})([cp]?)", text):
        extra = {letter: extra for extra, letter in _EXTRA_LETTERS.items()}[match[4]]
        return FPNSpec(int(match[1]), int(match[2]), int(match[3]), extra)
    raise ArchitectureError(f"a neck is c4 or fpn_LOW-HIGH_WIDTH[c|p], but got {text!r}")


def parse_head(text: str) -> Head:
    """Read ``rcnn_WIDTH``, ``cascade_STAGES_WIDTH``, ``retina_WIDTH[_DEPTH]`` or ``fcos_WIDTH[_DEPTH]``.

    Raises:
        ArchitectureError: ``text`` is not a head.
    """
    if match := re.fullmatch(r"rcnn_(\d{1,5})", text):
        return RCNNSpec(int(match[1]))
    if match := re.fullmatch(r"cascade_(\d)_(\d{1,5})", text):
        return CascadeSpec(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"retina_(\d{1,5})(?:_(\d))?", text):
        return RetinaSpec(int(match[1]), int(match[2]) if match[2] else _DEFAULT_DENSE_DEPTH)
    if match := re.fullmatch(r"fcos_(\d{1,5})(?:_(\d))?", text):
        return FCOSSpec(int(match[1]), int(match[2]) if match[2] else _DEFAULT_DENSE_DEPTH)
    raise ArchitectureError(
        f"a head is rcnn_WIDTH, cascade_STAGES_WIDTH, retina_WIDTH[_DEPTH] or fcos_WIDTH[_DEPTH], but got {text!r}"
    )
