"""RetinaNet's dense head (Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import sigmoid_focal_loss

from smnas.models.anchors import level_anchors
from smnas.models.boxes import PaddedTargets, match, match_adaptive
from smnas.models.heads.dense import DensePostprocess, conv_tower, output_convs
from smnas.models.layers import NormKind
from smnas.models.losses import USUAL_LOSSES, LossOptions, overlap_loss
from smnas.models.options import DetectorOptions
from smnas.models.target import Detections
from smnas.space.architecture import RetinaSpec

__all__ = ["ANCHORS_PER_CELL", "RetinaHead", "RetinaPostprocess", "retina_loss"]

ANCHORS_PER_CELL = 9
_ATSS_CELLS = 9
_OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
_CODER = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))


class RetinaHead(nn.Module):
    """A classification and a regression tower of convolutions; the levels share weights."""

    FLOAT_IN_INT8 = ("logits", "deltas")

    def __init__(self, in_channels: int, spec: RetinaSpec, num_classes: int, norm: NormKind) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classify = conv_tower(norm, in_channels, spec.width, spec.depth)
        self.regress = conv_tower(norm, in_channels, spec.width, spec.depth)
        self.logits, self.deltas = output_convs(spec.width, ANCHORS_PER_CELL * num_classes, ANCHORS_PER_CELL * 4)

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """One feature map per level to ``(B, A, classes)`` logits and ``(B, A, 4)`` deltas, in the anchors' order."""
        logits, deltas = [], []
        for feature in features:
            batch = len(feature)
            logit = self.logits(self.classify(feature)).permute(0, 2, 3, 1)
            logits.append(logit.reshape(batch, -1, self.num_classes))
            deltas.append(self.deltas(self.regress(feature)).permute(0, 2, 3, 1).reshape(batch, -1, 4))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


class RetinaPostprocess(DensePostprocess):
    """From deltas to detections; ``anchors`` ``(A, 4)`` are of three sizes from 4 strides up, in three shapes."""

    anchors: Tensor

    def __init__(self, levels: Sequence[int], width: int, height: int, options: DetectorOptions) -> None:
        sizes = {level: tuple(4.0 * 2**level * octave for octave in _OCTAVES) for level in levels}
        anchors = [level_anchors(level, width, height, size) for level, size in sizes.items()]
        super().__init__("anchors", anchors, width, height, options)

    def forward(self, logits: Tensor, deltas: Tensor) -> Detections:
        """``(B, A, classes)`` logits and ``(B, A, 4)`` deltas to detections."""
        return self.detect(logits, deltas, self.anchors, _CODER.decode_single)


def retina_loss(
    layer: RetinaPostprocess,
    logits: Tensor,
    deltas: Tensor,
    targets: PaddedTargets,
    losses: LossOptions = USUAL_LOSSES,
) -> dict[str, Tensor]:
    """Focal loss over all anchors that are not ignored, and L1 (or IoU) loss over positive ones, per positive anchor.

    ATSS considers the anchors at the nine nearest positions of a level.
    """
    if losses.assignment == "atss":
        matches = match_adaptive(layer.anchors[None], layer.counts, targets, _ATSS_CELLS * ANCHORS_PER_CELL)
    else:
        matches = match(layer.anchors[None], targets, 0.5, 0.4, keep_best=True)
    positive = matches.positive
    count = positive.sum().clamp(min=1)
    label = targets.labels.gather(1, matches.object_index)
    wanted = F.one_hot(label, logits.shape[2]).to(logits.dtype) * positive[:, :, None]
    used = positive | matches.negative
    focal = sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2.0)
    objects = targets.boxes.gather(1, matches.object_index[:, :, None].expand(-1, -1, 4))[positive]
    anchors = layer.anchors.expand(len(positive), -1, -1)[positive]
    classification = (focal * used[:, :, None]).sum() / count
    if losses.box == "smooth-l1":
        wanted_deltas = _CODER.encode_single(objects, anchors)
        regression = F.l1_loss(deltas[positive], wanted_deltas, reduction="sum") / count
    else:
        regression = overlap_loss(losses.box, _CODER.decode_single(deltas[positive], anchors), objects)
    return {"retina_class": classification, "retina_box": regression}
