"""The search's loop: baseline, structural stage, modular stage, final phase, ranking.

Candidates come in generations: those of one are proposed before any of them is trained, so that they can be trained at
once. Every trial's random numbers come from ``numpy.random.default_rng([seed, trial number])`` and every decision is a
function of the trials of earlier generations, so neither a kill nor the number of workers changes where a search goes.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from profiler.errors import UserError, one_line
from smnas.latency.detector_latency import LatencyFailedError
from smnas.scoring.base import AP, Score, ScoringProgress
from smnas.scoring.by_name import quick_score
from smnas.scoring.workers.processes import Job, ScorerPool
from smnas.search.context import SearchContext
from smnas.search.progress import SearchEvent, SearchProgress
from smnas.search.pruning import why_beaten
from smnas.search.ranking.finalists import finalists
from smnas.search.ranking.notes import OVER_LIMIT, PRELIMINARY, TOO_LARGE, search_notes
from smnas.search.ranking.ranking import Ranking, rank, read_ranking, same_trainings, write_ranking
from smnas.search.strategies.base import SearchStage, Strategy
from smnas.search.strategies.by_name import AnyStrategy, get_strategy
from smnas.search.strategies.prior import with_prior
from smnas.search.study.candidate import Candidate, Complexity, Proposal, StageName
from smnas.search.study.optuna_study import Study
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import prepare_run_folder
from smnas.search.study.warm_start import copy_training, warm_candidates
from smnas.search.time_budget import Clock
from smnas.space.architecture import Architecture

__all__ = ["run_search"]

# A stage whose proposals all fail or are over the latency limit must end: after this many proposals, and after this
# many failures, for each training that it was to make.
_PROPOSALS_PER_TRAINING = 30
_FAILURES_PER_TRAINING = 1
_LEAST_FAILURES = 5
_RANKING_EVERY_S = 5.0
_RANKING_SHARE = 0.05  # of the time, at most: ranking takes longer the more there is to rank


def run_search(
    context: SearchContext,
    *,
    scorers: ScorerPool,
    complexity: Callable[[Architecture], Complexity],
    trainers: ScorerPool | None = None,
    strategy: AnyStrategy | None = None,
    on_event: Callable[[SearchEvent], None] | None = None,
    on_training: Callable[[int, ScoringProgress], None] | None = None,
) -> Ranking:
    """Run a search to its end, or resume a killed one where it stopped.

    Args:
        context: What to search, where and for how long. Its folder is made, or checked against the settings if it
            exists; its latency must be there. With a time limit nothing more is proposed that is not expected to be
            trained, and the final phase with it, in time; a stage may use its fraction of the time only. A search that
            stopped so resumes when it is run again.
        scorers: Score architectures, several at once where the pool has workers.
        complexity: Gives a detector its parameters and FLOPs.
        trainers: Give the final phase its AP, where the search's scorer gives another metric; else the scorers do.
        strategy: One's own; by default the one that the settings name.
        on_event: Called after every trial and before every training run.
        on_training: Called with a trial's number, for progress inside its training run.

    Returns:
        The ranking as it is written to ``ranking.json``.

    Raises:
        RunFolderError: the folder is of another version, of other settings, or in use.
        UnknownStrategyError: the settings name no known strategy.
        KeyboardInterrupt: passed on; the folder resumes.
    """
    settings = context.settings
    kind = get_strategy(strategy or settings.strategy)  # a wrong name fails before a folder is made
    clock = None if context.time_limit_s is None else Clock(context.time_limit_s, settings, (trainers or scorers).size)
    prepare_run_folder(context.folder, settings)
    with Study(context.folder, settings.storage, settings.study, settings.metric) as study:
        for pool in {id(pool): pool for pool in (scorers, trainers or scorers)}.values():
            pool.prepare(context)
        search = _Search(
            context, study, kind.make(context), scorers, trainers or scorers, complexity, clock, on_event, on_training
        )
        return search.run()


class _Search:
    """One run of the loop: what it works on, and the steps. The state is the study's."""

    def __init__(
        self,
        context: SearchContext,
        study: Study,
        strategy: Strategy,
        scorers: ScorerPool,
        trainers: ScorerPool,
        complexity: Callable[[Architecture], Complexity],
        clock: Clock | None,
        on_event: Callable[[SearchEvent], None] | None,
        on_training: Callable[[int, ScoringProgress], None] | None,
    ) -> None:
        if context.latency is None:
            raise ValueError("a search needs a latency predictor, but its context has none")
        self.folder = context.folder
        self.settings = settings = context.settings
        self.space = context.space
        self.latency = context.latency
        self.study = study
        self.scorers = scorers
        self.trainers = trainers
        self.complexity = complexity
        self.clock = clock
        self.on_event = on_event
        self.on_training = on_training
        if settings.prior is not None and (prior := quick_score(settings.prior)) is not None:
            strategy = with_prior(strategy, prior, self._is_fast_enough, settings.prior_draws)
        self.strategy = strategy
        self._progress = SearchProgress(settings, self.trainers.size, study.candidates)
        self._planned = {stage.name: stage.trials for stage in strategy.stages}
        self._next_ranking = -math.inf

    def run(self) -> Ranking:
        """All stages in order; each picks up where the study stands."""
        self._warm_up()
        if not any(c.stage == "baseline" for c in self.study.candidates):
            self._look_at(Proposal(self.space.baseline_architecture, "baseline"), "baseline", 0)
        if any(c.stage == "baseline" for c in self.study.interrupted()):
            self._score_running(self.scorers)
        for stage in self.strategy.stages:
            self._run_stage(stage)
        self._run_final()
        return self._finished_before() or self._write(finished=True)

    def _warm_up(self) -> None:
        """Begin with the training runs of other runs; those of a killed process that are there already are not added.

        Only before anything is proposed: a resumed search needs those runs no more, wherever they have gone, and what
        they have trained since does not change where it goes.
        """
        if any(c.own_epochs for c in self.study.candidates):
            return
        there = {c.architecture for c in self.study.candidates if c.stage in ("baseline", "warm")}
        for source, folder in warm_candidates(self.settings, self.space):
            if source.architecture in there:
                continue
            measured = self._measured(replace(source, number=len(self.study.candidates), state="running"))
            if measured.state != "running":
                continue  # it has no latency on this device
            training = (source.architecture, source.seed, source.epochs)
            copy_training(RunFolder(folder).training(*training), RunFolder(self.folder).training(*training))
            self._tell(self.study.add(replace(measured, state="complete")))

    def _finished_before(self) -> Ranking | None:
        """The ranking of an earlier, finished run, if nothing was trained since: the export may have worked on it."""
        if not RunFolder(self.folder).ranking.exists():
            return None
        before = read_ranking(self.folder)
        fresh = rank(self.study.candidates, self.settings.latency_ms)
        return before if PRELIMINARY not in before.notes and same_trainings(before, fresh) else None

    def _run_stage(self, stage: SearchStage) -> None:
        while True:
            self._propose(stage)
            if not any(c.stage == stage.name for c in self.study.interrupted()):
                return
            self._score_running(self.scorers)

    def _propose(self, stage: SearchStage) -> None:
        """Fill the stage's generation, also one that a killed process left half filled."""
        generation, members = self._generation(stage)
        if any(c.state != "running" for c in members):
            return  # it was full, or there was nothing more to propose, when its first member was trained
        missing = self.settings.generation - len(members)
        while missing and self._wants_more(stage):
            number = len(self.study.candidates)
            proposal = stage.ask(self.study.candidates, np.random.default_rng([self.settings.seed, number]))
            if proposal is None:
                return
            missing -= self._look_at(proposal, stage.name, generation)

    def _generation(self, stage: SearchStage) -> tuple[int, list[Candidate]]:
        """The generation to fill or to train, and its members: the last one as long as one of them runs."""
        last = self.study.candidates.generation
        members = [c for c in self.study.candidates.members if c.stage == stage.name]
        return (last, members) if any(c.state == "running" for c in members) else (last + 1, [])

    def _wants_more(self, stage: SearchStage) -> bool:
        so_far = self.study.candidates.tally(stage.name)
        return (
            not self._time_is_up(stage)
            and so_far.epochs < stage.trials * self.settings.epochs
            and so_far.trials < _PROPOSALS_PER_TRAINING * stage.trials
            and so_far.failed < max(_FAILURES_PER_TRAINING * stage.trials, _LEAST_FAILURES)
        )

    def _time_is_up(self, stage: SearchStage) -> bool:
        if self.clock is None:
            return False
        until = self.strategy.stages[: self.strategy.stages.index(stage) + 1]
        share = sum(s.trials for s in until) / max(sum(s.trials for s in self.strategy.stages), 1)
        return self.clock.is_up(share, self.study.candidates)

    def _look_at(self, proposal: Proposal, stage: StageName, generation: int) -> bool:
        """Cheap objective first: only what is fast enough and not beaten already will be trained. Whether it will."""
        draft = Candidate(
            number=len(self.study.candidates),
            architecture=proposal.architecture,
            stage=stage,
            origin=proposal.origin,
            parent=proposal.parent,
            state="running",
            seed=self.settings.seed,
            epochs=self.settings.epochs,
            start_epoch=self._reached(proposal),
            stop_epoch=proposal.stop_epoch,
            metric=self.settings.metric,
        )
        draft = self._measured(draft)
        if draft.state == "running" and stage != "baseline" and proposal.origin != "promotion":
            reason = self._why_not(draft)
            if reason is not None:
                draft = replace(draft, state="pruned", reason=reason)
        if draft.state == "running":
            self.study.add(replace(draft, generation=generation))
            return True
        self._tell(self.study.add(draft))
        return False

    def _reached(self, proposal: Proposal) -> int:
        """Epochs that a promoted architecture has trained already; its checkpoint goes on from there."""
        if proposal.origin != "promotion":
            return 0
        return self.study.candidates.latest(proposal.architecture).reached_epoch

    def _measured(self, draft: Candidate) -> Candidate:
        try:
            size = self.complexity(draft.architecture)
        except UserError as error:  # the model builder's way to refuse
            return replace(draft, state="failed", reason=one_line(error))
        try:
            latency = self.latency.predict(draft.architecture)
        except LatencyFailedError as error:
            return replace(draft, state="failed", reason=one_line(error))
        return replace(
            draft,
            latency_ms=latency.ms,
            latency_low_ms=latency.low_ms,
            latency_high_ms=latency.high_ms,
            latency_calibrated=latency.calibrated,
            parameters=size.parameters,
            flops=size.flops,
        )

    def _why_not(self, draft: Candidate) -> str | None:
        limit, tolerance = self.settings.latency_ms, self.settings.latency_tolerance
        latency_ms = draft.point[1]
        if limit is not None and latency_ms > limit * tolerance:
            return f"{OVER_LIMIT}: {latency_ms:.2f} ms, the limit with its tolerance is {limit * tolerance:.2f} ms"
        most = self.settings.max_parameters
        if most is not None and draft.parameters is not None and draft.parameters > most:
            return f"{TOO_LARGE}: {draft.parameters:,} parameters, the limit is {most:,}"
        if not self.settings.partial_order:
            return None
        trained = self.study.candidates.whole
        return why_beaten(draft.architecture, latency_ms, trained, self.settings.partial_order_margin)

    def _is_fast_enough(self, architecture: Architecture) -> bool:
        """Whether its predicted latency is within the limit with its tolerance; what has none is left to the loop."""
        limit = self.settings.latency_ms
        if limit is None:
            return True
        try:
            return self.latency.predict(architecture).ms <= limit * self.settings.latency_tolerance
        except LatencyFailedError:
            return True

    def _score_running(self, pool: ScorerPool) -> None:
        """Score what is in the study as running. Every result is stored as soon as it is there."""
        began: dict[int, float] = {}

        def start(job: Job) -> None:
            began[job.number] = time.monotonic()
            self._tell(self.study.candidates[job.number])

        def progress(job: Job, far: ScoringProgress) -> None:
            if self.on_training is not None:
                self.on_training(job.number, far)

        jobs = [
            Job(
                c.number,
                c.architecture,
                c.seed,
                c.epochs,
                RunFolder(self.folder).training(c.architecture, c.seed, c.epochs),
                c.stop_epoch,
            )
            for c in self.study.interrupted()
        ]
        for job, outcome in pool.score_all(jobs, start, progress):
            candidate = self.study.candidates[job.number]
            if isinstance(outcome, Score):
                finished = self._scored(candidate, outcome, began[job.number])
            else:
                finished = _failed(candidate, one_line(outcome), began[job.number])
            self._tell(self.study.finish(finished))
            if finished.state == "complete" and time.monotonic() >= self._next_ranking:
                self._write(finished=False)

    def _scored(self, candidate: Candidate, score: Score, began: float) -> Candidate:
        if not math.isfinite(score.value):
            return _failed(candidate, f"the score is not finite: {score.value}", began)
        inside = score.checkpoint is not None and score.checkpoint.is_relative_to(self.folder)
        return replace(
            candidate,
            state="complete",
            score=float(score.value),
            metrics={name: float(value) for name, value in score.metrics.items()},
            seconds=float(score.seconds),
            checkpoint=score.checkpoint.relative_to(self.folder).as_posix() if inside and score.checkpoint else None,
        )

    def _run_final(self) -> None:
        if not self.settings.final_epochs:
            return
        chosen = finalists(self.study.candidates, self.settings.top, self.settings.latency_ms)
        # Seed by seed, so that a search that is stopped here has compared everybody with fewer seeds.
        for seed in range(self.settings.seed, self.settings.seed + self.settings.final_seeds):
            for source in chosen:
                if not any(_is_final(c, source.architecture, seed) for c in self.study.candidates):
                    self.study.add(self._final_draft(source, seed))
        self._score_running(self.trainers)

    def _final_draft(self, source: Candidate, seed: int) -> Candidate:
        return replace(
            source,
            number=len(self.study.candidates),
            stage="final",
            origin="ranking",
            parent=None,
            generation=None,
            state="running",
            seed=seed,
            epochs=self.settings.final_epochs,
            start_epoch=0,
            stop_epoch=None,
            score=None,
            metric=AP,
            metrics={},
            seconds=None,
            checkpoint=None,
        )

    def _tell(self, candidate: Candidate) -> None:
        if self.on_event is not None:
            self.on_event(self._progress.event(candidate))

    def _write(self, finished: bool) -> Ranking:
        began = time.monotonic()
        candidates: Sequence[Candidate] = self.study.candidates
        stopped = () if self.clock is None else self.clock.notes
        notes = (*stopped, *search_notes(candidates, self.settings, self._planned, finished))
        ranking = rank(candidates, self.settings.latency_ms, notes)
        ranking = write_ranking(self.folder, self.settings, ranking)
        now = time.monotonic()
        self._next_ranking = now + max(_RANKING_EVERY_S, (now - began) / _RANKING_SHARE)
        return ranking


def _failed(candidate: Candidate, reason: str, began: float) -> Candidate:
    return replace(candidate, state="failed", reason=reason, seconds=time.monotonic() - began)


def _is_final(candidate: Candidate, architecture: Architecture, seed: int) -> bool:
    return candidate.stage == "final" and candidate.seed == seed and candidate.architecture == architecture
