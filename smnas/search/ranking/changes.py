"""What the rows that a device elsewhere has measured since change in a ranking."""

from collections.abc import Sequence
from dataclasses import dataclass

from smnas.search.ranking.comparison import latency
from smnas.search.ranking.recommendation import Recommendation
from smnas.search.ranking.row import RankingRow

__all__ = ["CHANGED", "LatencyChange", "change_note", "latency_changes"]

CHANGED = "The latency table holds more than before: "
"""Start of the note on what that changed."""


@dataclass(frozen=True)
class LatencyChange:
    """A detector whose latency or rank is another one than before; a latency is ``predicted`` or ``measured``."""

    architecture: str
    rank_before: int
    rank: int
    before_ms: float
    kind_before: str
    ms: float
    kind: str


def latency_changes(before: Sequence[RankingRow], after: Sequence[RankingRow]) -> tuple[LatencyChange, ...]:
    """Detectors of both rankings with another latency or rank, in the order of the later one."""
    old = {row.architecture: row for row in before}
    pairs = [(old[row.architecture], row) for row in after if row.architecture in old]
    return tuple(
        LatencyChange(row.architecture, was.rank, row.rank, then.ms, then.kind, now.ms, now.kind)
        for was, row, then, now in ((was, row, latency(was), latency(row)) for was, row in pairs)
        if (was.rank, then) != (row.rank, now)
    )


def change_note(changes: Sequence[LatencyChange], before: Recommendation | None, after: Recommendation | None) -> str:
    """The changes in one sentence, and whether the recommendation is another one."""
    was, now = ("nothing" if one is None else one.architecture for one in (before, after))
    recommended = f"{now} is still recommended" if was == now else f"{now} is recommended instead of {was}"
    return f"{CHANGED}latency or rank of {len(changes)} detectors changed, and {recommended}."
