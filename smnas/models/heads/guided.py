"""Guided Anchoring: an RPN that predicts the centres and the shapes of its anchors.

Source: Wang et al., "Region Proposal by Guided Anchoring", arXiv 1901.03278. Each position has one anchor of predicted
width and height instead of fixed ones; a deformable convolution steered by that shape adapts the feature map; positions
unlikely to be centres are masked rather than removed, which keeps all shapes static.

One difference: the paper estimates the best possible overlap of a position's anchor with an object from nine sampled
shapes, for want of a closed form; :func:`best_overlap` is one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from kernels.deform_conv import deform_conv2d
from smnas.models.anchors import grid_positions, grid_size
from smnas.models.boxes import PaddedTargets, match
from smnas.models.heads.rpn import NEGATIVE_OVERLAP, anchor_loss, best_proposals
from smnas.models.layers import ConvNorm, NormKind, group_norm, prior_bias
from smnas.models.losses import USUAL_LOSSES, LossOptions
from smnas.models.options import DetectorOptions

__all__ = [
    "DeformConv",
    "GuidedProposalLayer",
    "GuidedRPNHead",
    "GuidedTargets",
    "best_overlap",
    "bounded_iou_loss",
    "guided_rpn_loss",
    "guided_targets",
]

_CENTRE, _IGNORED = 0.2, 0.5  # fractions of a box, around its middle, that are centre, and that are not background
_LOCATION_THRESHOLD = 0.01  # positions of a lower probability propose nothing
_SHAPE_OVERLAP = 0.5  # best overlap from which a position learns an object's shape
_BETA = 0.2  # transition of the smooth L1 form of the bounded IoU loss
_LARGEST_LOG = math.log(1000 / 16)  # as torchvision bounds box deltas
_NEVER = -1e4  # sigmoid is 0, in float16 too


class DeformConv(nn.Module):
    """A 3x3 deformable convolution; not standardized, as the norm that follows removes the scale."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def extra_repr(self) -> str:
        """Everything that affects the latency."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, kernel_size=3"

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """``(B, C, H, W)`` and 18 offsets per position ``(B, 18, H, W)`` to ``(B, C_out, H, W)``."""
        return deform_conv2d(x, offset, self.weight, padding=1)


class GuidedRPNHead(nn.Module):
    """The RPN's convolution, location and shape, the adapted feature map, then objectness and box deltas."""

    # ONNX Runtime has no integer matmul with the weights as first operand, as in `adapt`
    FLOAT_IN_INT8 = ("location", "shape", "offset", "adapt", "objectness", "deltas")

    def __init__(self, in_channels: int, norm: NormKind) -> None:
        super().__init__()
        self.conv = ConvNorm(norm, in_channels, in_channels, 3)
        self.location = nn.Conv2d(in_channels, 1, 1)
        self.shape = nn.Conv2d(in_channels, 2, 1)
        self.offset = nn.Conv2d(2, 18, 1)
        self.adapt = DeformConv(in_channels, in_channels)
        self.norm = nn.ReLU(inplace=True) if norm == "bn" else group_norm(in_channels, 32, relu=True)
        self.objectness = nn.Conv2d(in_channels, 1, 1)
        self.deltas = nn.Conv2d(in_channels, 4, 1)
        for layer in (self.location, self.shape, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.location.bias, prior_bias(0.01))  # type: ignore[arg-type]
        # larger, so that shapes move the sampling positions from the start; a shape of 0 moves none at first
        nn.init.normal_(self.offset.weight, std=0.1)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One feature map per level to predictions at all A positions, level by level and row by row.

        Returns:
            ``(B, A)`` objectness logits, ``(B, A, 4)`` box deltas, ``(B, A)`` location logits, and ``(B, A, 2)``
            logarithms of the anchor's width and height in base sides of its level.
        """
        outputs: tuple[list[Tensor], ...] = ([], [], [], [])
        for feature in features:
            x = self.conv(feature)
            shape = self.shape(x)
            # shapes are trained on objects' shapes alone, not through the convolution
            x_fitted = self.norm(self.adapt(x, self.offset(shape.detach())))
            maps = (self.objectness(x_fitted), self.deltas(x_fitted), self.location(x), shape)
            for output, values in zip(outputs, maps, strict=True):
                output.append(values.flatten(2).transpose(1, 2))
        logits, deltas, locations, shapes = (torch.cat(output, dim=1) for output in outputs)
        return logits.squeeze(2), deltas, locations.squeeze(2), shapes


class GuidedProposalLayer(nn.Module):
    """Reduces the best guided anchors of each level by NMS to a fixed number of proposals.

    ``levels`` and ``sizes`` are finest first; the base side of a level is the geometric mean of its ``sizes``, the
    sides of fixed anchors in pixels. ``width`` and ``height`` are the canvas's in pixels.

    Attributes:
        centres: ``(A, 2)`` x and y of each position in pixels, ``stride`` times its index, as for fixed anchors.
        bases: ``(A, 1)`` side in pixels of an anchor with predicted shape 0.
        cell_levels: ``(A,)`` int64, index of each position's level in ``levels``.
        counts: Positions per level.
    """

    centres: Tensor
    bases: Tensor
    cell_levels: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        sizes: Sequence[tuple[float, ...]],
        width: int,
        height: int,
        options: DetectorOptions,
    ) -> None:
        super().__init__()
        self.strides = [float(2**level) for level in levels]
        self.grids = [grid_size(level, width, height) for level in levels]
        self.counts = [rows * columns for rows, columns in self.grids]
        self.level_bases = [math.prod(sides) ** (1 / len(sides)) for sides in sizes]
        centres = [grid_positions(level, width, height) * float(2**level) for level in levels]
        counts = torch.tensor(self.counts, device="cpu")
        cell_levels = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
        device = torch.get_default_device()
        self.register_buffer("centres", torch.cat(centres).to(device), persistent=False)
        self.register_buffer("cell_levels", cell_levels.to(device), persistent=False)
        bases = torch.tensor(self.level_bases, device="cpu")[cell_levels, None]
        self.register_buffer("bases", bases.to(device), persistent=False)
        self.width, self.height = width, height
        self.options = options

    def extra_repr(self) -> str:
        """Everything that affects the latency."""
        return (
            f"counts={self.counts}, pre_nms_top_n={self.options.pre_nms_top_n}, proposals={self.options.proposals}, "
            f"location_threshold={_LOCATION_THRESHOLD}"
        )

    def forward(self, logits: Tensor, deltas: Tensor, locations: Tensor, shapes: Tensor) -> Tensor:
        """Outputs of :class:`GuidedRPNHead` to ``(B, R, 4)`` proposals, best first; padding has no area."""
        likely = locations >= prior_bias(_LOCATION_THRESHOLD)
        return self.propose(torch.where(likely, logits, _NEVER), deltas, shapes)

    def propose(self, logits: Tensor, deltas: Tensor, shapes: Tensor) -> Tensor:
        """As :meth:`forward` over all positions, for training, where locations are not learned yet."""

        def anchors_at(index: Tensor) -> Tensor:
            chosen = shapes.gather(1, index[:, :, None].expand(-1, -1, 2))
            return _boxes(chosen, self.centres[index.flatten()], self.bases[index.flatten()])

        return best_proposals(logits, deltas, anchors_at, self.counts, (self.width, self.height), self.options)

    def anchors(self, shapes: Tensor) -> Tensor:
        """``(B, A, 2)`` shapes to ``(B, A, 4)`` guided anchors, ``xyxy`` in pixels, not clipped to the canvas."""
        batch = len(shapes)
        return _boxes(shapes, self.centres.repeat(batch, 1), self.bases.repeat(batch, 1)).view(batch, -1, 4)


def _boxes(shapes: Tensor, centres: Tensor, bases: Tensor) -> Tensor:
    """``(B, K, 2)`` shapes with ``(B * K, 2)`` centres and ``(B * K, 1)`` base sides to ``(B * K, 4)`` boxes."""
    half = shapes.reshape(-1, 2).clamp(-_LARGEST_LOG, _LARGEST_LOG).exp() * bases / 2
    return torch.cat([centres - half, centres + half], dim=1)


def best_overlap(x: Tensor, y: Tensor) -> Tensor:
    """Largest IoU with an object of a box of any shape centred at an offset from the object's middle.

    For a fixed height the IoU grows with the width until the box meets the object's nearer side, falls beyond the
    farther one, and is monotone between, as a quotient of linear functions; the height behaves alike. So on each axis
    the best box ends at the nearer or the farther side: four boxes, of which both nearer sides never win.

    Args:
        x: Offset of the centres along one axis, in half sides of the object, 0 or more.
        y: The same along the other axis, broadcast against ``x``.
    """
    both = (1 + x) * (1 + y)
    # beyond the object's side no box ends at the nearer one: its inverse is clamped to a large value
    first = y + 1 / (1 - x).clamp(min=1e-6)
    second = x + 1 / (1 - y).clamp(min=1e-6)
    return 1 / torch.minimum(both, torch.minimum(first, second))


class GuidedTargets(NamedTuple):
    """Training targets of ``(B, A)`` positions.

    Attributes:
        location: bool, whether an object is centred here.
        background: bool; the location loss ignores positions that are neither.
        shaped: bool, whether the position learns an object's shape.
        object_index: int64, which object's; meaningless elsewhere.
    """

    location: Tensor
    background: Tensor
    shaped: Tensor
    object_index: Tensor


def guided_targets(layer: GuidedProposalLayer, targets: PaddedTargets) -> GuidedTargets:
    """Assign each object to the level with the base side nearest to its size, and there to positions near its middle.

    - Location: positions in the central 0.2 of the box, and the nearest position to its middle (for small objects), are
      centres; the rest of the central 0.5 is ignored, as is all of it on the two adjacent levels. A centre of one
      object remains one inside the ignored region of another.
    - Shape: positions on the object's level with a best overlap of at least 0.5, and the nearest one; among several
      objects, the one of largest best overlap.
    """
    corners = targets.boxes
    sides = (corners[..., 2:] - corners[..., :2]).clamp(min=1e-3)
    middle = (corners[..., :2] + corners[..., 2:]) / 2
    device = corners.device
    size = sides.log().mean(dim=2)
    level = (size[..., None] - torch.tensor(layer.level_bases, device=device).log()).abs().argmin(dim=2)
    # (B, G, A): reductions over A run along memory, as in boxes.match
    x, y = ((middle[..., i, None] - layer.centres[:, i]).abs() / (sides[..., i, None] / 2) for i in range(2))
    apart = (level[..., None] - layer.cell_levels).abs()
    own = (apart == 0) & targets.valid[..., None]
    beside = (apart == 1) & targets.valid[..., None]
    nearest = torch.zeros_like(own).scatter(2, _nearest_cell(layer, middle, level)[..., None], True)
    nearest &= targets.valid[..., None]

    reach = torch.maximum(x, y)
    location = ((own & (reach <= _CENTRE)) | nearest).any(dim=1)
    around = ((own | beside) & (reach <= _IGNORED)).any(dim=1)
    overlap = best_overlap(x, y)
    fit = torch.where((own & (overlap >= _SHAPE_OVERLAP)) | nearest, overlap, -1.0).max(dim=1)
    return GuidedTargets(location, ~(location | around), fit.values > 0, fit.indices)


def _nearest_cell(layer: GuidedProposalLayer, middle: Tensor, level: Tensor) -> Tensor:
    """``(B, G)`` index of the position of ``level`` nearest to ``middle`` ``(B, G, 2)``."""
    grids = torch.tensor(layer.grids, device=level.device)[level]
    counts = torch.tensor(layer.counts, device=level.device)
    starts = counts.cumsum(0) - counts
    cell = (middle / torch.tensor(layer.strides, device=level.device)[level][..., None]).round().long()
    column, row = cell[..., 0].clamp(min=0), cell[..., 1].clamp(min=0)
    row, column = torch.minimum(row, grids[..., 0] - 1), torch.minimum(column, grids[..., 1] - 1)
    return starts[level] + row * grids[..., 1] + column


def bounded_iou_loss(shapes: Tensor, wanted: Tensor) -> Tensor:
    """``1 - min(w / w*, w* / w)``, and the same for the height, in smooth L1 form: quadratic up to 0.2, then linear.

    Both arguments are ``(N, 2)`` logarithms of width and height in one unit; so is the shape of the result.
    """
    missing = 1 - (-(shapes - wanted).abs()).exp()
    return F.smooth_l1_loss(missing, torch.zeros_like(missing), beta=_BETA, reduction="none")


def guided_rpn_loss(
    layer: GuidedProposalLayer,
    logits: Tensor,
    deltas: Tensor,
    locations: Tensor,
    shapes: Tensor,
    targets: PaddedTargets,
    losses: LossOptions = USUAL_LOSSES,
) -> dict[str, Tensor]:
    """Focal loss of locations, bounded IoU loss of shapes, and the RPN's two losses over guided anchors.

    All four have equal weights, apart from the RPN's box weight (this project's default).
    """
    found = guided_targets(layer, targets)
    focal = sigmoid_focal_loss(locations, found.location.to(locations.dtype), alpha=0.25, gamma=2.0)
    location = (focal * (found.location | found.background)).sum() / found.location.sum().clamp(min=1)

    objects = targets.boxes.gather(1, found.object_index[..., None].expand(-1, -1, 4))[found.shaped]
    bases = layer.bases.expand(len(shapes), -1, -1)[found.shaped]
    wanted = ((objects[:, 2:] - objects[:, :2]) / bases).clamp(min=1e-6).log()
    shape = bounded_iou_loss(shapes[found.shaped], wanted).sum() / found.shaped.sum().clamp(min=1)

    anchors = layer.anchors(shapes.detach())
    matches = match(anchors, targets, layer.options.rpn_overlap, NEGATIVE_OVERLAP, keep_best=True)
    return {
        "rpn_location": location,
        "rpn_shape": shape,
        **anchor_loss(anchors, matches, logits, deltas, targets, layer.options, losses),
    }
