"""Which candidates the final phase trains again: properties of any history, and the cases that were decided."""

import itertools
from dataclasses import replace

import search_stub as stub
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas.search.ranking.finalists import final_drafts, finalists
from smnas.search.study.candidate import Candidate
from smnas.space.preset import load_space

STRUCTURES = load_space("nano").structures


def trial(number: int, ap: float, latency_ms: float, stage: str = "structural", index: int | None = None) -> Candidate:
    return Candidate(
        number=number,
        architecture=STRUCTURES[number if index is None else index],
        stage=stage,  # type: ignore[arg-type]
        origin="random",
        parent=None,
        state="complete",
        seed=0,
        epochs=3,
        latency_ms=latency_ms,
        score=ap,
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    """A baseline and up to a dozen candidates on a coarse grid, so that there are ties and equal points.

    Of a device elsewhere each has an interval, whose width is its own.
    """
    places = draw(
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(0, 4)), min_size=1, max_size=13)
    )
    part = draw(st.none() | st.just(0.5))
    return [
        replace(
            trial(n, ap / 400, float(ms), "structural" if n else "baseline"),
            latency_measured=part,
            latency_high_ms=float(ms + wide),
        )
        for n, (ap, ms, wide) in enumerate(places)
    ]


def dominates(a: Candidate, b: Candidate) -> bool:
    (ap, ms), (other_ap, other_ms) = a.point, b.point
    return ap >= other_ap and ms <= other_ms and (ap, ms) != (other_ap, other_ms)


@settings(max_examples=200, deadline=None)
@given(histories(), st.integers(1, 5), st.none() | st.integers(1, 12))
def test_the_choice_of_any_history(history: list[Candidate], top: int, limit: int | None) -> None:
    baseline, *others = history
    limit_ms = None if limit is None else float(limit)
    chosen = finalists(history, top, limit_ms)
    assert chosen == finalists(history, top, limit_ms)
    assert chosen[0] is baseline
    assert len(chosen) == 1 + min(top, len(others))
    numbers = {c.number for c in chosen}
    assert len(numbers) == len(chosen)

    def fits(c: Candidate) -> bool:
        bounded = c.latency_ms if c.latency_measured is None else c.latency_high_ms
        return limit_ms is None or (bounded is not None and bounded <= limit_ms)

    kept = [fits(c) for c in chosen[1:]]
    assert kept == sorted(kept, reverse=True), "what is within the limit first"
    assert sum(kept) == min(top, sum(map(fits, others))), "nothing over the limit instead of what is within"
    within = [c for c in history if fits(c)]
    front = [c for c in others if fits(c) and not any(dominates(other, c) for other in within)]
    left_out = [c for c in front if c.number not in numbers]
    assert not left_out or all(c in front for c in chosen[1:]), "nothing dominated instead of the front"
    # The rule of the fastest, as a user would state it.
    good = [
        c
        for c in others
        if round(400 * (c.point[0] - baseline.point[0])) >= -2 and c.point[1] < baseline.point[1] and fits(c)
    ]
    if good:
        fastest = min(c.point[1] for c in good)
        best = max(c.point[0] for c in good if c.point[1] == fastest)
        assert (best, fastest) in {c.point for c in chosen}
    # More places only add to the choice.
    assert [c.number for c in finalists(history, top + 1, limit_ms)][: len(chosen)] == [c.number for c in chosen]


def test_the_fastest_as_good_comes_first_then_the_best_then_what_spreads() -> None:
    history = [
        trial(0, 0.300, 10.0, "baseline"),
        trial(1, 0.296, 3.2),  # within half a point, at a third of the latency
        trial(2, 0.298, 5.8),
        trial(3, 0.310, 9.5),
        trial(4, 0.308, 9.4),
        trial(5, 0.306, 9.3),  # 3 to 5: what the highest AP would have chosen
        trial(6, 0.330, 20.0),
        trial(7, 0.200, 1.0),
        trial(8, 0.290, 4.0),  # behind the front
    ]
    assert [c.number for c in finalists(history, 9, None)] == [0, 1, 3, 6, 7, 2, 5, 4, 8]
    assert [c.number for c in finalists(history, 1, None)] == [0, 1]
    assert [c.number for c in finalists(history, 2, 25.0)] == [0, 1, 6], "the limit counts, not the baseline's latency"
    assert [c.number for c in finalists(history, 2, 2.0)] == [0, 7, 1], "what is over the limit comes last"
    assert [c.number for c in finalists(history[1:], 1, None)] == [6], "no baseline: the best of all"
    worse = [history[0], trial(1, 0.2949, 3.2), trial(2, 0.31, 9.0)]
    assert [c.number for c in finalists(worse, 1, None)] == [0, 2], "more than half a point lower is not as good"
    assert finalists([], 3, None) == ()


def test_what_is_within_the_limit_comes_before_any_layer_of_what_is_over_it() -> None:
    def elsewhere(number: int, ap: float, ms: float, high_ms: float, stage: str = "structural") -> Candidate:
        return replace(trial(number, ap, ms, stage), latency_high_ms=high_ms, latency_measured=0.5)

    history = [
        elsewhere(0, 0.30, 10.0, 10.5, "baseline"),
        elsewhere(1, 0.31, 5.0, 9.0),  # faster and better than 2, but the end of its interval is over the limit
        elsewhere(2, 0.30, 5.2, 5.5),
        elsewhere(3, 0.40, 12.0, 13.0),
        elsewhere(4, 0.20, 5.3, 5.9),  # behind 2
    ]
    assert [[c.number for c in finalists(history, top, 6.0)] for top in (1, 2, 4)] == [
        [0, 2],
        [0, 2, 4],
        [0, 2, 4, 1, 3],
    ]
    here = [trial(0, 0.3, 10.0, "baseline"), trial(1, 0.4, 12.0), trial(2, 0.31, 5.0), trial(3, 0.2, 5.5)]
    assert [c.number for c in finalists(here, 3, 6.0)] == [0, 2, 3, 1]
    assert [c.number for c in finalists(here, 3, None)] == [0, 2, 1, 3], "without a limit a front is not divided"


def test_what_is_larger_than_the_limit_is_no_finalist() -> None:
    history = [trial(0, 0.3, 10.0, "baseline"), trial(1, 0.4, 5.0), trial(2, 0.3, 6.0)]
    sized = [replace(c, parameters=size) for c, size in zip(history, (900, 900, 100), strict=True)]
    assert [c.number for c in finalists(sized, 2, None, 500)] == [0, 2]


def test_finals_of_another_rule_keep_their_places_until_the_search_goes_on() -> None:
    search = [trial(0, 0.3, 10.0, "baseline"), *(trial(n, 0.25 + 0.02 * n, 2.0 * n) for n in range(1, 6))]
    options = stub.settings(top=2, final_epochs=6, final_seeds=2)
    fresh = final_drafts(search, options)
    assert [(c.number, c.seed) for c in fresh] == [(6, 0), (7, 0), (8, 0), (9, 1), (10, 1), (11, 1)]
    usual = {c.architecture for c in fresh}
    old = [STRUCTURES[n] for n in (0, 1, 2)]
    assert set(old) != usual
    finals = [
        trial(6 + place, 0.4, 1.0, "final", index)
        for place, (_, index) in enumerate(itertools.product((0, 1), (0, 1, 2)))
    ]
    finals = [replace(c, seed=place // 3) for place, c in enumerate(finals)]
    assert final_drafts([*search, *finals], options) == (), "an old run that has ended trains nothing more"
    rest = final_drafts([*search, *finals[:4]], options)
    assert [(c.architecture, c.seed) for c in rest] == [(old[1], 1), (old[2], 1)], "one that was killed goes on"
    # A search that a time limit had ended finds something better when it is resumed: that is trained, too.
    found = [*search, *finals, trial(12, 0.5, 1.0, index=20)]
    assert STRUCTURES[20] in {c.architecture for c in final_drafts(found, options)}


def test_a_choice_that_was_half_written_is_completed_in_its_order() -> None:
    search = [trial(0, 0.3, 10.0, "baseline"), *(trial(n, 0.25 + 0.02 * n, 2.0 * n) for n in range(1, 6))]
    options = stub.settings(top=3, final_epochs=6, final_seeds=2)
    whole = final_drafts(search, options)
    for written in range(len(whole)):
        assert whole[:written] + final_drafts([*search, *whole[:written]], options) == whole
