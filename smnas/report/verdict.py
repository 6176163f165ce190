"""The recommended detector against the baseline, in one plain sentence."""

from dataclasses import dataclass
from typing import Literal

from smnas.report.run_folder import Ranking, RankingRow

__all__ = ["Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """How the winner compares with the baseline.

    Attributes:
        speed: ``same`` when the two latency intervals overlap.
        accuracy: ``equal`` when the two APs are equal to the printed three decimals.
        keeps_promise: Not slower at equal or better AP.
        sentence: The comparison with its numbers, for a reader who reads nothing else.
    """

    speed: Literal["faster", "same", "slower", "unknown"]
    accuracy: Literal["higher", "equal", "lower", "unknown"]
    keeps_promise: bool
    sentence: str


@dataclass(frozen=True)
class _Latency:
    ms: float
    low_ms: float
    high_ms: float
    source: str


def _latency(row: RankingRow, measured: bool) -> _Latency | None:
    kind = "measured" if measured else "predicted"
    value = getattr(row, f"{kind}_latency_ms")
    if value is None:
        return None
    low, high = getattr(row, f"{kind}_latency_low_ms"), getattr(row, f"{kind}_latency_high_ms")
    source = "measured on the exported files" if measured else "predicted from the latency table"
    return _Latency(value, value if low is None else low, value if high is None else high, source)


def verdict(ranking: Ranking) -> Verdict | None:
    """Compare the recommended row with the baseline's; ``None`` while there is no recommendation.

    Like is compared with like: measured latencies only if both rows have one, AP of the exported files likewise.
    """
    winner, baseline = ranking.row(ranking.winner), ranking.baseline
    if winner is None:
        return None
    if baseline is None:
        return Verdict("unknown", "unknown", False, "The ranking holds no baseline to compare the winner with.")
    if winner is baseline:
        return Verdict("same", "equal", True, "No candidate was better: the baseline itself is recommended.")
    speed, speed_text = _compare_speed(winner, baseline)
    accuracy, accuracy_text = _compare_accuracy(winner, baseline)
    keeps = speed in ("faster", "same") and accuracy in ("higher", "equal")
    sentence = f"The winner {speed_text}, and {accuracy_text}."
    if speed == "slower":
        better = "although its AP is equal or better" if accuracy in ("higher", "equal") else "and its AP is lower too"
        sentence += f" It is slower than the baseline, {better}."
    return Verdict(speed, accuracy, keeps, sentence)


def _compare_speed(
    winner: RankingRow, baseline: RankingRow
) -> tuple[Literal["faster", "same", "slower", "unknown"], str]:
    measured = winner.measured_latency_ms is not None and baseline.measured_latency_ms is not None
    ours, theirs = _latency(winner, measured), _latency(baseline, measured)
    if ours is None or theirs is None:
        return "unknown", "has no latency to compare with the baseline's"
    numbers = f"{ours.ms:.2f} ms against {theirs.ms:.2f} ms, {ours.source}"
    if ours.low_ms <= theirs.high_ms and theirs.low_ms <= ours.high_ms:
        return "same", f"is as fast as the baseline within the measuring intervals ({numbers})"
    if ours.ms < theirs.ms:
        return "faster", f"is {theirs.ms / ours.ms:.2f} times as fast as the baseline ({numbers})"
    return "slower", f"takes {ours.ms / theirs.ms:.2f} times as long as the baseline ({numbers})"


def _compare_accuracy(
    winner: RankingRow, baseline: RankingRow
) -> tuple[Literal["higher", "equal", "lower", "unknown"], str]:
    exported = winner.exported_ap is not None and baseline.exported_ap is not None and winner.ap_std is None
    ours, theirs = (winner.exported_ap, baseline.exported_ap) if exported else (winner.ap, baseline.ap)
    if ours is None or theirs is None:
        return "unknown", "its AP can not be compared with the baseline's"
    numbers = f"{ours:.3f}{_spread(winner, exported)} against {theirs:.3f}{_spread(baseline, exported)}"
    if round(ours, 3) == round(theirs, 3):
        return "equal", f"its AP equals the baseline's ({numbers})"
    word: Literal["higher", "lower"] = "higher" if ours > theirs else "lower"
    return word, f"its AP is {word} than the baseline's ({numbers})"


def _spread(row: RankingRow, exported: bool) -> str:
    return "" if exported or row.ap_std is None else f" \N{PLUS-MINUS SIGN} {row.ap_std:.3f}"
