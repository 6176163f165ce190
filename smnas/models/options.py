"""Choices of a detector that are not part of its architecture, with defaults that fit the input size."""

from dataclasses import dataclass, replace

from smnas.models.layers import NormKind
from smnas.space.architecture import Architecture, RPNKind
from smnas.space.convolutions import StemKind

__all__ = ["DetectorOptions"]


@dataclass(frozen=True)
class DetectorOptions:
    """How a detector is built around its architecture.

    Attributes:
        norm: ``gn-ws`` (GroupNorm + Weight Standardization everywhere) or ``bn`` (torchvision's: BatchNorm in the
            backbone, plain convolutions with biases behind it, GroupNorm in FCOS's towers). With ``bn``, the stem
            ``imagenet`` and an input of 400 pixels or more, ``bottleneck_64_111-2111-211111-211`` with
            ``fpn_2-6_256+rpn+rcnn_1024`` is torchvision's ``fasterrcnn_resnet50_fpn`` and with
            ``fpn_3-7_256+norpn+retina_256`` its ``retinanet_resnet50_fpn``, class order aside.
        stem: ``deep`` (SM-NAS: two 3x3 convolutions) or ``imagenet`` (7x7 and max-pooling).
        anchor_cells: Sides of an RPN anchor (of its square shape), in cells of its level.
        rpn_overlap: Overlap from which an anchor is positive for the RPN (the best one of an object always is).
        rpn_samples: Anchors per image that the RPN's loss sees.
        canonical_size: Pixels of a box that RoIAlign reads at stride 16.
        pre_nms_top_n: Proposals kept per level before NMS.
        proposals: Proposals after NMS.
        roi_samples: RoIs per image in a training step.
        roi_overlaps: Overlap from which a proposal is positive, of the first RoI stage, the second, and so on (the
            fourth's is a default of ours).
        candidates: Detections kept before the last NMS.
        detections: Detections per image, the K of :class:`~smnas.models.target.Detections`.
        score_threshold: Detections below it are dropped.
    """

    norm: NormKind = "gn-ws"
    stem: StemKind = "deep"
    anchor_cells: tuple[float, ...] = (8.0,)
    rpn_overlap: float = 0.7
    rpn_samples: int = 256
    canonical_size: float = 224.0
    pre_nms_top_n: int = 1000
    proposals: int = 1000
    roi_samples: int = 512
    roi_overlaps: tuple[float, ...] = (0.5, 0.6, 0.7, 0.75)
    candidates: int = 1000
    detections: int = 100
    score_threshold: float = 0.01

    @classmethod
    def for_architecture(
        cls, architecture: Architecture, norm: NormKind = "gn-ws", stem: StemKind = "deep"
    ) -> "DetectorOptions":
        """Torchvision's numbers from 400 pixels on; below, objects and their number shrink with the image.

        Guided anchors propose better, so fewer proposals are kept and more is asked of them, as in SM-NAS (its 300
        proposals are at inference; that a training samples from as many is a default of ours).
        """
        options = cls._for_input(architecture, norm, stem)
        if architecture.rpn is not RPNKind.GUIDED:
            return options
        return replace(options, proposals=options.proposals * 3 // 10, roi_overlaps=(0.6, 0.7, 0.75, 0.8))

    @classmethod
    def _for_input(cls, architecture: Architecture, norm: NormKind, stem: StemKind) -> "DetectorOptions":
        if min(architecture.input_width, architecture.input_height) >= 400:
            return cls(norm=norm, stem=stem)
        return cls(
            norm=norm,
            stem=stem,
            anchor_cells=(2.0, 4.0),
            # Small objects overlap with anchors little, so that few are positive: on real images at 160 pixels AP50
            # after 10 of 20 epochs is 0.004 and 0.022 (two initial weights), with 0.7 and 256 twice 0.0003; on
            # generated ones after 2 epochs 0.61 against 0.59 (one seed).
            rpn_overlap=0.5,
            rpn_samples=64,
            canonical_size=112.0,
            pre_nms_top_n=200,
            proposals=100,
            roi_samples=64,
            candidates=300,
        )
