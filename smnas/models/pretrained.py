"""torchvision's ImageNet weights for a backbone of the same shape, by name."""

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from profiler.errors import UserError
from smnas.models.backbones.base import FeatureBackbone
from smnas.models.detector import Detector, TwoStageDetector
from smnas.space.families.base import Backbone

__all__ = ["load_pretrained", "load_torchvision_weights", "read_weights", "torchvision_names"]

# What a classifier has and a detector has no use for: the last layer, and MobileNetV2's widening in front of it
_CLASSIFIER = ("fc.", "classifier.", "features.18.")
# How many images a BatchNorm has seen; absent from files older than PyTorch 0.4.1, and without effect on a forward
_COUNTER = "num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file that ``torch.save(model.state_dict(), path)`` wrote, as torchvision's downloads are, onto the CPU.

    Read with ``weights_only=True``: tensors and plain values, never code.

    Raises:
        UserError: no such file, or it holds something else.
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
    """Our names to torchvision's.

    ``stage1.0.conv1.weight`` to ``layer1.0.conv1.weight`` and the stem to ``conv1`` and ``bn1``; of a MobileNetV2
    ``stage1.0.conv.0.0.weight`` to ``features.2.conv.0.0.weight`` and the stem to ``features.0``.

    Raises:
        UserError: no published network has such a backbone.
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
            names[name] = name  # the deep stem's second convolution, which no published network has
        else:
            position, _, leaf = rest.partition(".")
            names[name] = f"{backbone.torchvision_block(int(first.removeprefix('stage')), int(position))}.{leaf}"
    return names


def load_torchvision_weights(backbone: FeatureBackbone, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of a torchvision ResNet, ResNeXt or MobileNetV2 into ``backbone``, in place.

    Args:
        backbone: With BatchNorm and the ImageNet stem; the code and base of the published network.
        state: ``state_dict`` of the torchvision model; its classifier is not used.

    Raises:
        UserError: a weight is missing or has another shape; the message names the first.
    """
    _load(backbone, torchvision_names(backbone), state, backbone.spec)


def load_pretrained(detector: Detector, state: Mapping[str, Tensor]) -> None:
    """Copy a torchvision classifier's weights into a detector's backbone, and into the blocks behind C4 if it has any.

    Args:
        detector: With BatchNorm and the ImageNet stem.
        state: ``state_dict`` of the published network that the backbone is.

    Raises:
        UserError: a weight is missing, has another shape or has no place in the backbone; the message names the first.
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
    if extra := _first(name for name in state if name not in used and not name.startswith(_CLASSIFIER)):
        raise UserError(
            f"ImageNet weights must be those of the backbone's own network, but {extra} has no place in {backbone.spec}"
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


def _first(names: Iterable[str]) -> str | None:
    return next(iter(names), None)
