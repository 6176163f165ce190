"""Partial Order Pruning (Li et al., 2019): skip candidates that are beaten before they are trained."""

from collections import defaultdict
from collections.abc import Sequence

from smnas.search.study.candidate import Candidate
from smnas.space.architecture import Architecture
from smnas.space.partial_order import not_larger

__all__ = ["broken_order", "why_beaten"]


def why_beaten(
    architecture: Architecture, latency_ms: float, trained: Sequence[Candidate], margin: float
) -> str | None:
    """Why ``architecture`` need not be trained, or None.

    Its AP is bounded from above by that of every trained architecture that is not smaller. It is beaten if a faster
    trained one exceeds the lowest bound by at least ``margin`` (AP), a guard against the noise of short training runs.
    All of ``trained`` are complete and of one training budget.
    """
    faster = [c for c in trained if c.point[1] < latency_ms]
    if not faster:
        return None
    winner = max(faster, key=lambda c: (c.point[0], -c.number))
    # Comparing architectures dominates the cost, so only bounds that the winner beats are compared.
    beaten = [c for c in trained if winner.point[0] >= c.point[0] + margin and not_larger(architecture, c.architecture)]
    if not beaten:
        return None
    bound = min(beaten, key=lambda c: (c.point[0], c.number))
    return (
        f"partial order: its AP is at most the {bound.point[0]:.3f} of the larger {bound.architecture}, "
        f"and {winner.architecture} is faster ({winner.point[1]:.2f} against {latency_ms:.2f} ms) "
        f"with {winner.point[0]:.3f}"
    )


def broken_order(trained: Sequence[Candidate]) -> tuple[int, int]:
    """Number of pairs that break the pruning's assumption (the smaller has the higher AP), and of comparable pairs."""
    groups: dict[tuple[object, ...], list[Candidate]] = defaultdict(list)
    for candidate in trained:
        a = candidate.architecture
        # Members of different groups are never comparable; grouping only saves time.
        groups[(a.rpn, a.input_width, a.input_height, type(a.head), type(a.neck), type(a.backbone))].append(candidate)
    broken = pairs = 0
    for group in groups.values():
        for small in group:
            for large in group:
                if small is not large and not_larger(small.architecture, large.architecture):
                    pairs += 1
                    broken += small.point[0] > large.point[0]
    return broken, pairs
