"""An architecture as optuna parameters, so that optuna-dashboard's plots and importances mean something."""

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from smnas.space.architecture import Architecture, CascadeSpec, DenseSpec, FPNSpec, RPNKind
from smnas.space.families.by_name import FAMILIES

__all__ = ["DISTRIBUTIONS", "parameters_of"]

# The ranges are the grammar's, not a preset's, so that studies of different presets compare.
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    # a study's categories cannot grow: other families have numbers of their own instead
    "block": CategoricalDistribution(("basicblock", "bottleneck", "resnext", "inverted", "mobilenetv2")),
    **{name: IntDistribution(*ends) for family in FAMILIES for name, ends in family.PARAMETERS.items()},
    "neck": CategoricalDistribution(("c4", "fpn")),
    "fpn_low": IntDistribution(1, 7),
    "fpn_high": IntDistribution(1, 7),
    "fpn_width": IntDistribution(8, 1024),
    "fpn_extra": CategoricalDistribution(("pool", "conv")),
    "proposals": CategoricalDistribution(tuple(kind.value for kind in RPNKind)),
    "head": CategoricalDistribution(("rcnn", "cascade", "retina", "fcos")),
    "head_width": IntDistribution(8, 4096),
    "cascade_stages": IntDistribution(2, 4),
    "retina_depth": IntDistribution(1, 8),
    "fcos_depth": IntDistribution(1, 8),
    "input_width": IntDistribution(32, 4096),
    "input_height": IntDistribution(32, 4096),
}


def parameters_of(architecture: Architecture) -> dict[str, str | int]:
    """Values of those :data:`DISTRIBUTIONS` that apply to ``architecture``."""
    parameters = architecture.backbone.parameters()
    neck = architecture.neck
    if isinstance(neck, FPNSpec):
        parameters |= {"neck": "fpn", "fpn_low": neck.low, "fpn_high": neck.high, "fpn_width": neck.width}
        if neck.extra != "head":
            parameters["fpn_extra"] = neck.extra
    else:
        parameters["neck"] = "c4"
    head = architecture.head
    parameters |= {"proposals": architecture.rpn.value, "head": head.KIND, "head_width": head.width}
    if isinstance(head, DenseSpec):
        parameters[f"{head.KIND}_depth"] = head.depth
    elif isinstance(head, CascadeSpec):
        parameters["cascade_stages"] = head.stages
    return parameters | {"input_width": architecture.input_width, "input_height": architecture.input_height}
