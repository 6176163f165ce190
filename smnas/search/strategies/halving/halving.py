"""Successive halving for a whole front: short runs first, longer ones for the best of every latency band.

Latency is known before any training, so designs compete with those of similar latency. A new design is trained to the
first rung only (Jamieson & Talwalkar, 2016; asynchronously as Li et al., 2020). A stopped run may resume if its AP is
in the best third of its band on its rung; of those, the one with the largest expected gain of hypervolume does, from
its checkpoint.

New designs are random, or children of the best so far (SM-NAS's moves, changed genes, crossover). Gaussian-process
surrogates of AP and latency over the genes order them by expected gain (:mod:`.expected_gain`). A rung is skipped if
the surrogate knows a design as well as the rung would tell. Before any training a sample of the space is measured
(:mod:`.latency_sample`), if a predictor is at hand and the trial budget is worth it.

Every run follows the cosine schedule of the full budget: a schedule that ends with the rung would have to be thrown
away, or restarted at a high rate, on every resume. The price is that the AP on a rung is read before the rate has
decayed; averaged weights (a recipe's ``ema_decay``) make up for that, and :mod:`.rungs` learns what such an AP is
worth. The combination of these parts is this project's own.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from smnas.search.context import SearchContext
from smnas.search.pareto import Points, front_layers, non_dominated, reference_point
from smnas.search.strategies.base import Strategy, StrategyKind
from smnas.search.strategies.choices import Choices
from smnas.search.strategies.halving.expected_gain import expected_gain
from smnas.search.strategies.halving.latency_sample import KnownLatency, LatencySample
from smnas.search.strategies.halving.rungs import FACTOR, Line, TrainingRuns, expected_ends, reached_rungs, rung_epochs
from smnas.search.strategies.halving.surrogate import MOST_OBSERVATIONS, GaussianProcess, Observed
from smnas.search.strategies.variation import crossed, mutated, random_design, random_unseen_design
from smnas.search.study.candidate import Candidate, Proposal, StageName, will_count
from smnas.search.study.history import History
from smnas.space.architecture import Architecture
from smnas.space.preset import SpaceError

__all__ = ["HALVING", "SURROGATE", "HalvingStage", "halving"]

_FIRST_DESIGNS = 10  # random ones before there is a model; in a small search half of its training runs, but not under
_LEAST_DESIGNS = 3
_DRAWS = 64  # random designs measured up front
_DRAWN_FROM = 40  # training runs: in a smaller search, measuring their blocks would take too large a share of the time
_SAMPLE_SHARE = 0.1  # of a time limit, for measuring the sample
_ROUNDS = 12
_LEAST_ROUNDS = 3  # from then on a round that brings nothing better is the last
_POOL = 60  # children per round
_MOST_COMPARED = 160  # stopped training runs
_BEST_CHILDREN = 8
_RANDOM_SHARE = 0.2
_CROSSED_SHARE = 0.2
_BAND_MEMBERS = 6
_MOST_BANDS = 5
_LAST_SHARE = 0.15  # of the budget, to finish training runs that were begun
_CLARITY = 4.0  # a rung is worth its epochs if its variance is at most a quarter of the model's


def halving(
    choices: Choices,
    trials: int,
    epochs: int,
    latency_limit_ms: float | None = None,
    latency: KnownLatency | None = None,
    *,
    stops: bool = True,
) -> Strategy:
    """The strategy ``halving``: both spaces at once; or ``surrogate``, without short runs, if it never ``stops`` one.

    Args:
        choices: Search space.
        trials: Trial budget in runs of ``epochs`` epochs, spent on more and shorter ones.
        epochs: The longest training run.
        latency_limit_ms: Slower designs gain nothing.
        latency: Predicts latency before any training, if available.
        stops: Whether it stops runs early; a scorer with a single budget can not.
    """
    rungs = rung_epochs(epochs) if stops else (epochs,)
    stage = HalvingStage(choices, trials, rungs, latency_limit_ms, latency)
    return Strategy("halving" if stops else "surrogate", (stage,))


def _sampled_designs(trials: int) -> int:
    """Number of random designs measured up front for a given trial budget."""
    return _DRAWS if trials >= _DRAWN_FROM else 0


@dataclass(frozen=True)
class _Known:
    """The ``n`` training runs with an AP.

    Attributes:
        last: Last trial of each.
        designs: Architecture of each.
        latency_ms: ``(n,)``.
        ap: ``(n, rungs)``, NaN on rungs that a run has not stopped on.
        asked_epoch: ``(n,)``, where each stops or will stop.
        stopped: ``(n,)``, whether it waits to resume.
    """

    last: list[Candidate]
    designs: list[Architecture]
    latency_ms: NDArray[np.float64]
    ap: NDArray[np.float64]
    asked_epoch: NDArray[np.int64]
    stopped: NDArray[np.bool_]

    @classmethod
    def of(cls, training_runs: TrainingRuns, rungs: Sequence[int]) -> "_Known":
        ap = training_runs.ap(rungs)
        rows = np.flatnonzero(reached_rungs(ap) >= 0)
        every = training_runs.last
        last = [every[row] for row in rows.tolist()]
        designs = [c.architecture for c in last]
        asked, stopped = training_runs.asked_epoch[rows], training_runs.stopped[rows]
        return cls(last, designs, training_runs.latency_ms[rows], ap[rows], asked, stopped)

    def same_aps(self, other: "_Known") -> bool:
        """Whether a model of ``other`` is also one of this."""
        return (
            self.designs == other.designs
            and np.array_equal(self.latency_ms, other.latency_ms)
            and np.array_equal(self.ap, other.ap, equal_nan=True)
        )


@dataclass(frozen=True)
class _Fit:
    """Models of AP and latency from the results so far.

    Attributes:
        points: ``(n, 2)`` of expected final AP and latency.
        lines: Final AP as a line of the AP on each rung.
        layers: Front index of each training run; 0 is the best.
        observed: Designs that the model of AP is fitted on.
        timed: Designs that the model of latency is fitted on: these and the sample's.
    """

    points: Points
    lines: Sequence[Line]
    layers: NDArray[np.int64]
    observed: Observed
    ap: GaussianProcess
    timed: Observed
    log_latency: GaussianProcess


@dataclass(frozen=True)
class _Model:
    """A fit and the front that designs must improve on, running training runs included.

    Attributes:
        front: Best points of the results so far and of those expected of running training runs.
        reference: Lowest AP and highest latency that count.
    """

    fit: _Fit
    front: Points
    reference: tuple[float, float]

    def gain(self, features: NDArray[np.float64], latency_ms: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        compared = self.fit.observed.compared(features)
        mean, deviation = self.fit.ap.predict(compared)
        if latency_ms is None:
            latency_ms = np.exp(self.fit.log_latency.expect(self.fit.timed.compared(features)))
        return expected_gain(self.front, mean, deviation, latency_ms, self.reference)


@dataclass
class HalvingStage:
    """Stage of :mod:`.halving`; it caches the last fit and the sample, both functions of the history.

    Attributes:
        choices: Search space.
        trials: Trial budget in full-length training runs.
        rungs: Epochs where training runs stop, ascending; the last one is the full number.
        latency_limit_ms: Slower designs gain nothing.
        latency: Latency of a design before any training.
    """

    choices: Choices
    trials: int
    rungs: tuple[int, ...]
    latency_limit_ms: float | None = None
    latency: KnownLatency | None = None
    name: StageName = "joint"
    _last_fit: tuple[_Known, _Fit] | None = field(default=None, init=False, repr=False, compare=False)
    _samples: dict[int, LatencySample] = field(default_factory=dict, init=False, repr=False, compare=False)

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        trials = History.of(history)
        known = _Known.of(trials.training_runs, self.rungs)
        # The end of the budget finishes training runs that were begun: an unfinished one is not ranked.
        ending = self._budget_left(trials) <= self._kept_for_the_end()
        to_end = np.flatnonzero(known.stopped) if ending else np.zeros(0, dtype=np.int64)
        if len(known.last) < min(max(self.trials // 2, _LEAST_DESIGNS), _FIRST_DESIGNS) and not len(to_end):
            return self._first(trials, rng)
        model = self._model(trials, known)
        may_go_on = self._promotable(known)
        if not len(may_go_on):
            may_go_on = to_end
        if len(may_go_on):
            return self._promotion(model, known, may_go_on)
        return self._new(model, known, trials, rng)

    def _sample(self, trials: Sequence[Candidate]) -> LatencySample | None:
        """The sample of this search, the same after it resumes."""
        draws = _sampled_designs(self.trials)
        if self.latency is None or not draws:
            return None
        seed = trials[0].seed if len(trials) else 0
        if seed not in self._samples:
            drawn = LatencySample.draw(self.choices, self.latency, seed, draws, self.latency_limit_ms)
            self._samples[seed] = drawn
        return self._samples[seed] if self._samples[seed].designs else None

    def _first(self, trials: History, rng: np.random.Generator) -> Proposal | None:
        sample = self._sample(trials)
        design = (
            None if sample is None else sample.away_from(trials.training_runs.latency_ms.tolist(), trials.seen, rng)
        )
        if design is None:
            return self._random(trials, rng)
        return Proposal(design, "random", None, self._first_stop)

    @property
    def _first_stop(self) -> int | None:
        return self.rungs[0] if self.rungs[1:] else None

    def _random(self, trials: History, rng: np.random.Generator) -> Proposal | None:
        return random_unseen_design(self.choices, trials.seen, rng, self._first_stop)

    def _budget_left(self, trials: History) -> int:
        return self.trials * self.rungs[-1] - trials.tally(self.name).epochs

    def _kept_for_the_end(self) -> float:
        return max(_LAST_SHARE * self.trials * self.rungs[-1], self.rungs[-1] - self.rungs[0])

    def _features(self, designs: Iterable[Architecture]) -> NDArray[np.float64]:
        return np.array([self.choices.vector(design) for design in designs])

    def _fit(self, known: _Known, sample: LatencySample | None) -> _Fit:
        """Fit the models, or reuse the last fit: proposals of one generation share the same APs."""
        if self._last_fit is not None and self._last_fit[0].same_aps(known):
            return self._last_fit[1]
        ends, lines = expected_ends(known.ap)
        points = np.column_stack((ends, known.latency_ms))
        layers = front_layers(points)
        kept = _most_telling(layers)
        observed = Observed(self._features(known.designs[i] for i in kept.tolist()))
        variances = np.array([line.variance for line in lines])[reached_rungs(known.ap)]
        ap = GaussianProcess.fit(observed, ends[kept], variances[kept])
        timed, log_ms = observed, np.log(known.latency_ms[kept])
        if sample is not None:
            more = {known.designs[i]: float(known.latency_ms[i]) for i in kept.tolist()}
            more = dict(zip(sample.designs, sample.latency_ms.tolist(), strict=True)) | more
            timed, log_ms = Observed(self._features(more)), np.log(list(more.values()))
        log_latency = GaussianProcess.fit(timed, log_ms)
        fit = _Fit(points, lines, layers, observed, ap, timed, log_latency)
        self._last_fit = known, fit
        return fit

    def _model(self, trials: History, known: _Known) -> _Model:
        sample = self._sample(trials)
        fit = self._fit(known, sample)
        points = fit.points
        # A running design counts with its expected AP, so that its neighbours are not proposed at once.
        first_runs = [c for c in trials.running if will_count(c) and c.start_epoch == 0]
        if first_runs:
            expected = fit.ap.expect(fit.observed.compared(self._features(c.architecture for c in first_runs)))
            points = np.vstack([points, np.column_stack([expected, [c.point[1] for c in first_runs]])])
        low_ap, high_ms = reference_point(points)
        if sample is not None:
            # A design slower than all trained ones can still gain.
            high_ms = max(high_ms, float(sample.latency_ms.max()))
        if self.latency_limit_ms is not None:
            high_ms = self.latency_limit_ms
        return _Model(fit, points[non_dominated(points)], (low_ap, high_ms))

    def _promotable(self, known: _Known) -> NDArray[np.int64]:
        """Stopped runs in the best third of their latency band on their rung, on the highest rung that has any.

        Bands move as designs arrive, so their thirds add up to more over time; at most a third of a rung's runs resume.
        """
        bands = _bands(known.latency_ms)
        for rung in range(len(self.rungs) - 2, -1, -1):
            ap, epoch = known.ap[:, rung], self.rungs[rung]
            reached = ~np.isnan(ap)
            if int((reached & (known.asked_epoch > epoch)).sum()) >= int(reached.sum()) // FACTOR:
                continue
            found = []
            for band in range(int(bands.max()) + 1):
                here = np.flatnonzero((bands == band) & reached)
                best = here[np.argsort(-ap[here], kind="stable")[: len(here) // FACTOR]]
                found.append(best[known.stopped[best] & (known.asked_epoch[best] == epoch)])
            if any(map(len, found)):
                return np.concatenate(found)
        return np.zeros(0, dtype=np.int64)

    def _promotion(self, model: _Model, known: _Known, may_go_on: NDArray[np.int64]) -> Proposal:
        if len(may_go_on) > _MOST_COMPARED:
            # Only those nearest to the front: the end of a long search begins with thousands.
            may_go_on = may_go_on[np.argsort(model.fit.layers[may_go_on], kind="stable")[:_MOST_COMPARED]]
        features = self._features(known.designs[i] for i in may_go_on.tolist())
        chosen = int(may_go_on[int(np.argmax(model.gain(features, known.latency_ms[may_go_on])))])
        last = known.last[chosen]
        stop = self._stop(model, last.architecture, int(known.asked_epoch[chosen]))
        return Proposal(last.architecture, "promotion", last.parent, stop)

    def _stop(self, model: _Model, design: Architecture, reached: int) -> int | None:
        """The first rung that tells clearly more of the design than the model already does; None is the end."""
        deviation = float(model.fit.ap.predict(model.fit.observed.compared(self._features([design])))[1][0])
        for rung, line in zip(self.rungs[:-1], model.fit.lines[:-1], strict=True):
            if rung > reached and _CLARITY * line.variance <= deviation**2:
                return rung
        return None

    def _new(self, model: _Model, known: _Known, trials: History, rng: np.random.Generator) -> Proposal | None:
        """Design of the largest expected gain among children of the front and, in rounds, of the best children."""
        layers = model.fit.layers
        designs = [known.designs[i] for i in np.flatnonzero((layers == 0) | (layers == 1)).tolist()]
        # Each parent comes with its trained ancestor, which children of untrained children name as theirs.
        parents: list[tuple[Architecture, str | None]] = [(design, str(design)) for design in designs]
        pool: dict[Architecture, Proposal] = {}
        gains, best = np.zeros(0), 0.0
        for done in range(_ROUNDS):
            fresh: dict[Architecture, Proposal] = {}
            for _ in range(_POOL):
                child = self._child(parents, rng)
                if child is not None and child.architecture not in trials.seen and child.architecture not in pool:
                    fresh.setdefault(child.architecture, child)
            if fresh:
                gains = np.append(gains, model.gain(self._features(fresh)))
                pool |= fresh
            children = [list(pool.values())[i] for i in np.argsort(-gains, kind="stable")[:_BEST_CHILDREN]]
            parents = [(child.architecture, child.parent) for child in children] or parents
            before, best = best, float(gains.max(initial=0.0))
            if done + 1 >= _LEAST_ROUNDS and best <= before:
                break
        if not pool:
            return self._random(trials, rng)
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


def _bands(latencies_ms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Band index of each latency: bands of about equally many designs, at least six in each, at most five bands."""
    count = min(max(len(latencies_ms) // _BAND_MEMBERS, 1), _MOST_BANDS)
    edges = np.quantile(latencies_ms, np.arange(1, count) / count)
    return np.asarray(np.searchsorted(edges, latencies_ms, side="right"), dtype=np.int64)


def _most_telling(layers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices that a model is fitted on: half from the layers nearest to the front, the rest the latest."""
    if len(layers) <= MOST_OBSERVATIONS:
        return np.arange(len(layers))
    order = np.lexsort((-np.arange(len(layers)), layers))
    best = order[: MOST_OBSERVATIONS // 2]
    rest = np.setdiff1d(np.arange(len(layers)), best)
    return np.sort(np.concatenate([best, rest[-(MOST_OBSERVATIONS - len(best)) :]]))


def _make(context: SearchContext, stops: bool) -> Strategy:
    draws = _sampled_designs(context.trials)
    if draws:
        text = f"before the first training the blocks of {draws} random designs are measured as well"
        context.on_progress(text, None)
    limit_s = context.time_limit_s
    until = math.inf if limit_s is None else time.monotonic() + _SAMPLE_SHARE * limit_s
    known = None if context.latency is None else partial(context.known_ms, until=until)
    settings = context.settings
    return halving(context.choices, context.trials, settings.epochs, settings.slowest_ms, known, stops=stops)


HALVING = StrategyKind("halving", partial(_make, stops=True), stops=True, takes_prior=False)
SURROGATE = StrategyKind("surrogate", partial(_make, stops=False), takes_prior=False)
