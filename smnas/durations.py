"""Durations as people write them: ``48s``, ``3m05s``, ``2h10m``."""

import math
import re

from profiler.errors import UserError

__all__ = ["duration", "seconds_of"]

_UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def duration(seconds: float) -> str:
    """``seconds`` for people: ``48s``, ``3m05s``, ``2h10m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def seconds_of(text: str | float) -> float:
    """The inverse of :func:`duration`, and days: ``90s``, ``10m``, ``1h30m``, ``1.5h``, ``2d``; a number is seconds.

    Raises:
        UserError: it is no duration, a text of no length, or a negative number.
    """
    if not isinstance(text, str):
        if not 0 <= text < math.inf:
            raise UserError(f"a time must be a number of seconds, 0 or above, but got {text:g}")
        return float(text)
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch("".join(f"(?:{number}{unit})?" for unit in _UNITS_S), text)
    seconds = (
        sum(float(part or 0) * unit_s for part, unit_s in zip(found.groups(), _UNITS_S.values(), strict=True))
        if found
        else 0.0
    )
    if not seconds:
        raise UserError(f"a time is written as in 90s, 10m, 1h30m or 2d, but got {text!r}")
    return seconds
