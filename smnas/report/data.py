"""Plain values behind every figure and table of the report; drawing is elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smnas.report.run_folder import Curve, RunFolder
from smnas.scoring.base import AP
from smnas.search.pareto import as_points, hypervolume, non_dominated
from smnas.search.study.candidate import Candidate
from smnas.search.study.settings import flattened

__all__ = [
    "BlockLatency",
    "Child",
    "CurveLine",
    "Family",
    "FrontPoint",
    "Hypervolume",
    "ScoredCandidate",
    "families",
    "fronts",
    "hypervolume_by_training",
    "outcomes",
    "scored_candidates",
    "settings_rows",
    "training_curves",
]

# The box that hypervolume is measured in needs a border beyond every point.
_REFERENCE_MARGIN = 1.1
_SEARCH_STAGES = ("baseline", "warm", "structural", "modular", "joint")
_FRONT_STAGES = ("warm", "structural", "modular", "joint", "final")


@dataclass(frozen=True)
class FrontPoint:
    """A trained detector in the plane that the search optimises.

    Attributes:
        latency_ms: Median with its interval ``latency_low_ms`` to ``latency_high_ms`` (``None``: unknown).
        ap: COCO AP in 0..1.
        ap_std: Spread over seeds, ``None`` with one seed.
        on_front: Not dominated within its stage.
        latency_measured: Fraction of the latency that was measured, where the device is elsewhere.
    """

    architecture: str
    latency_ms: float
    latency_low_ms: float | None
    latency_high_ms: float | None
    ap: float
    ap_std: float | None
    on_front: bool
    latency_measured: float | None = None


@dataclass(frozen=True)
class Hypervolume:
    """Quality of the front after every finished training run.

    Attributes:
        training_runs: 1, 2, ... in the order in which the trials were proposed.
        epochs: Epochs spent so far, stopped training runs included.
        share: Dominated fraction of the box AP 0..1 by 0..``reference_latency_ms``.
        reference_latency_ms: The slow border of the box.
    """

    training_runs: tuple[int, ...]
    epochs: tuple[int, ...]
    share: tuple[float, ...]
    reference_latency_ms: float


@dataclass(frozen=True)
class CurveLine:
    """One number of one training run, epoch by epoch."""

    architecture: str
    run: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Child:
    """A stage-2 detector and its gain over the detector that it came from."""

    architecture: str
    ap: float
    latency_ms: float
    ap_gain: float | None
    latency_change: float | None


@dataclass(frozen=True)
class Family:
    """A parent of stage 2 and its trained children, best AP first."""

    parent: str
    ap: float | None
    latency_ms: float | None
    children: tuple[Child, ...]


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate with a training-free score; ``ap`` is that of its final training run, if any."""

    architecture: str
    score: float
    latency_ms: float
    parameters: float | None
    flops: float | None
    ap: float | None


@dataclass(frozen=True)
class BlockLatency:
    """One workload of a detector in the latency table."""

    name: str
    latency_ms: float


def _finished(trials: Sequence[Candidate], *stages: str) -> list[Candidate]:
    return [
        t for t in trials if t.state == "complete" and t.metric == AP and t.stage in stages and t.stop_epoch is None
    ]


def _by_architecture(trials: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    found: dict[str, list[Candidate]] = {}
    for trial in trials:
        found.setdefault(str(trial.architecture), []).append(trial)
    return found


def fronts(run: RunFolder) -> dict[str, list[FrontPoint]]:
    """Finished detectors of every stage with any, fastest first; seeds of an architecture become mean and spread."""
    found = {}
    for stage in _FRONT_STAGES:
        by_architecture = _by_architecture(_finished(run.trials, stage))
        if not by_architecture:
            continue
        latency = [float(np.median([t.point[1] for t in trials])) for trials in by_architecture.values()]
        scores = [[t.point[0] for t in trials] for trials in by_architecture.values()]
        ap = [float(np.mean(values)) for values in scores]
        on_front = non_dominated(as_points(list(zip(ap, latency, strict=True)))).tolist()
        points = [
            FrontPoint(
                architecture,
                latency[i],
                trials[-1].latency_low_ms,
                trials[-1].latency_high_ms,
                ap[i],
                float(np.std(scores[i], ddof=1)) if len(trials) > 1 else None,
                on_front[i],
                trials[-1].latency_measured,
            )
            for i, (architecture, trials) in enumerate(by_architecture.items())
        ]
        found[stage] = sorted(points, key=lambda p: (p.latency_ms, -p.ap))
    return found


def hypervolume_by_training(run: RunFolder) -> Hypervolume | None:
    """Growth of the front during the search; ``None`` before the first finished training run.

    The final phase is left out: its longer runs put AP on another scale.
    """
    trials = sorted(_finished(run.trials, *_SEARCH_STAGES), key=lambda t: t.number)
    if not trials:
        return None
    points = as_points([t.point for t in trials])
    border = float(points[:, 1].max()) * _REFERENCE_MARGIN
    shares = [hypervolume(points[: n + 1], (0.0, border)) / border for n in range(len(trials))]
    paid, spent_by = 0, {}
    for trial in sorted(run.trials, key=lambda t: t.number):
        paid += trial.own_epochs if trial.state == "complete" and trial.stage != "final" else 0
        spent_by[trial.number] = paid
    spent = [spent_by[trial.number] for trial in trials]
    return Hypervolume(tuple(range(1, len(trials) + 1)), tuple(spent), tuple(shares), border)


def training_curves(run: RunFolder, value: str, count: int = 8) -> tuple[CurveLine, ...]:
    """Curves of the ``count`` best ranked architectures and the baseline, of the longest training runs of each only.

    Without a ranking the first ones by name are shown. ``value`` is a key of ``curve.jsonl``, such as ``loss``.
    """
    rows = [row for row in run.ranking.rows if row.rank <= count or row.role == "baseline"]
    ranked = [row.architecture for row in rows] or sorted({c.architecture for c in run.curves})[:count]
    lines = []
    for architecture in ranked:
        curves = [c for c in run.curves if c.architecture == architecture]
        longest = max((len(c.epochs) for c in curves), default=0)
        lines += [line for c in curves if len(c.epochs) == longest and (line := _line(c, value)) is not None]
    return tuple(lines)


def _line(curve: Curve, value: str) -> CurveLine | None:
    pairs = [(e.get("epoch", i + 1.0), e[value]) for i, e in enumerate(curve.epochs) if value in e]
    if not pairs:
        return None
    epochs, values = zip(*pairs, strict=True)
    return CurveLine(curve.architecture, curve.run, epochs, values)


def families(run: RunFolder) -> tuple[Family, ...]:
    """Parents of stage 1 with children of stage 2, or of a joint stage; the parent of the best child first."""
    trained = {str(t.architecture): t for t in _finished(run.trials, *_SEARCH_STAGES)}
    by_parent: dict[str, list[Candidate]] = {}
    for trial in _finished(run.trials, "modular", "joint"):
        if trial.parent:
            by_parent.setdefault(trial.parent, []).append(trial)
    found = []
    for parent_string, trials in by_parent.items():
        parent = trained.get(parent_string)
        children = [_child(t, parent) for t in trials]
        children.sort(key=lambda c: (-c.ap, c.latency_ms))
        ap, latency_ms = parent.point if parent else (None, None)
        found.append(Family(parent_string, ap, latency_ms, tuple(children)))
    return tuple(sorted(found, key=lambda f: -f.children[0].ap))


def _child(trial: Candidate, parent: Candidate | None) -> Child:
    (ap, latency), architecture = trial.point, str(trial.architecture)
    if parent is None:
        return Child(architecture, ap, latency, None, None)
    return Child(architecture, ap, latency, ap - parent.point[0], latency / parent.point[1] - 1.0)


def scored_candidates(run: RunFolder) -> tuple[ScoredCandidate, ...]:
    """Candidates with a training-free score, highest first; none in a run that trains its candidates."""
    finals = _by_architecture(_finished(run.trials, "final"))
    found = []
    for t in run.trials:
        if t.state == "complete" and t.metric != AP:
            trained = finals.get(str(t.architecture))
            ap = None if trained is None else float(np.mean([final.point[0] for final in trained]))
            found.append(ScoredCandidate(str(t.architecture), *t.point, t.parameters, t.flops, ap))
    return tuple(sorted(found, key=lambda c: (-c.score, c.latency_ms)))


def outcomes(run: RunFolder, state: str) -> tuple[Candidate, ...]:
    """Trials of one state (``failed``, ``pruned``, ``running``)."""
    return tuple(trial for trial in run.trials if trial.state == state)


def settings_rows(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Nested settings as ``(dotted name, text)`` rows in their own order."""
    return tuple((name, _text(value)) for name, value in flattened(settings).items())


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
