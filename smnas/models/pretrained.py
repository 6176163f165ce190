"""torchvision's ImageNet weights for a backbone of the same shape, by name."""

from collections.abc import Mapping

from torch import Tensor

from profiler.errors import UserError
from smnas.models.backbone import ResNetBackbone

__all__ = ["load_torchvision_weights", "torchvision_names"]


def torchvision_names(backbone: ResNetBackbone) -> dict[str, str]:
    """Our names to torchvision's: ``stage1.0.conv1.weight`` to ``layer1.0.conv1.weight``, the stem to ``conv1``."""
    names = {}
    for name in backbone.state_dict():
        first, _, rest = name.partition(".")
        if first == "stem":
            part, _, leaf = rest.partition(".")
            names[name] = f"{'conv1' if part == 'conv' else 'bn1'}.{leaf}"
        else:
            names[name] = f"{first.replace('stage', 'layer')}.{rest}"
    return names


def load_torchvision_weights(backbone: ResNetBackbone, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of a torchvision ResNet or ResNeXt into ``backbone``, in place.

    Args:
        backbone: With BatchNorm and the ImageNet stem; the code and base of the published network.
        state: ``state_dict`` of the torchvision model; its classifier is not used.

    Raises:
        UserError: a weight is missing or has another shape; the message names the first.
    """
    names = torchvision_names(backbone)
    own = backbone.state_dict()
    for name, source in names.items():
        if source not in state:
            raise UserError(
                f"ImageNet weights must hold every weight of the backbone (BatchNorm, imagenet stem), but {source} is "
                f"missing for {backbone.spec}"
            )
        if state[source].shape != own[name].shape:
            got, wanted = tuple(state[source].shape), tuple(own[name].shape)
            raise UserError(f"{source} must have shape {wanted} for {backbone.spec}, but got {got}")
    backbone.load_state_dict({name: state[source] for name, source in names.items()})
