"""Whether the recommended detector keeps the promise: not slower than the baseline at equal or better AP."""

from dataclasses import dataclass

from smnas.search.ranking.comparison import Accuracy, Speed, accuracy, speed
from smnas.search.ranking.ranking import RankingRow

__all__ = ["Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """How the winner compares with the baseline.

    Attributes:
        speed: ``same`` when the two latency intervals overlap.
        accuracy: ``equal`` within the spread over seeds, or to the printed three decimals; ``unknown`` when the two
            were not trained for as long.
        keeps_promise: Not slower at equal or better AP.
        sentence: The comparison in plain words; its numbers are in the recommendation's reason and in the table.
    """

    speed: Speed
    accuracy: Accuracy
    keeps_promise: bool
    sentence: str


def verdict(winner: RankingRow | None, baseline: RankingRow | None) -> Verdict | None:
    """Compare the recommended row with the baseline's; ``None`` where one of them is missing.

    Like is compared with like: measured latencies only if both rows have one, else predicted ones.
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
