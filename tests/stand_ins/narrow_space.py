"""A space with fewer structural choices."""

from collections.abc import Sequence
from typing import Any

from smnas.space.preset import Space

__all__ = ["narrowed"]


def narrowed(space: Space, baseline: str, modular: dict[str, Any] | None = None, **choices: Sequence[str]) -> Space:
    """The space with these structural choices and this baseline; ``modular`` are other bounds of stage 2."""
    document = space.model_dump()
    document["structural"] |= {name: tuple(values) for name, values in choices.items()}
    return Space.model_validate(document | {"baseline": baseline, "modular": modular or document["modular"]})
