"""The search's loop: baseline, structural stage, modular stage, final phase, ranking.

Candidates come in generations: those of one are proposed before any of them is trained, so that they can be trained at
once. Every trial's random numbers come from :func:`smnas.space.streams.trial`, and every decision is a function of the
trials of earlier generations, so neither a kill nor the number of workers changes where a search goes.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from profiler.errors import one_line
from smnas.scoring.base import Score, ScoringFailedError, ScoringProgress
from smnas.scoring.by_name import quick_score
from smnas.scoring.workers.processes import Job, ScorerPool
from smnas.search.context import SearchContext
from smnas.search.drafts import Judge
from smnas.search.progress import SearchEvent, SearchProgress
from smnas.search.ranking.finalists import final_drafts
from smnas.search.ranking.ranking import Ranking
from smnas.search.ranking.writer import RankingWriter
from smnas.search.strategies.base import SearchStage, Strategy
from smnas.search.strategies.by_name import AnyStrategy, get_strategy
from smnas.search.strategies.prior import with_prior
from smnas.search.study.candidate import Candidate, Complexity, Proposal, StageName
from smnas.search.study.history import History, Tally
from smnas.search.study.optuna_study import Study
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import prepare_run_folder
from smnas.search.study.warm_start import copy_training, warm_candidates
from smnas.search.time_budget import Clock
from smnas.space import streams
from smnas.space.architecture import Architecture

__all__ = ["run_search"]

# A stage whose proposals all fail or are over the latency limit must end: after this many proposals, and after this
# many failures, for each training run that it was to make.
_PROPOSALS_PER_TRAINING = 30
_FAILURES_PER_TRAINING = 1
_LEAST_FAILURES = 5


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
    settings, latency, trainers = context.settings, context.latency, trainers or scorers
    if latency is None:
        raise ValueError("a search needs a latency predictor, but its context has none")
    kind = get_strategy(strategy or settings.strategy)  # a wrong name fails before a folder is made
    clock = Clock(math.inf if context.time_limit_s is None else context.time_limit_s, settings, trainers.size)
    prepare_run_folder(context.folder, settings)
    with Study(context.folder, settings.storage, settings.study, settings.metric) as study:
        for pool in (scorers, trainers) if trainers is not scorers else (scorers,):
            pool.prepare(context)
        judge = Judge(settings, latency, complexity)
        found = kind.make(replace(context, is_small_enough=judge.is_small_enough))
        if settings.prior is not None and (prior := quick_score(settings.prior)) is not None:
            found = with_prior(found, prior, judge.is_within_limits, settings.prior_draws)
        planned = {stage.name: stage.trials for stage in found.stages}
        writer = RankingWriter(context.folder, settings, planned)
        progress = SearchProgress(settings, trainers.size, study.candidates)
        search = _Search(
            context, study, found, judge, clock, writer, progress, on_event or _ignore, on_training or _ignore
        )
        search.warm_up()
        search.score(scorers, search.baseline())
        for stage in found.stages:
            while search.propose(stage):
                search.score(scorers, study.interrupted())
        for draft in final_drafts(study.candidates, settings):
            study.add(draft)
        search.score(trainers, study.interrupted())
        return writer.final(study.candidates, clock.notes)


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class _Search:
    """One run of the loop: what it works with, and its steps. The state is the study's."""

    context: SearchContext
    study: Study
    strategy: Strategy
    judge: Judge
    clock: Clock
    writer: RankingWriter
    progress: SearchProgress
    on_event: Callable[[SearchEvent], None]
    on_training: Callable[[int, ScoringProgress], None]

    def warm_up(self) -> None:
        """Begin with the training runs of other runs; those of a killed process that are there already are not added.

        Only before anything is proposed: a resumed search needs those runs no more, wherever they have gone, and what
        they have trained since does not change where it goes.
        """
        candidates = self.study.candidates
        if any(c.own_epochs for c in candidates):
            return
        there = {c.architecture for c in candidates if c.stage in ("baseline", "warm")}
        for source, folder in warm_candidates(self.context.settings, self.context.space):
            if source.architecture in there:
                continue
            measured = self.judge.measured(replace(source, number=len(candidates), state="running"))
            if measured.state != "running":
                continue  # it has no latency on this device
            training = (source.architecture, source.seed, source.epochs)
            copy_training(RunFolder(folder).training(*training), RunFolder(self.context.folder).training(*training))
            self._report(self.study.add(replace(measured, state="complete")))

    def baseline(self) -> Sequence[Candidate]:
        """The baseline, where it is still to be scored."""
        if not any(c.stage == "baseline" for c in self.study.candidates):
            self._add(Proposal(self.context.space.baseline_architecture, "baseline"), "baseline", 0)
        waiting = self.study.interrupted()
        return waiting if any(c.stage == "baseline" for c in waiting) else ()

    def propose(self, stage: SearchStage) -> bool:
        """Fill the stage's generation, also one that a killed process left half filled. Whether any is to be scored."""
        candidates, settings = self.study.candidates, self.context.settings
        generation, members = _generation(candidates, stage.name)
        # It was full, or there was nothing more to propose, when its first member was trained.
        missing = 0 if any(c.state != "running" for c in members) else settings.generation - len(members)
        while missing and self._wants_more(stage):
            proposal = stage.ask(candidates, streams.trial(settings.seed, len(candidates)))
            if proposal is None:
                break
            missing -= self._add(proposal, stage.name, generation)
        return any(c.stage == stage.name for c in self.study.interrupted())

    def _wants_more(self, stage: SearchStage) -> bool:
        stages, candidates = self.strategy.stages, self.study.candidates
        until = sum(s.trials for s in stages[: stages.index(stage) + 1])
        if self.clock.is_up(until / max(sum(s.trials for s in stages), 1), candidates):
            return False
        return _has_budget(candidates.tally(stage.name), stage.trials, self.context.settings.epochs)

    def _add(self, proposal: Proposal, stage: StageName, generation: int) -> bool:
        """Judge a proposal and keep it as a trial. Whether it will be scored."""
        candidates, settings = self.study.candidates, self.context.settings
        resumed = candidates.latest(proposal.architecture) if proposal.origin == "promotion" else None
        draft = Candidate(
            number=len(candidates),
            architecture=proposal.architecture,
            stage=stage,
            origin=proposal.origin,
            parent=proposal.parent,
            state="running",
            seed=settings.seed,
            epochs=settings.epochs,
            start_epoch=0 if resumed is None else resumed.reached_epoch,
            stop_epoch=proposal.stop_epoch,
            metric=settings.metric,
        )
        draft = self.judge.judged(self.judge.measured(draft), candidates.whole)
        if draft.state == "running":
            self.study.add(replace(draft, generation=generation))
            return True
        self._report(self.study.add(draft))
        return False

    def score(self, pool: ScorerPool, waiting: Iterable[Candidate]) -> None:
        """Score running trials. Every result is stored as soon as it is there."""
        candidates, folder = self.study.candidates, RunFolder(self.context.folder)
        began: dict[int, float] = {}

        def start(job: Job) -> None:
            began[job.number] = time.monotonic()
            self._report(candidates[job.number])

        waiting = tuple(waiting)
        automatic = self.context.settings.final_schedule == "auto"
        jobs = [
            Job(
                c.number,
                c.architecture,
                c.seed,
                c.epochs,
                folder.training(c.architecture, c.seed, c.epochs),
                c.stop_epoch,
                final=c.stage == "final",
                time_limit_s=self.clock.each_s(len(waiting)) if automatic and c.stage == "final" else None,
            )
            for c in waiting
        ]
        for job, outcome in pool.score_all(jobs, start, lambda job, far: self.on_training(job.number, far)):
            ended = self._ended(candidates[job.number], outcome, began[job.number])
            self._report(self.study.finish(ended))
            if ended.state == "complete":
                self.writer.preliminary(candidates, self.clock.notes)

    def _ended(self, candidate: Candidate, outcome: Score | ScoringFailedError, began: float) -> Candidate:
        if not isinstance(outcome, Score) or not math.isfinite(outcome.value):
            reason = f"the score is not finite: {outcome.value}" if isinstance(outcome, Score) else one_line(outcome)
            return replace(candidate, state="failed", reason=reason, seconds=time.monotonic() - began)
        checkpoint, folder = outcome.checkpoint, self.context.folder
        inside = checkpoint is not None and checkpoint.is_relative_to(folder)
        return replace(
            candidate,
            state="complete",
            score=float(outcome.value),
            metrics={name: float(value) for name, value in outcome.metrics.items()},
            seconds=float(outcome.seconds),
            stop_epoch=outcome.epochs if outcome.stop_reason else candidate.stop_epoch,
            reason=outcome.stop_reason,
            checkpoint=checkpoint.relative_to(folder).as_posix() if inside and checkpoint else None,
        )

    def _report(self, candidate: Candidate) -> None:
        self.on_event(self.progress.event(candidate))


def _generation(candidates: History, stage: StageName) -> tuple[int, list[Candidate]]:
    """The generation to fill or to train, and its members: the last one as long as one of them runs."""
    members = [c for c in candidates.members if c.stage == stage]
    last = candidates.generation
    return (last, members) if any(c.state == "running" for c in members) else (last + 1, [])


def _has_budget(so_far: Tally, trials: int, epochs: int) -> bool:
    return (
        so_far.epochs < trials * epochs
        and so_far.trials < _PROPOSALS_PER_TRAINING * trials
        and so_far.failed < max(_FAILURES_PER_TRAINING * trials, _LEAST_FAILURES)
    )
