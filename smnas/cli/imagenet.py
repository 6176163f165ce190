"""Training that starts from a published classifier's weights instead of from scratch."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from smnas.data.coco import CocoFolder
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.models.pretrained import load_pretrained
from smnas.scoring.trained_ap import TrainedAP
from smnas.space.architecture import Architecture
from smnas.training.curve import EpochLog
from smnas.training.recipe import Recipe
from smnas.training.replicas import ALONE, Replicas

__all__ = ["ImageNetAP"]


class ImageNetAP(TrainedAP):
    """:class:`TrainedAP` whose backbone starts from ImageNet weights, with the BatchNorm and the stem that they need.

    Args:
        weights: ``state_dict`` of torchvision's network of the backbone's shape.
        data: As :class:`TrainedAP`, like everything that follows.
        recipe: How to train.
        device: Where.
        replicas: The processes that train together.
        on_epoch: Called after every epoch.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        data: CocoFolder,
        recipe: Recipe,
        device: torch.device | str = "cpu",
        *,
        replicas: Replicas = ALONE,
        on_epoch: Callable[[EpochLog], None] | None = None,
    ) -> None:
        super().__init__(data, recipe, device, replicas=replicas, on_epoch=on_epoch)
        self.weights = weights

    def _build(self, architecture: Architecture, seed: int) -> Detector:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            detector = build_detector(architecture, len(self._train.classes), norm="bn", stem="imagenet")
        load_pretrained(detector, self.weights)
        return detector
