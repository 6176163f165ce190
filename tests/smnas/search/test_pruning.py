"""Partial order pruning on a ladder of architectures whose order is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smnas.search.pruning import broken_order, why_beaten
from smnas.search.study.candidate import Candidate
from smnas.space.architecture import Architecture
from smnas.space.partial_order import not_larger


def arch(base: int, code: str = "1-2-2", tail: str = "+fpn_2-4_32+rpn+rcnn_64+96x96") -> Architecture:
    return Architecture.parse(f"basicblock_{base}_{code}{tail}")


def trained(number: int, architecture: Architecture, ap: float, latency_ms: float) -> Candidate:
    return Candidate(
        number, architecture, "structural", "random", None, "complete", 0, 3, latency_ms=latency_ms, score=ap
    )


OTHER = arch(8, tail="+c4+rpn+rcnn_64+96x96")
KNOWN = [trained(0, arch(24), 0.30, 8.0), trained(1, OTHER, 0.32, 2.0)]


def test_a_candidate_below_a_beaten_bound_is_skipped_with_the_reason() -> None:
    reason = why_beaten(arch(16), 5.0, KNOWN, margin=0.01)
    assert reason is not None
    assert reason.startswith("partial order: its AP is at most the 0.300 of the larger basicblock_24_1-2-2")
    assert f"{OTHER} is faster (2.00 against 5.00 ms) with 0.320" in reason


@pytest.mark.parametrize(
    ("architecture", "latency_ms", "known", "margin"),
    [
        (arch(16), 1.5, KNOWN, 0.01),  # faster than what would beat it
        (arch(16), 2.0, KNOWN, 0.01),  # as fast
        (arch(16), 5.0, KNOWN, 0.05),  # not beaten by the margin
        (arch(32), 5.0, KNOWN, 0.01),  # nothing bounds it
        (arch(16, "1-21-2"), 5.0, KNOWN, 0.01),  # deeper than the trained one
        (arch(16), 5.0, [], 0.0),
        (arch(16), 5.0, KNOWN[:1], 0.01),  # the larger one is slower
    ],
)
def test_what_is_trained(architecture: Architecture, latency_ms: float, known: list[Candidate], margin: float) -> None:
    assert why_beaten(architecture, latency_ms, known, margin) is None


def test_the_lowest_bound_counts() -> None:
    known = [*KNOWN, trained(2, arch(20), 0.10, 6.0), trained(3, arch(8, tail="+c4+rpn+rcnn_64+128x128"), 0.15, 1.0)]
    reason = why_beaten(arch(16), 1.5, known, margin=0.01)
    assert reason is not None
    assert "at most the 0.100 of the larger basicblock_20" in reason


# Few values, so that ties of every kind are common.
RUNGS = [arch(base, code) for base in (8, 16, 24) for code in ("1-2", "1-2-2", "1-21-2")]
ladders = st.lists(
    st.tuples(st.sampled_from(RUNGS), st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.sampled_from([1.0, 2.0, 3.0])),
    max_size=8,
)


@given(ladders, st.sampled_from(RUNGS), st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([0.0, 0.1]))
def test_beaten_is_the_definition(
    rows: list[tuple[Architecture, float, float]], asked: Architecture, latency_ms: float, margin: float
) -> None:
    known = [trained(number, *row) for number, row in enumerate(rows)]
    larger = [c for c in known if not_larger(asked, c.architecture)]
    bound = min(larger, key=lambda c: (c.point[0], c.number), default=None)
    better = [c for c in known if bound and c.point[1] < latency_ms and c.point[0] >= bound.point[0] + margin]
    reason = why_beaten(asked, latency_ms, known, margin)
    assert (reason is not None) == bool(better)
    if reason is not None and bound is not None:
        winner = max(better, key=lambda c: (c.point[0], -c.number))
        assert (
            f"at most the {bound.point[0]:.3f} of the larger {bound.architecture}, and {winner.architecture}" in reason
        )


def test_broken_order_counts_ordered_pairs() -> None:
    ladder = [trained(0, arch(8), 0.1, 1.0), trained(1, arch(16), 0.3, 2.0), trained(2, arch(24), 0.2, 3.0)]
    assert broken_order(ladder) == (1, 3)
    assert broken_order([*ladder, trained(3, OTHER, 0.9, 1.0)]) == (1, 3)
    assert broken_order([]) == (0, 0)
