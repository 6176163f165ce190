"""Successive halving for a whole front: short trainings first, and the longer ones for the best of every latency band.

Latency is known before anything is trained, so designs compete with those that are as fast. A new design is trained to
the first rung only (Jamieson & Talwalkar, 2016; asynchronously as Li et al., 2020). A stopped training may go on when
its AP is in the best third of its band on its rung; of those that may, the one goes on that is expected to add most
hypervolume. Nothing is trained twice: a training goes on from its checkpoint.

New designs are children of the best ones so far (SM-NAS's moves, changed genes, crossover) and random ones. A model of
AP and of latency over the genes orders them by expected gain (:mod:`smnas.search.expected_gain`). Where the model knows
a design as well as a rung would tell, the rung is left out.

Why every training follows the cosine of the whole budget: a schedule that ends with the rung would have to be thrown
away, or restarted at a high rate, whenever a training goes on. Its price is that the AP on a rung is read before the
rate has come down; averaged weights (a recipe's ``ema_decay``) make up for that, and :mod:`smnas.search.rungs` learns
what such an AP is worth. The combination of these parts is this project's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from smnas.search.candidate import Candidate, Proposal, StageName, will_count
from smnas.search.choices import Choices
from smnas.search.expected_gain import expected_gain
from smnas.search.pareto import Points, as_points, front_layers, reference_point
from smnas.search.rungs import FACTOR, Line, Training, lines_to_the_end, rung_epochs, trainings
from smnas.search.strategy import Strategy, first_unseen, seen_architectures
from smnas.search.surrogate import MOST_OBSERVATIONS, GaussianProcess
from smnas.search.variation import crossed, mutated, random_design
from smnas.space.architecture import Architecture
from smnas.space.preset import SpaceError

__all__ = ["HalvingStage", "halving", "surrogate_search"]

_FIRST_DESIGNS = 10  # random ones, before there is a model; in a small search half of its trainings, but not under
_LEAST_DESIGNS = 3
_ROUNDS = 3
_POOL = 40  # children in a round
_BEST_CHILDREN = 8
_RANDOM_SHARE = 0.2
_CROSSED_SHARE = 0.2
_BAND_MEMBERS = 6
_MOST_BANDS = 5
_LAST_SHARE = 0.15  # of the budget, for trainings that were begun
_CLARITY = 4.0  # a rung is worth its epochs where its variance is a quarter of the model's at most


def halving(choices: Choices, trials: int, epochs: int, latency_limit_ms: float | None = None) -> Strategy:
    """The strategy ``halving``: both spaces at once.

    Args:
        choices: Where to search.
        trials: The budget, in trainings of ``epochs`` epochs; it is spent in more and shorter ones.
        epochs: The longest training.
        latency_limit_ms: Slower designs gain nothing.
    """
    return Strategy("halving", (HalvingStage(choices, trials, rung_epochs(epochs), latency_limit_ms),))


def surrogate_search(choices: Choices, trials: int, epochs: int, latency_limit_ms: float | None = None) -> Strategy:
    """The strategy ``surrogate``: :func:`halving` without short trainings, for scorers that know one budget only."""
    return Strategy("surrogate", (HalvingStage(choices, trials, (epochs,), latency_limit_ms),))


@dataclass(frozen=True)
class _Model:
    """What is known of AP and latency: the designs' estimates, the front's points and both models."""

    known: Sequence[Training]
    lines: Mapping[int, Line]
    points: Points
    ap: GaussianProcess
    log_latency: GaussianProcess
    reference: tuple[float, float]

    def gain(self, features: NDArray[np.float64], latency_ms: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        mean, deviation = self.ap.predict(features)
        if latency_ms is None:
            latency_ms = np.exp(self.log_latency.predict(features)[0])
        return expected_gain(self.points, mean, deviation, latency_ms, self.reference)


@dataclass(frozen=True)
class HalvingStage:
    """See the module.

    Attributes:
        trials: Budget in trainings of the whole length.
        rungs: Epochs where trainings stop, rising; the last one is the whole length.
    """

    choices: Choices
    trials: int
    rungs: tuple[int, ...]
    latency_limit_ms: float | None = None
    name: StageName = "joint"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategy.SearchStage`."""
        every = trainings(history)
        known = [t for t in every.values() if t.ap_at]
        # What is left of the budget at the end is for trainings that were begun: an unfinished one is not ranked.
        ending = self._budget_left(history) <= self._kept_for_the_end()
        to_end = [t for t in known if t.stopped] if ending else []
        if len(known) < min(max(self.trials // 2, _LEAST_DESIGNS), _FIRST_DESIGNS) and not to_end:
            return self._random(history, rng)
        model = self._model(every, known)
        may_go_on = self._promotable(known) or to_end
        if may_go_on:
            return self._promotion(model, may_go_on)
        return self._new(model, history, rng)

    def _random(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        try:
            design = first_unseen(partial(random_design, self.choices, rng), seen_architectures(history))
        except SpaceError:
            return None
        return None if design is None else Proposal(design, "random", None, self.rungs[0] if self.rungs[1:] else None)

    def _budget_left(self, history: Sequence[Candidate]) -> int:
        return self.trials * self.rungs[-1] - sum(
            c.own_epochs for c in history if c.stage == self.name and will_count(c)
        )

    def _kept_for_the_end(self) -> float:
        return max(_LAST_SHARE * self.trials * self.rungs[-1], self.rungs[-1] - self.rungs[0])

    def _model(self, every: dict[Architecture, Training], known: Sequence[Training]) -> _Model:
        lines = lines_to_the_end(known, self.rungs)
        reached = [max(t.ap_at) for t in known]
        points = as_points([(lines[r].at(t.ap_at[r]), t.latency_ms) for t, r in zip(known, reached, strict=True)])
        kept = _most_telling(points)
        features = np.array([self.choices.vector(known[i].architecture) for i in kept])
        ap = GaussianProcess.fit(features, points[kept, 0], np.array([lines[reached[i]].variance for i in kept]))
        log_latency = GaussianProcess.fit(features, np.log(points[kept, 1]))
        running = [t for t in every.values() if not t.ap_at and t.last is not None and t.last.state == "running"]
        if running:
            # What is being trained counts as what the model expects of it, so that its neighbours do not come at once.
            expected, _ = ap.predict(np.array([self.choices.vector(t.architecture) for t in running]))
            points = np.vstack([points, np.column_stack([expected, [t.latency_ms for t in running]])])
        low_ap, high_ms = reference_point(points)
        if self.latency_limit_ms is not None:
            high_ms = self.latency_limit_ms
        return _Model(known, lines, points, ap, log_latency, (low_ap, high_ms))

    def _promotable(self, known: Sequence[Training]) -> list[Training]:
        """Stopped trainings in the best third of their latency band on their rung, on the highest rung that has any.

        Bands move as designs come, so what is a third in each of them adds up to more in time; a third of all is the
        most that goes on from a rung.
        """
        bands = _bands([t.latency_ms for t in known])
        for rung in self.rungs[-2::-1]:
            reached = [t for t in known if rung in t.ap_at]
            if sum(t.asked_epoch > rung for t in reached) >= len(reached) // FACTOR:
                continue
            found = []
            for band in range(max(bands) + 1):
                here = [t for t, b in zip(known, bands, strict=True) if b == band and rung in t.ap_at]
                here.sort(key=lambda t: -t.ap_at[rung])
                found += [t for t in here[: len(here) // FACTOR] if t.stopped and t.asked_epoch == rung]
            if found:
                return found
        return []

    def _promotion(self, model: _Model, may_go_on: Sequence[Training]) -> Proposal:
        features = np.array([self.choices.vector(t.architecture) for t in may_go_on])
        gains = model.gain(features, np.array([t.latency_ms for t in may_go_on]))
        chosen = may_go_on[int(np.argmax(gains))]
        parent = None if chosen.last is None else chosen.last.parent
        stop = self._stop(model, chosen.architecture, chosen.asked_epoch)
        return Proposal(chosen.architecture, "promotion", parent, stop)

    def _stop(self, model: _Model, design: Architecture, reached: int) -> int | None:
        """The first rung that tells clearly more of the design than the model knows already; None is the end."""
        deviation = float(model.ap.predict(self.choices.vector(design)[None])[1][0])
        for rung in self.rungs[:-1]:
            if rung > reached and _CLARITY * model.lines[rung].variance <= deviation**2:
                return rung
        return None

    def _new(self, model: _Model, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """The design that is expected to gain most, of children of the front and, in rounds, of the best children."""
        seen = seen_architectures(history)
        layers = front_layers(model.points[: len(model.known)])
        # With each parent the trained design that it descends from: a child of a child that nobody trained names that.
        parents: list[tuple[Architecture, str | None]] = [
            (t.architecture, str(t.architecture))
            for t, layer in zip(model.known, layers, strict=True)
            if 0 <= layer <= 1
        ]
        pool: dict[Architecture, Proposal] = {}
        gains = np.zeros(0)
        for _ in range(_ROUNDS):
            fresh: dict[Architecture, Proposal] = {}
            for _ in range(_POOL):
                child = self._child(parents, rng)
                if child is not None and child.architecture not in seen and child.architecture not in pool:
                    fresh.setdefault(child.architecture, child)
            if fresh:
                gains = np.append(gains, model.gain(np.array([self.choices.vector(design) for design in fresh])))
                pool |= fresh
            best = [list(pool.values())[i] for i in np.argsort(-gains, kind="stable")[:_BEST_CHILDREN]]
            parents = [(p.architecture, p.parent) for p in best] or parents
        if not pool:
            return self._random(history, rng)
        chosen = list(pool.values())[int(np.argmax(gains))]
        return replace(chosen, stop_epoch=self._stop(model, chosen.architecture, 0))

    def _child(self, parents: Sequence[tuple[Architecture, str | None]], rng: np.random.Generator) -> Proposal | None:
        kind = rng.random()
        if kind < _RANDOM_SHARE:
            try:
                return Proposal(random_design(self.choices, rng), "random")
            except SpaceError:
                return None
        first, root = parents[int(rng.integers(len(parents)))]
        if kind < _RANDOM_SHARE + _CROSSED_SHARE:
            child = crossed(self.choices, first, parents[int(rng.integers(len(parents)))][0], rng)
            return None if child is None else Proposal(child, "crossover", root)
        child = mutated(self.choices, first, rng)
        return None if child is None else Proposal(child, "mutation", root)


def _bands(latencies_ms: Sequence[float]) -> list[int]:
    """Bands of about equally many designs, some six or more in each, five at most."""
    count = min(max(len(latencies_ms) // _BAND_MEMBERS, 1), _MOST_BANDS)
    edges = np.quantile(latencies_ms, np.arange(1, count) / count)
    return [int(band) for band in np.searchsorted(edges, latencies_ms, side="right")]


def _most_telling(points: Points) -> NDArray[np.int64]:
    """Indices of what a model is fitted on: half of it the layers nearest to the front, the rest the latest."""
    if len(points) <= MOST_OBSERVATIONS:
        return np.arange(len(points))
    order = np.lexsort((-np.arange(len(points)), front_layers(points)))
    best = order[: MOST_OBSERVATIONS // 2]
    rest = np.setdiff1d(np.arange(len(points)), best)
    return np.sort(np.concatenate([best, rest[-(MOST_OBSERVATIONS - len(best)) :]]))
