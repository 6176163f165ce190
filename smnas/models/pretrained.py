"""Loads torchvision's ImageNet weights into a backbone of the same shape, by name."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from profiler.errors import UserError
from smnas.models.backbones.base import FeatureBackbone
from smnas.models.detector import Detector, TwoStageDetector
from smnas.space.families.base import Backbone

__all__ = ["load_pretrained", "load_torchvision_weights", "read_weights", "torchvision_names"]

# parts of the classifier: the last layer, and MobileNetV2's 1x1 convolution before it
_CLASSIFIER = ("fc.", "classifier.", "features.18.")
# BatchNorm's batch counter, absent from files older than PyTorch 0.4.1, has no effect on a forward pass
_COUNTER = "num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a ``state_dict`` file, such as torchvision's downloads, onto the CPU with ``weights_only=True``.

    Raises:
        UserError: no such file, or no ``state_dict`` in it.
    """
    rule = "ImageNet weights are a file with the state_dict of a torchvision network"
    if not path.is_file():
        raise UserError(f"{rule}, but there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, LookupError, OSError):
        raise UserError(f"{rule}, but {path} is damaged or something else") from None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{rule}, but {path} holds something else")
    return dict(state)


def torchvision_names(backbone: FeatureBackbone) -> dict[str, str]:
    """Map our parameter names to torchvision's.

    ``stage1.0.conv1.weight`` to ``layer1.0.conv1.weight``, and the stem to ``conv1`` and ``bn1``; in MobileNetV2,
    ``stage1.0.conv.0.0.weight`` to ``features.2.conv.0.0.weight``, and the stem to ``features.0``.

    Raises:
        UserError: no published network has this backbone.
    """
    stem = backbone.TORCHVISION_STEM
    if stem is None:
        raise UserError(f"ImageNet weights are those of a torchvision network, which none is of {backbone.spec}")
    names = {}
    for name in backbone.state_dict():
        first, _, rest = name.partition(".")
        if first == "stem":
            part, _, leaf = rest.partition(".")
            names[name] = f"{stem[part]}.{leaf}"
        elif first == "reduce":
            names[name] = name  # the deep stem's second convolution, absent from published networks
        else:
            position, _, leaf = rest.partition(".")
            names[name] = f"{backbone.torchvision_block(int(first.removeprefix('stage')), int(position))}.{leaf}"
    return names


def load_torchvision_weights(backbone: FeatureBackbone, state: Mapping[str, Tensor]) -> None:
    """Load a torchvision ResNet, ResNeXt or MobileNetV2 into ``backbone``; the classifier is ignored.

    The backbone needs BatchNorm, the ImageNet stem, and the published network's code and base.

    Raises:
        UserError: a weight is missing or has another shape; the message names the first.
    """
    _load(backbone, torchvision_names(backbone), state, backbone.spec)


def load_pretrained(detector: Detector, state: Mapping[str, Tensor]) -> None:
    """Load a torchvision classifier into a detector's backbone, and into its blocks after C4 if any.

    The detector needs BatchNorm and the ImageNet stem.

    Raises:
        UserError: a weight is missing, has another shape or does not exist in the backbone; the message names the
            first.
    """
    backbone = detector.backbone
    names = torchvision_names(backbone)
    used = set(names.values())
    load_torchvision_weights(backbone, state)
    if isinstance(detector, TwoStageDetector):
        stage = len(backbone.stages) + 1
        for roi_stage in detector.roi_stages:
            behind = {}
            for name in roi_stage.blocks.state_dict():
                position, _, leaf = name.partition(".")
                behind[name] = f"{backbone.torchvision_block(stage, int(position))}.{leaf}"
            _load(roi_stage.blocks, behind, state, backbone.spec)
            used |= set(behind.values())
    if extra := [name for name in state if name not in used and not name.startswith(_CLASSIFIER)]:
        raise UserError(
            f"ImageNet weights must be those of the backbone's own network, but {extra[0]} has no place in "
            f"{backbone.spec}"
        )


def _load(module: nn.Module, names: Mapping[str, str], state: Mapping[str, Tensor], spec: Backbone) -> None:
    own = module.state_dict()
    for name, source in names.items():
        if source not in state:
            if source.endswith(_COUNTER):
                continue
            raise UserError(
                f"ImageNet weights must hold every weight of the backbone (BatchNorm, imagenet stem), but {source} is "
                f"missing for {spec}"
            )
        if state[source].shape != own[name].shape:
            got, wanted = tuple(state[source].shape), tuple(own[name].shape)
            raise UserError(f"{source} must have shape {wanted} for {spec}, but got {got}")
    module.load_state_dict({name: state.get(source, own[name]) for name, source in names.items()})
