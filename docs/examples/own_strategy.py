"""A strategy of one's own: hill climbing over the structural choices, from the best trained design so far."""

import smnas
from smnas.search.strategies.base import Strategy, first_unseen
from smnas.search.study.candidate import Proposal


class Climb:
    name = "structural"

    def __init__(self, choices, trials):
        self.choices, self.trials = choices, trials

    def ask(self, history, rng):
        best = max((c for c in history if c.score is not None), key=lambda c: c.score).architecture
        seen = {c.architecture for c in history}
        found = first_unseen(lambda: self.choices.mutated_structure(best, rng), seen)
        return None if found is None else Proposal(found, "mutation", str(best))


def hill_climbing(context):
    return Strategy("hill-climbing", (Climb(context.choices, context.trials),))


if __name__ == "__main__":
    run = smnas.search("my-strategy", device="cpu", strategy=hill_climbing, trials=(10, 0))
    print(run.recommendation)
