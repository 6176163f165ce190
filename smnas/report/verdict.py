"""Whether the recommended detector is no slower than the baseline at equal or better AP."""

from dataclasses import dataclass

from smnas.search.ranking.comparison import Accuracy, Speed, accuracy, speed
from smnas.search.ranking.ranking import RankingRow

__all__ = ["Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """Comparison of the winner with the baseline.

    Attributes:
        speed: ``same`` if the two latency intervals overlap.
        accuracy: ``equal`` within the spread over seeds or three printed decimals; ``unknown`` for different numbers of
            epochs.
        keeps_promise: Not slower at equal or better AP.
        sentence: The comparison in words, without the numbers of the recommendation and the table.
    """

    speed: Speed
    accuracy: Accuracy
    keeps_promise: bool
    sentence: str


def verdict(winner: RankingRow | None, baseline: RankingRow | None) -> Verdict | None:
    """Compare the recommended row with the baseline's; ``None`` if one is missing.

    Measured latencies are compared only if both rows have one, else predicted ones.
    """
    if winner is None or baseline is None:
        return None
    if winner.architecture == baseline.architecture:
        return Verdict("same", "equal", True, "No candidate did better: the baseline itself is recommended.")
    how_fast, how_good = speed(winner, baseline), accuracy(winner, baseline)
    first = {
        "faster": "The recommended detector is faster than the baseline",
        "same": "The recommended detector is as fast as the baseline (the latency intervals overlap)",
        "slower": "The recommended detector is slower than the baseline",
    }[how_fast]
    second = {
        "better": "its AP is better",
        "equal": "its AP is equal",
        "lower": "its AP is lower",
        "unknown": "their APs do not compare: the two were trained for different numbers of epochs",
    }[how_good]
    good = (how_fast != "slower") == (how_good in ("better", "equal"))
    keeps = how_fast != "slower" and how_good in ("better", "equal")
    return Verdict(how_fast, how_good, keeps, f"{first}, {'and' if good else 'but'} {second}.")
