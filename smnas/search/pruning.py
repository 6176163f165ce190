"""Partial Order Pruning (Li et al., 2019): candidates that need not be trained because they are beaten already."""

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

    The AP of every trained architecture that is not smaller bounds its AP from above. It is beaten where a trained one
    is faster and better than the lowest bound by ``margin`` at least.

    Args:
        architecture: The candidate.
        latency_ms: Its predicted latency.
        trained: Complete candidates of one budget.
        margin: AP; a guard against the noise of short training runs.
    """
    faster = [c for c in trained if c.point[1] < latency_ms]
    if not faster:
        return None
    winner = max(faster, key=lambda c: (c.point[0], -c.number))
    # Comparing architectures is what takes time here, so only bounds that the winner beats are looked at.
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
    """How often the assumption behind the pruning failed.

    Returns:
        Pairs in which the smaller architecture had the higher AP, and all pairs that the order compares.
    """
    groups: dict[tuple[object, ...], list[Candidate]] = defaultdict(list)
    for candidate in trained:
        a = candidate.architecture
        # Members of different groups are never comparable; this only saves comparing them.
        groups[(a.rpn, a.input_width, a.input_height, type(a.head), type(a.neck), type(a.backbone))].append(candidate)
    broken = pairs = 0
    for group in groups.values():
        for small in group:
            for large in group:
                if small is not large and not_larger(small.architecture, large.architecture):
                    pairs += 1
                    broken += small.point[0] > large.point[0]
    return broken, pairs
