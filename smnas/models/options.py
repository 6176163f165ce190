"""Settings of a detector beyond its architecture, with defaults by input size."""

from dataclasses import dataclass, replace

from smnas.models.layers import NormKind
from smnas.space.architecture import Architecture, RPNKind
from smnas.space.convolutions import StemKind

__all__ = ["DetectorOptions"]


@dataclass(frozen=True)
class DetectorOptions:
    """Settings of a detector beyond its architecture.

    Attributes:
        norm: ``gn-ws`` (GroupNorm + Weight Standardization everywhere), ``gn`` (the same but for the weights of the
            backbone, which are not standardized) or ``bn`` (torchvision's: BatchNorm in the backbone, plain
            convolutions with biases after it, GroupNorm in FCOS's towers). With ``bn``, stem ``imagenet`` and an input
            of 400 pixels or more, ``bottleneck_64_111-2111-211111-211`` with ``fpn_2-6_256+rpn+rcnn_1024`` is
            torchvision's ``fasterrcnn_resnet50_fpn``, and with ``fpn_3-7_256+norpn+retina_256`` its
            ``retinanet_resnet50_fpn``, except for the order of classes.
        stem: ``deep`` (SM-NAS: two 3x3 convolutions) or ``imagenet`` (7x7 and max-pooling).
        anchor_cells: Sides of the RPN's square anchors, in strides of their level.
        rpn_overlap: IoU from which an anchor is positive for the RPN (an object's best anchor always is).
        rpn_samples: Anchors per image in the RPN's loss.
        canonical_size: Size in pixels of a box that RoIAlign reads at stride 16.
        pre_nms_top_n: Proposals per level before NMS.
        proposals: Proposals after NMS.
        roi_samples: RoIs per image in a training step.
        roi_overlaps: IoU from which a proposal is positive, per RoI stage (the fourth is this project's default).
        candidates: Detections before the last NMS.
        detections: Detections per image, the K of :class:`~smnas.models.target.Detections`.
        score_threshold: Minimal score of a detection.
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
        """Values of torchvision from 400 pixels on; for smaller inputs, anchors and counts shrink with the image.

        Guided anchors propose better, so fewer proposals are kept and IoU thresholds rise, as in SM-NAS (whose 300
        proposals are for inference; using them in training is this project's default).
        """
        options = cls(norm=norm, stem=stem)
        if min(architecture.input_width, architecture.input_height) < 400:
            # Small objects have low IoUs with anchors, so few are positive: on real images at 160 pixels AP50 after 10
            # of 20 epochs is 0.004 and 0.022 (two initial weights), with 0.7 and 256 twice 0.0003; on generated images
            # after 2 epochs 0.61 against 0.59 (one seed).
            options = replace(options, anchor_cells=(2.0, 4.0), rpn_overlap=0.5, rpn_samples=64, canonical_size=112.0)
            options = replace(options, pre_nms_top_n=200, proposals=100, roi_samples=64, candidates=300)
        if architecture.rpn is RPNKind.GUIDED:
            options = replace(options, proposals=options.proposals * 3 // 10, roi_overlaps=(0.6, 0.7, 0.75, 0.8))
        return options
