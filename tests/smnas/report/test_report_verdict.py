"""The sentence that says whether the winner is worth deploying."""

import pytest

from smnas.report.run_folder import Ranking, RankingRow
from smnas.report.verdict import Verdict, verdict


def row(architecture: str, ap: float | None, latency: float | None, **values: object) -> RankingRow:
    role = "baseline" if architecture == "base" else "candidate"
    interval = (
        {}
        if latency is None
        else {"predicted_latency_low_ms": latency - 0.1, "predicted_latency_high_ms": latency + 0.1}
    )
    return RankingRow(
        1, architecture, "0", role, "modular", True, ap, predicted_latency_ms=latency, **{**interval, **values}
    )


def compare(winner: RankingRow, baseline: RankingRow) -> Verdict:
    result = verdict(Ranking((winner, baseline), winner.architecture, ""))
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("ap", "latency", "speed", "accuracy", "keeps", "says"),
    [
        (0.35, 5.0, "faster", "higher", True, "2.00 times as fast"),
        (0.30, 5.0, "faster", "equal", True, "equals the baseline's"),
        (0.25, 5.0, "faster", "lower", False, "AP is lower"),
        (0.35, 10.15, "same", "higher", True, "within the measuring intervals"),
        (0.35, 12.0, "slower", "higher", False, "slower than the baseline, although its AP is equal or better"),
        (0.25, 12.0, "slower", "lower", False, "slower than the baseline, and its AP is lower too"),
        (None, 5.0, "faster", "unknown", False, "can not be compared"),
        (0.35, None, "unknown", "higher", False, "no latency"),
    ],
)
def test_every_case_is_said(
    ap: float | None, latency: float | None, speed: str, accuracy: str, keeps: bool, says: str
) -> None:
    result = compare(row("best", ap, latency), row("base", 0.30, 10.0))
    assert (result.speed, result.accuracy, result.keeps_promise) == (speed, accuracy, keeps)
    assert says in result.sentence


def test_measured_latency_counts_when_both_rows_have_it() -> None:
    measured = {"measured_latency_ms": 20.0, "measured_latency_low_ms": 19.0, "measured_latency_high_ms": 21.0}
    only_ours = compare(row("best", 0.3, 5.0, **measured), row("base", 0.3, 10.0))
    assert only_ours.speed == "faster"
    assert "predicted" in only_ours.sentence
    slow = {**measured, "measured_latency_ms": 10.0, "measured_latency_low_ms": 9.9, "measured_latency_high_ms": 10.1}
    both = compare(row("best", 0.3, 5.0, **measured), row("base", 0.3, 10.0, **slow))
    assert both.speed == "slower"
    assert "measured on the exported files" in both.sentence


def test_a_recommended_baseline_and_missing_rows() -> None:
    baseline = row("base", 0.3, 10.0)
    assert compare(baseline, baseline).sentence.startswith("No candidate was better")
    assert verdict(Ranking((baseline,), None, "")) is None
    alone = verdict(Ranking((row("best", 0.3, 5.0),), "best", ""))
    assert alone is not None
    assert not alone.keeps_promise
    assert "no baseline" in alone.sentence
