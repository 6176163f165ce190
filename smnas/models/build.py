"""Builds a detector from its architecture."""

import torch
from torch import nn

from profiler.errors import UserError
from smnas.models.backbones.by_family import build_backbone
from smnas.models.detector import Detector, OneStageDetector, TwoStageDetector
from smnas.models.heads.fcos import FCOSHead, FCOSPostprocess
from smnas.models.heads.guided import GuidedProposalLayer, GuidedRPNHead
from smnas.models.heads.retina import RetinaHead, RetinaPostprocess
from smnas.models.heads.roi_heads import BoxHead, BoxRefine, CascadePostprocess, RoIPool, RoIStage
from smnas.models.heads.rpn import ProposalLayer, RPNHead
from smnas.models.layers import NormKind, fold_weight_standardization
from smnas.models.neck import FPN
from smnas.models.options import DetectorOptions
from smnas.space.architecture import (
    Architecture,
    CascadeSpec,
    DenseSpec,
    FCOSSpec,
    FPNSpec,
    RetinaSpec,
    RPNKind,
)
from smnas.space.convolutions import StemKind

__all__ = ["build_detector", "deployable"]

_C4_LEVEL = 4
_C4_OCTAVES = 5  # a single feature map has anchors of five octaves, as in Faster R-CNN


def build_detector(
    architecture: Architecture,
    num_classes: int,
    *,
    norm: NormKind = "gn-ws",
    stem: StemKind = "deep",
    device: torch.device | str | None = None,
) -> Detector:
    """Build a detector with freshly initialised weights.

    ``norm`` and ``stem`` are those of :class:`~smnas.models.options.DetectorOptions`. The device is the CPU by default;
    ``meta`` builds shapes without memory.

    Raises:
        UserError: ``num_classes``, which excludes the background, is below 1.
    """
    if num_classes < 1:
        raise UserError(f"a detector needs at least one class, but got {num_classes}")
    options = DetectorOptions.for_architecture(architecture, norm, stem)
    with torch.device(device if device is not None else "cpu"):
        return _build(architecture, num_classes, options)


def deployable(detector: Detector) -> Detector:
    """A copy for inference: evaluation mode, standardized weights folded, no gradients."""
    return fold_weight_standardization(detector).eval().requires_grad_(False)


def _build(architecture: Architecture, num_classes: int, options: DetectorOptions) -> Detector:
    spec, head, norm = architecture.backbone, architecture.head, options.norm
    width, height = architecture.input_width, architecture.input_height
    common = architecture, num_classes, options
    neck: FPN | None = None
    if isinstance(architecture.neck, FPNSpec):
        backbone = build_backbone(spec, norm, options.stem)
        in_channels = {level: c for level, c in backbone.channels.items() if level >= architecture.neck.low}
        # by default RetinaNet and FCOS add levels by convolutions, Faster R-CNN by pooling
        extra = architecture.neck.extra
        if extra == "head":
            extra = "conv" if isinstance(head, DenseSpec) else "pool"
        neck = FPN(architecture.neck, in_channels, norm, extra)
        levels, channels = neck.out_levels, architecture.neck.width
        if isinstance(head, RetinaSpec):
            postprocess = RetinaPostprocess(levels, width, height, options)
            dense = RetinaHead(channels, head, num_classes, norm)
            return OneStageDetector(*common, backbone, neck, dense, postprocess)
        if isinstance(head, FCOSSpec):
            centres = FCOSPostprocess(levels, width, height, options)
            anchor_free = FCOSHead(channels, len(levels), head, num_classes, norm)
            return OneStageDetector(*common, backbone, neck, anchor_free, centres)
        anchors = [tuple(cells * 2**level for cells in options.anchor_cells) for level in levels]
        # levels above the backbone's yield proposals but are not pooled, as in torchvision
        pooled_levels = tuple(level for level in levels if level <= spec.top_level)
    else:
        backbone = build_backbone(spec, norm, options.stem, top_level=_C4_LEVEL)
        levels = pooled_levels = (_C4_LEVEL,)
        channels = backbone.channels[_C4_LEVEL]
        smallest = options.anchor_cells[0] * 2**_C4_LEVEL / 4
        anchors = [tuple(smallest * 2**octave for octave in range(_C4_OCTAVES))]
    if isinstance(head, DenseSpec):
        raise TypeError(f"a two-stage head is needed, got {head}")
    count = head.stages if isinstance(head, CascadeSpec) else 1
    behind = range(_C4_LEVEL - 1, spec.top_level - 1) if neck is None else range(0)
    pooled_size = 14 if len(behind) else 7
    head_channels = spec.stage_channels(behind[-1]) if len(behind) else channels
    stages = []
    for index in range(count):
        # each cascade stage has its own blocks, so that steps share no parameter
        blocks = nn.Sequential(*(block for stage in behind for block in backbone.build_stage(stage, norm)))
        agnostic, side = isinstance(head, CascadeSpec), 1 if len(behind) else 7
        box_head = BoxHead(head_channels, side, head.width, num_classes, class_agnostic=agnostic, norm=norm)
        stages.append(RoIStage(index, RoIPool(pooled_levels, pooled_size, options), blocks, box_head))
    rpn: RPNHead | GuidedRPNHead
    proposals: ProposalLayer | GuidedProposalLayer
    if architecture.rpn is RPNKind.GUIDED:
        rpn = GuidedRPNHead(channels, norm)
        proposals = GuidedProposalLayer(levels, anchors, width, height, options)
    else:
        rpn = RPNHead(channels, len(anchors[0]) * 3, norm)
        proposals = ProposalLayer(levels, anchors, width, height, options)
    refines = [BoxRefine(index, width, height) for index in range(count - 1)]
    postprocess_rois = CascadePostprocess(count, num_classes, width, height, options)
    return TwoStageDetector(*common, backbone, neck, rpn, proposals, stages, refines, postprocess_rois)
