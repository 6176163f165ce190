"""Problems without training, and the search's loop on one of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from smnas.search.pareto import as_points, hypervolume
from smnas.search.strategies.base import Strategy
from smnas.search.study.candidate import Candidate, Proposal
from smnas.search.study.history import History

GENERATION = 2  # candidates proposed from the same results: the command line's default


class Problem(Protocol):
    """Designs with a latency and with an AP after every number of epochs."""

    name: str
    choices: Any
    epochs: int
    baseline: Any
    reference: tuple[float, float]
    best_hypervolume: float

    def latency_ms(self, design: Any) -> float:
        """Known before any training."""

    def ap(self, design: Any, epoch: int, seed: int) -> float:
        """AP of a training run after ``epoch`` epochs, with its noise."""

    def true_ap(self, design: Any) -> float:
        """AP of a completed run without noise, by which a search is judged."""

    def may_skip(self, design: Any, latency_ms: float, trained: Sequence[Candidate]) -> bool:
        """Whether the loop would prune a design before training it."""


def stops(epochs: int) -> list[int]:
    """Rungs of a training run: a ninth and a third of its epochs, where that is three or more, and its end."""
    return sorted({stop for stop in (epochs // 9, epochs // 3) if stop >= 3} | {epochs})


@dataclass(frozen=True)
class Played:
    """Hypervolume as a fraction of the best known one after every epoch spent, and the seconds that proposals took."""

    epochs: np.ndarray
    share: np.ndarray
    asks: int
    ask_seconds: float
    designs: int


def play(make: Callable[[Problem, int], Strategy], problem: Problem, trials: int, seed: int) -> Played:
    """Spend the epochs of ``trials`` completed training runs."""
    history = History()
    spent, asks, seconds = 0, 0, 0.0
    budget = trials * problem.epochs
    front: list[tuple[float, float]] = []
    curve = [(0, 0.0)]

    def look(proposal: Proposal, stage: str) -> Candidate | None:
        latency = problem.latency_ms(proposal.architecture)
        reached = 0
        if proposal.origin == "promotion":
            reached = history.latest(proposal.architecture).reached_epoch
        draft = Candidate(
            number=len(history),
            architecture=proposal.architecture,
            stage=stage,  # type: ignore[arg-type]
            origin=proposal.origin,
            parent=proposal.parent,
            state="running",
            seed=seed,
            epochs=problem.epochs,
            start_epoch=reached,
            stop_epoch=proposal.stop_epoch,
            latency_ms=latency,
        )
        if not reached and problem.may_skip(proposal.architecture, latency, history.whole):
            history.append(replace(draft, state="pruned", reason="beaten"))
            return None
        history.append(draft)
        return draft

    def train(draft: Candidate) -> None:
        nonlocal spent
        ap = problem.ap(draft.architecture, draft.reached_epoch, seed)
        history.finish(replace(draft, state="complete", score=ap))
        spent += draft.own_epochs
        if draft.stop_epoch is None:
            front.append((problem.true_ap(draft.architecture), draft.point[1]))
        curve.append((spent, hypervolume(as_points(front), problem.reference) / problem.best_hypervolume))

    if (baseline := look(Proposal(problem.baseline, "baseline"), "baseline")) is not None:
        train(baseline)
    for stage in make(problem, trials).stages:
        done = False
        while not done:
            drafts: list[Candidate] = []
            while len(drafts) < GENERATION and history.tally(stage.name).epochs < stage.trials * problem.epochs:
                began = time.process_time()
                proposal = stage.ask(history, np.random.default_rng([seed, len(history)]))
                seconds += time.process_time() - began
                asks += 1
                if proposal is None:
                    break
                draft = look(proposal, stage.name)
                if draft is not None:
                    drafts.append(draft)
            for draft in drafts:
                train(draft)
            done = not drafts or spent >= budget + problem.epochs
    epochs, share = np.array(curve).T
    return Played(epochs, share, asks, seconds, len({c.architecture for c in history if c.state == "complete"}))
