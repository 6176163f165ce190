"""An architecture as optuna parameters, so that optuna-dashboard's plots and importances mean something."""

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from smnas.space.architecture import (
    Architecture,
    CascadeSpec,
    FCOSSpec,
    FPNSpec,
    MobileNetV2Spec,
    RCNNSpec,
    ResNetSpec,
    RetinaSpec,
    RPNKind,
    SuperBlockSpec,
)

__all__ = ["DISTRIBUTIONS", "parameters_of"]

# The ranges are the language's and not a preset's, so that studies of different presets can be compared.
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "block": CategoricalDistribution(("basicblock", "bottleneck", "resnext", "inverted", "mobilenetv2")),
    "base": IntDistribution(8, 512),
    "width_percent": IntDistribution(10, 400),
    "cardinality": IntDistribution(2, 256),
    "path_width": IntDistribution(1, 256),
    # a backbone of super-blocks has these in place of `block` and `base`
    "super_blocks": IntDistribution(1, 8),
    "stem": IntDistribution(8, 512),
    "stages": IntDistribution(1, 4),
    "blocks": IntDistribution(1, 1000),
    "doublings": IntDistribution(0, 1000),
    "stage1_blocks": IntDistribution(1, 1000),
    "stage2_blocks": IntDistribution(1, 1000),
    "stage3_blocks": IntDistribution(1, 1000),
    "stage4_blocks": IntDistribution(1, 1000),
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
    """The values of :data:`DISTRIBUTIONS` that apply to ``architecture``; the others are left out."""
    parameters: dict[str, str | int] = {}
    match architecture.backbone:
        case ResNetSpec() as backbone:
            parameters |= {
                "block": backbone.block,
                "base": backbone.base,
                "stages": len(backbone.stages),
                "blocks": backbone.depth,
                "doublings": backbone.doublings,
            }
            if backbone.block == "resnext":
                parameters |= {"cardinality": backbone.paths[0], "path_width": backbone.paths[1]}
            parameters |= {f"stage{i}_blocks": len(stage) for i, stage in enumerate(backbone.stages, start=1)}
        case MobileNetV2Spec() as backbone:
            parameters |= {"block": "mobilenetv2", "width_percent": backbone.width_percent}
        case SuperBlockSpec() as backbone:
            parameters |= {
                "super_blocks": len(backbone.super_blocks),
                "stem": backbone.stem,
                "stages": len(backbone.stages),
                "blocks": backbone.depth,
            }
            parameters |= {
                f"stage{i}_blocks": sum(block.repeats for block in stage)
                for i, stage in enumerate(backbone.stages, start=1)
            }
    match architecture.neck:
        case FPNSpec(low, high, width, extra):
            parameters |= {"neck": "fpn", "fpn_low": low, "fpn_high": high, "fpn_width": width}
            if extra != "head":
                parameters["fpn_extra"] = extra
        case _:
            parameters["neck"] = "c4"
    parameters["proposals"] = architecture.rpn.value
    match architecture.head:
        case RCNNSpec(width):
            parameters |= {"head": "rcnn", "head_width": width}
        case CascadeSpec(stages, width):
            parameters |= {"head": "cascade", "head_width": width, "cascade_stages": stages}
        case RetinaSpec(width, depth):
            parameters |= {"head": "retina", "head_width": width, "retina_depth": depth}
        case FCOSSpec(width, depth):
            parameters |= {"head": "fcos", "head_width": width, "fcos_depth": depth}
    return parameters | {"input_width": architecture.input_width, "input_height": architecture.input_height}
