"""The strategy ``mae-det``: backbones found by entropy within a latency, in the frame of a space's baseline.

Neck, proposals, head and input are the baseline's, as the score ignores them. Its backbone becomes a seed of
super-blocks, and an array search (:mod:`.maximum_entropy`) finds the front of entropy against latency. That latency is
fitted on measured blocks (:mod:`smnas.latency.super_blocks`): those of a few random backbones, then also those of a
first search's best. The front of the second search becomes the run's candidates, those that add most hypervolume first.
Until then only blocks are built, to be measured.

The result is kept in ``zero-shot.json``, so that a run that resumes has the same candidates.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from profiler.atomic import write_atomic
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.super_blocks import fit_super_block_latency
from smnas.scoring.entropy import ENTROPY_FORMS, PUBLISHED, EntropyForm
from smnas.search.context import SearchContext
from smnas.search.pareto import as_points, front_layers, spread
from smnas.search.strategies.base import Strategy, StrategyKind
from smnas.search.strategies.mae_det.maximum_entropy import Budget, EntropySearch, Found, maximum_entropy_search
from smnas.search.study.candidate import Candidate, Proposal
from smnas.search.study.history import History
from smnas.search.study.run_folder import RunFolder, RunFolderError
from smnas.space import streams
from smnas.space.architecture import Architecture
from smnas.space.families.super_blocks import (
    MoveBounds,
    SuperBlockPopulation,
    SuperBlockSpec,
    mutate_super_blocks,
    seed_of,
)
from smnas.space.preset import SpaceError
from smnas.space.super_block_cost import population_cost

__all__ = ["MAE_DET", "ZeroShotCandidate", "ZeroShotResult", "mae_det", "zero_shot_search"]


_STEPS = 100_000
_CALIBRATION = 10  # random backbones whose blocks are measured
_CHECKED = 4  # of a first search's front
_WALKS = 512
_LONGEST_WALK = 24
_LISTED = 48


@dataclass(frozen=True)
class ZeroShotCandidate:
    """A backbone of the front, in its detector.

    Attributes:
        entropy: Its score.
        latency_ms: End-to-end latency by the fit over blocks.
        multiply_adds, parameters, layers: Of the backbone.
    """

    architecture: str
    entropy: float
    latency_ms: float
    multiply_adds: int
    parameters: int
    layers: int


@dataclass(frozen=True)
class ZeroShotResult:
    """Result of a search.

    Attributes:
        candidates: In the order in which a run scores them.
        limit_ms: Latency limit, kept according to the fit.
        steps: Children of both searches.
        search_s: Search time, without measuring.
        relative_error: Of the fit over blocks, see :class:`~smnas.latency.super_blocks.SuperBlockLatency`.
    """

    candidates: tuple[ZeroShotCandidate, ...]
    limit_ms: float
    steps: int
    search_s: float
    relative_error: float


@dataclass(frozen=True)
class ZeroShotStage:
    """Proposes the candidates in turn."""

    candidates: tuple[Architecture, ...]
    trials: int
    name: Literal["structural", "modular"] = "modular"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        seen = History.of(history).seen
        left = next((architecture for architecture in self.candidates if architecture not in seen), None)
        return None if left is None else Proposal(left, "mutation")


def mae_det(context: SearchContext) -> Strategy:
    """The strategy, from the run folder's ``zero-shot.json``, which is made first if it is missing.

    Args:
        context: Its space gives the baseline and the layers that a backbone may have; its settings the seed, the
            latency limit (None: the baseline's latency) and the trials; its profiler measures blocks.

    Raises:
        RunFolderError: ``zero-shot.json`` cannot be read.
        SpaceError, LatencyFailedError, UserError: see :func:`zero_shot_search`.
    """
    settings, file = context.settings, RunFolder(context.folder).zero_shot
    if not file.exists():
        if context.profiler is None:
            raise ValueError("this strategy measures blocks, but its context has no profiler")
        result = zero_shot_search(
            context.space.baseline_architecture,
            context.profiler,
            layers=context.space.modular.super_block_layers,
            limit_ms=settings.latency_ms,
            form=ENTROPY_FORMS.get(settings.scorer, PUBLISHED),
            seed=settings.seed,
            steps=_STEPS,
            on_step=lambda line: context.on_progress(line, None),
        )
        write_atomic(file, json.dumps(asdict(result), indent=1) + "\n")
    found = _read(file)
    candidates = tuple(Architecture.parse(candidate.architecture) for candidate in found.candidates)
    return Strategy(MAE_DET.name, (ZeroShotStage(candidates, settings.trials.modular),))


MAE_DET = StrategyKind("mae-det", mae_det, one_stage=True, measures=True)


def zero_shot_search(
    frame: Architecture,
    latency: DetectorLatency,
    *,
    layers: int,
    limit_ms: float | None = None,
    form: EntropyForm = PUBLISHED,
    seed: int = 0,
    steps: int = _STEPS,
    on_step: Callable[[str], None] | None = None,
) -> ZeroShotResult:
    """Find the front of entropy against latency.

    Args:
        frame: Gives neck, proposals, head, input and, by its backbone, the seed.
        latency: Measures blocks.
        layers: Convolutions that a backbone may have, shortcuts excluded.
        limit_ms: End-to-end latency limit; None: latency of ``frame``.
        form: The score.
        seed: Random seed.
        steps: Children of each of the two searches.
        on_step: Called with a line about each step.

    Raises:
        SpaceError: no layers, or nothing keeps the limit.
        LatencyFailedError: blocks do not run on the target.
        UserError: ``frame`` has no pyramid.
    """
    tell = on_step or (lambda line: None)
    if layers < 1 + 3 * (frame.backbone.top_level - 1):
        raise SpaceError(
            f"a backbone of super-blocks has the stem's layer and three for every stage of {frame.backbone} at least, "
            f"but a search may have {layers} (super_block_layers of the space)"
        )
    limit = latency.measure_and_predict(frame).ms if limit_ms is None else limit_ms
    size = (frame.input_width, frame.input_height)
    bounds = MoveBounds(layers=layers, image=size)
    search = EntropySearch(Budget(layers=layers, latency_ms=limit), bounds, size, form, steps=steps, pareto=True)
    start = seed_of(frame.backbone)
    rng = streams.zero_shot(seed)
    measured = _random_detectors(frame, start, bounds, rng)
    tell(f"measuring the blocks of {len(measured)} random backbones")
    fitted = fit_super_block_latency(measured, latency)
    began = time.monotonic()
    first = maximum_entropy_search(start, search, rng, fitted)
    searched_s = time.monotonic() - began
    checked = [_detector(frame, first.spec(row)) for row in _by_spread(first)[:_CHECKED]]
    tell(f"measuring the blocks of the {len(checked)} best so far")
    fitted = fit_super_block_latency([*measured, *(d for d in checked if d not in measured)], latency)
    began = time.monotonic()
    last = maximum_entropy_search(start, search, rng, fitted)
    searched_s += time.monotonic() - began
    candidates = tuple(_candidate(frame, last, row) for row in _by_spread(last)[:_LISTED])
    tell(
        f"{2 * search.steps:,} backbones scored in {searched_s:.1f} s; the fit over blocks is off by "
        f"{fitted.relative_error:.1%} (root mean square, detectors left out)"
    )
    return ZeroShotResult(candidates, limit, 2 * search.steps, searched_s, fitted.relative_error)


def _random_detectors(
    frame: Architecture, seed: SuperBlockSpec, bounds: MoveBounds, rng: np.random.Generator
) -> list[Architecture]:
    """The seed, and ends of random walks from it, spread evenly over multiply-adds."""
    start = SuperBlockPopulation.copies(seed, _WALKS)
    walked = start
    for step in range(_LONGEST_WALK):
        moved, _ = mutate_super_blocks(walked, bounds, rng)
        # walks differ in length
        going = np.arange(_WALKS) % _LONGEST_WALK >= step
        walked = _chosen(going, moved, walked)
    cost = population_cost(walked, bounds.image)
    base = population_cost(start.take(slice(0, 1)), bounds.image).multiply_adds[0]
    usable = np.flatnonzero((cost.layers <= bounds.layers) & (cost.multiply_adds <= 3 * base))
    order = usable[np.argsort(cost.multiply_adds[usable], kind="stable")]
    rows = order[np.linspace(0, len(order) - 1, min(_CALIBRATION, len(order))).astype(int)] if len(order) else order
    specs = dict.fromkeys([seed, *(walked.spec(int(row)) for row in rows)])
    return [_detector(frame, spec) for spec in specs]


def _chosen(mask: np.ndarray, yes: SuperBlockPopulation, no: SuperBlockPopulation) -> SuperBlockPopulation:
    rows = np.where(mask, len(no) + np.arange(len(yes)), np.arange(len(no)))
    return no.joined(yes).take(rows)


def _by_spread(found: Found) -> list[int]:
    """Rows of the highest entropy first, then of the front by hypervolume contribution, then of the layers behind."""
    if found.latency_ms is None:
        raise ValueError("a front needs a latency")
    points = as_points(list(zip(found.entropy.tolist(), found.latency_ms.tolist(), strict=True)))
    layers = front_layers(points)
    front = np.flatnonzero(layers == 0)
    added = front[spread(points[front], _LISTED)].tolist()
    order = [0, *(row for row in added if row != 0)]
    behind = np.lexsort((np.arange(len(layers)), layers)).tolist()
    return [*order, *(row for row in behind if row not in set(order))]


def _candidate(frame: Architecture, found: Found, row: int) -> ZeroShotCandidate:
    if found.latency_ms is None:
        raise ValueError("a candidate needs a latency")
    return ZeroShotCandidate(
        str(_detector(frame, found.spec(row))),
        float(found.entropy[row]),
        float(found.latency_ms[row]),
        int(found.cost.multiply_adds[row]),
        int(found.cost.parameters[row]),
        int(found.cost.layers[row]),
    )


def _detector(frame: Architecture, backbone: SuperBlockSpec) -> Architecture:
    return replace(frame, backbone=backbone)


def _read(file: Path) -> ZeroShotResult:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        candidates = tuple(ZeroShotCandidate(**candidate) for candidate in document.pop("candidates"))
        return ZeroShotResult(candidates, **document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{file} must hold a zero-shot search's result, but reading it failed: {error!r}"
        ) from error
