"""The sentence that says whether the winner is worth deploying."""

from typing import Any

import pytest

from smnas.report.verdict import Verdict, verdict
from smnas.search.ranking.ranking import RankingRow


def row(architecture: str, ap: float, latency: float, **values: Any) -> RankingRow:
    known: dict[str, Any] = {
        "rank": 1,
        "id": "0",
        "role": "baseline" if architecture == "base" else "candidate",
        "stage": "final",
        "on_front": True,
        "ap_std": None,
        "ap_per_seed": (ap,),
        "ap50": None,
        "seeds": (0,),
        "epochs": 10,
        "predicted_latency_low_ms": latency - 0.1,
        "predicted_latency_high_ms": latency + 0.1,
    }
    return RankingRow(architecture=architecture, ap=ap, predicted_latency_ms=latency, **{**known, **values})


def measured(ms: float) -> dict[str, float]:
    return {"measured_latency_ms": ms, "measured_latency_low_ms": ms - 0.2, "measured_latency_high_ms": ms + 0.2}


def compare(winner: RankingRow, baseline: RankingRow) -> Verdict:
    result = verdict(winner, baseline)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("ap", "latency", "speed", "accuracy", "keeps", "says"),
    [
        (0.35, 5.0, "faster", "better", True, "faster than the baseline, and its AP is better."),
        (0.3003, 5.0, "faster", "equal", True, "faster than the baseline, and its AP is equal."),
        (0.25, 5.0, "faster", "lower", False, "faster than the baseline, but its AP is lower."),
        (0.35, 10.15, "same", "better", True, "as fast as the baseline (the latency intervals overlap), and"),
        (0.35, 12.0, "slower", "better", False, "slower than the baseline, but its AP is better."),
        (0.25, 12.0, "slower", "lower", False, "slower than the baseline, and its AP is lower."),
    ],
)
def test_every_case_is_said(ap: float, latency: float, speed: str, accuracy: str, keeps: bool, says: str) -> None:
    result = compare(row("best", ap, latency), row("base", 0.30, 10.0))
    assert (result.speed, result.accuracy, result.keeps_promise) == (speed, accuracy, keeps)
    assert says in result.sentence


def test_measured_latency_counts_when_both_rows_have_it() -> None:
    assert compare(row("best", 0.3, 5.0, **measured(20.0)), row("base", 0.3, 10.0)).speed == "faster"
    both = compare(row("best", 0.3, 5.0, **measured(20.0)), row("base", 0.3, 10.0, **measured(10.0)))
    assert both.speed == "slower"
    assert compare(row("best", 0.3, 5.0, **measured(9.7)), row("base", 0.3, 9.0, **measured(10.0))).speed == "same"


def test_a_gain_inside_the_spread_is_no_gain() -> None:
    winner = row("best", 0.33, 5.0, ap_std=0.02)
    assert compare(winner, row("base", 0.30, 10.0, ap_std=0.02)).accuracy == "equal"
    assert compare(winner, row("base", 0.30, 10.0, ap_std=0.001)).accuracy == "better"


def test_aps_of_other_budgets_do_not_compare() -> None:
    result = compare(row("best", 0.33, 5.0), row("base", 0.30, 10.0, epochs=5))
    assert (result.accuracy, result.keeps_promise) == ("unknown", False)
    assert "do not compare" in result.sentence


def test_a_recommended_baseline_and_missing_rows() -> None:
    baseline = row("base", 0.3, 10.0)
    assert compare(baseline, baseline).sentence.startswith("No candidate did better")
    assert verdict(None, baseline) is None
    assert verdict(baseline, None) is None
