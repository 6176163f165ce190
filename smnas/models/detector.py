"""A detector: named steps with explicit inputs and outputs, run in order.

The steps are the only description of the inference path: the forward pass runs them, the ONNX export traces them, and
the profiler times them (:mod:`smnas.latency.workloads`), so a latency table cannot drift from the model.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from smnas.models.backbones.base import FeatureBackbone
from smnas.models.boxes import PaddedTargets, pad_targets
from smnas.models.heads.fcos import FCOSHead, FCOSPostprocess, fcos_loss
from smnas.models.heads.guided import GuidedProposalLayer, GuidedRPNHead, guided_rpn_loss
from smnas.models.heads.retina import RetinaHead, RetinaPostprocess, retina_loss
from smnas.models.heads.roi_heads import BoxRefine, CascadePostprocess, RoIStage
from smnas.models.heads.rpn import ProposalLayer, RPNHead, rpn_loss
from smnas.models.losses import USUAL_LOSSES, LossOptions
from smnas.models.neck import FPN
from smnas.models.options import DetectorOptions
from smnas.models.target import Detections, Target
from smnas.space.architecture import Architecture

__all__ = ["Detector", "OneStageDetector", "Step", "TwoStageDetector"]


class Step(NamedTuple):
    """One module of the inference path.

    Attributes:
        name: Position, e.g. ``backbone.stage2.block1``.
        module: Every parameter of the detector belongs to exactly one step.
        inputs: Names of the values it reads; ``images`` is the detector's input.
        outputs: Names of the values it writes, one per returned tensor.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Detector(nn.Module, ABC):
    """Base of one-stage and two-stage detectors.

    Attributes:
        architecture: Its architecture.
        num_classes: Classes, without the background.
        options: All other settings.
        steps: The inference path.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int,
        options: DetectorOptions,
        backbone: FeatureBackbone,
        neck: FPN | None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_classes = num_classes
        self.options = options
        self.backbone = backbone
        self.neck = neck
        self.steps: list[Step] = []

    @property
    def input_size(self) -> tuple[int, int]:
        """Canvas ``(width, height)`` in pixels."""
        return self.architecture.input_width, self.architecture.input_height

    def forward(self, images: Tensor) -> Detections:
        """Detect objects in ``(B, 3, H, W)`` uint8 RGB images of the detector's input size."""
        values: dict[str, Tensor] = {"images": images}
        for step in self.steps:
            result = step.module(*(values[name] for name in step.inputs))
            values.update(zip(step.outputs, (result,) if isinstance(result, Tensor) else result, strict=True))
        return Detections(*(values[name] for name in Detections._fields))

    def loss(
        self,
        images: Tensor,
        targets: Sequence[Target],
        losses: LossOptions = USUAL_LOSSES,
    ) -> dict[str, Tensor]:
        """Training losses by name; their sum is minimised.

        Args:
            images: ``(B, 3, H, W)`` uint8 RGB.
            targets: One per image, on any device.
            losses: Which losses.
        """
        return self._loss(self.features(images), pad_targets(targets, images.device), losses)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps that the head reads, finest first."""
        if self.neck is None:
            return (self.backbone(images)[4],)
        levels = self.backbone(images)
        out: tuple[Tensor, ...] = self.neck(*(levels[level] for level in self.neck.in_levels))
        return out

    @abstractmethod
    def _loss(self, features: tuple[Tensor, ...], targets: PaddedTargets, losses: LossOptions) -> dict[str, Tensor]: ...

    def _feature_steps(self) -> tuple[list[Step], tuple[str, ...]]:
        """Steps from the images to the head's feature maps, and the names of those."""
        steps = []
        value = "images"
        for link in self.backbone.chain():
            name = f"backbone.{link.name}"
            out = name if link.level is None else f"c{link.level}"
            steps.append(Step(name, link.module, (value,), (out,)))
            value = out
        if self.neck is None:
            return steps, ("c4",)
        outputs = tuple(f"p{level}" for level in self.neck.out_levels)
        steps.append(Step("neck", self.neck, tuple(f"c{level}" for level in self.neck.in_levels), outputs))
        return steps, outputs


class OneStageDetector(Detector):
    """A dense head on the pyramid: RetinaNet's or FCOS's."""

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int,
        options: DetectorOptions,
        backbone: FeatureBackbone,
        neck: FPN,
        head: RetinaHead | FCOSHead,
        postprocess: RetinaPostprocess | FCOSPostprocess,
    ) -> None:
        super().__init__(architecture, num_classes, options, backbone, neck)
        self.head = head
        self.postprocess = postprocess
        steps, maps = self._feature_steps()
        self.steps = [
            *steps,
            Step("head", head, maps, ("logits", "regressed")),
            Step("postprocess", postprocess, ("logits", "regressed"), Detections._fields),
        ]

    def _loss(self, features: tuple[Tensor, ...], targets: PaddedTargets, losses: LossOptions) -> dict[str, Tensor]:
        logits, regressed = self.head(*features)
        logits, regressed = logits.float(), regressed.float()
        if isinstance(self.postprocess, FCOSPostprocess):
            return fcos_loss(self.postprocess, logits, regressed, targets)
        return retina_loss(self.postprocess, logits, regressed, targets, losses)


class TwoStageDetector(Detector):
    """Proposals, then one RoI stage (RCNN) or several (Cascade).

    With the c4 neck, ``neck`` is None and the backbone ends at C4; the RoI stages hold the blocks after it. ``refines``
    has one module between each two stages.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int,
        options: DetectorOptions,
        backbone: FeatureBackbone,
        neck: FPN | None,
        rpn: RPNHead | GuidedRPNHead,
        proposals: ProposalLayer | GuidedProposalLayer,
        stages: Iterable[RoIStage],
        refines: Iterable[BoxRefine],
        postprocess: CascadePostprocess,
    ) -> None:
        super().__init__(architecture, num_classes, options, backbone, neck)
        self.rpn = rpn
        self.proposals = proposals
        self.roi_stages: list[RoIStage] = list(stages)
        for stage in self.roi_stages:
            self.add_module(f"roi_stage{stage.index + 1}", stage)
        self.refines = nn.ModuleList(refines)
        self.postprocess = postprocess
        steps, maps = self._feature_steps()
        predicted: tuple[str, ...] = ("rpn_logits", "rpn_deltas")
        if isinstance(rpn, GuidedRPNHead):
            predicted += ("rpn_locations", "rpn_shapes")
        steps += [Step("rpn.head", rpn, maps, predicted), Step("rpn.proposals", proposals, predicted, ("boxes1",))]
        for number, stage in enumerate(self.roi_stages, start=1):
            prefix = f"roi{number}"
            value = f"{prefix}_pooled"
            pooled = maps[: len(stage.pool.strides)]
            steps.append(Step(f"{prefix}.pool", stage.pool, (f"boxes{number}", *pooled), (value,)))
            for position, block in enumerate(stage.blocks, start=1):
                out = f"{prefix}_block{position}"
                steps.append(Step(f"{prefix}.block{position}", block, (value,), (out,)))
                value = out
            steps.append(Step(f"{prefix}.head", stage.head, (value,), (f"{prefix}_logits", f"{prefix}_deltas")))
            if number < len(self.roi_stages):
                reads, writes = (f"boxes{number}", f"{prefix}_deltas"), (f"boxes{number + 1}",)
                steps.append(Step(f"{prefix}.refine", self.refines[number - 1], reads, writes))
        last = len(self.roi_stages)
        logits = tuple(f"roi{number}_logits" for number in range(1, last + 1))
        inputs = (f"boxes{last}", f"roi{last}_deltas", *logits)
        self.steps = [*steps, Step("postprocess", postprocess, inputs, Detections._fields)]

    def _loss(self, features: tuple[Tensor, ...], targets: PaddedTargets, losses: LossOptions) -> dict[str, Tensor]:
        logits, deltas, *guides = (output.float() for output in self.rpn(*features))
        if isinstance(self.proposals, GuidedProposalLayer):
            locations, shapes = guides
            parts = guided_rpn_loss(self.proposals, logits, deltas, locations, shapes, targets, losses)
            boxes = self.proposals.propose(logits.detach(), deltas.detach(), shapes.detach())
        else:
            parts = rpn_loss(self.proposals, logits, deltas, targets, losses)
            boxes = self.proposals(logits.detach(), deltas.detach())
        for stage in self.roi_stages:
            pooled = features[: len(stage.pool.strides)]
            stage_parts, boxes = stage.loss(boxes, pooled, targets, self.options, losses)
            parts.update(stage_parts)
        return parts
