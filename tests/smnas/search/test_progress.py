"""What a search tells on the way, against the same numbers counted from all of its trials."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from smnas.search.progress import SearchProgress
from smnas.search.study.candidate import Candidate, StageName, State
from smnas.search.study.settings import DataFacts, SearchSettings, StageTrials
from smnas.space.preset import load_space

NANO = load_space("nano")
EPOCHS = 9
LIMIT_MS = 4.0
SETTINGS = SearchSettings(
    smnas="0",
    preset="nano",
    data=DataFacts(root="none", classes=("one",), train_images=1, val_images=1),
    device="none",
    backend="none",
    precision="fp32",
    recipe={},
    epochs=EPOCHS,
    scorer="ap",
    trials=StageTrials(structural=4, modular=4),
    generation=2,
    latency_ms=LIMIT_MS,
    final_epochs=18,
    final_seeds=2,
    top=1,
)

stages: st.SearchStrategy[StageName] = st.sampled_from(["baseline", "joint", "final"])
states: st.SearchStrategy[State] = st.sampled_from(["complete", "complete", "failed", "pruned"])
aps = st.sampled_from([0.1, 0.2, 0.3, 0.4])
latencies = st.sampled_from([1.0, 2.0, 4.0, 5.0])
rows = st.lists(st.tuples(stages, states, aps, latencies, st.sampled_from([None, 3])), min_size=1, max_size=12)


def candidate(number: int, stage: StageName, state: State, ap: float, latency_ms: float, stop: int | None) -> Candidate:
    final = stage == "final"
    return Candidate(
        number,
        NANO.structures[number],
        stage,
        "random",
        None,
        state,
        0,
        18 if final else EPOCHS,
        stop_epoch=None if final else stop,
        latency_ms=latency_ms,
        score=ap if state == "complete" else None,
        seconds=2.0 * (18 if final else stop or EPOCHS) if state == "complete" else None,
    )


@given(rows, st.integers(0, 12))
def test_events_are_counted_over_all_trials(
    found: list[tuple[StageName, State, float, float, int | None]], before: int
) -> None:
    trials = [candidate(number, *row) for number, row in enumerate(found)]
    # Some of the trials are those of an earlier run, the others are told one by one.
    progress = SearchProgress(SETTINGS, 2, trials[: min(before, len(trials) - 1)])
    event = [progress.event(one) for one in trials[min(before, len(trials) - 1) :]][-1]
    complete = [c for c in trials if c.state == "complete"]
    whole = [c for c in complete if c.stage != "final" and c.stop_epoch is None]
    finals = [c for c in complete if c.stage == "final"]
    spent = sum(c.stop_epoch or EPOCHS for c in complete if c.stage != "final")
    assert event.trained == math.floor(spent / EPOCHS) + len(finals)
    assert event.total == 1 + 8 + 4
    within = [c for c in (finals if trials[-1].stage == "final" else whole) if (c.latency_ms or 0) <= LIMIT_MS]
    best = max((c.score for c in within if c.score is not None), default=None)
    assert event.best_score == best
    if best is not None:
        assert event.best_architecture == str(next(c.architecture for c in within if c.score == best))
    dominated = [
        any(b.point[0] >= a.point[0] and b.point[1] <= a.point[1] and b.point != a.point for b in whole) for a in whole
    ]
    front = [c.point for c, beaten in zip(whole, dominated, strict=True) if not beaten]
    assert sorted(event.front) == sorted(front)
    assert [latency for _, latency in event.front] == sorted(latency for _, latency in front)
    # Two seconds an epoch, two training runs at once.
    left = 0.0 if finals else max(9 - spent / EPOCHS, 0) * EPOCHS / 2
    left += max(4 - len(finals), 0) * 18 / 2
    assert (event.seconds_left is None) == (not complete)
    if complete:
        assert event.seconds_left is not None
        assert math.isclose(event.seconds_left, 2.0 * left, abs_tol=1e-9)


def test_only_what_this_search_trained_tells_how_long_an_epoch_takes() -> None:
    scored = [replace(candidate(n, "joint", "complete", 0.1 * n, 2.0, None), seconds=0.0) for n in range(1, 5)]
    warm = replace(candidate(5, "joint", "complete", 0.3, 2.0, None), stage="warm", start_epoch=EPOCHS, seconds=900.0)
    progress = SearchProgress(SETTINGS, 2, [*scored, warm])
    assert progress.event(replace(candidate(6, "joint", "running", 0.0, 2.0, None), score=None)).seconds_left is None
    event = progress.event(candidate(7, "final", "complete", 0.2, 2.0, None))
    assert event.seconds_left == 2.0 * 18 * 3 / 2, "two seconds an epoch, three more training runs of the final phase"
