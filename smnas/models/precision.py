"""Modules of a detector that stay in float32 in every precision."""

from smnas.models.detector import Detector
from smnas.models.heads.dense import DensePostprocess
from smnas.models.heads.guided import GuidedProposalLayer
from smnas.models.heads.roi_heads import BoxRefine, CascadePostprocess, RoIPool
from smnas.models.heads.rpn import ProposalLayer

__all__ = ["FRAGILE", "fragile_modules"]

FRAGILE = (ProposalLayer, GuidedProposalLayer, RoIPool, BoxRefine, CascadePostprocess, DensePostprocess)
"""Modules that compute with coordinates: above 1024, float16 resolves whole pixels only."""


def fragile_modules(detector: Detector) -> tuple[str, ...]:
    """Names of the modules that stay in float32 in every precision."""
    return tuple(name for name, module in detector.named_modules() if isinstance(module, FRAGILE))
