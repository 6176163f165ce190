"""Drafts: candidates before they are trained, measured and judged by what is known without training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from profiler.errors import UserError, one_line
from smnas.latency.prediction import LatencyFailedError
from smnas.search.context import PredictLatency
from smnas.search.pruning import why_beaten
from smnas.search.ranking.notes import OVER_LIMIT, TOO_LARGE
from smnas.search.strategies.choices import DetectorChoices
from smnas.search.study.candidate import Candidate, Complexity
from smnas.search.study.settings import SearchSettings
from smnas.space.architecture import Architecture
from smnas.space.preset import Space, parts

__all__ = ["Judge", "check_size_limit"]

_WHATEVER_THEIR_SIZE = ("baseline", "promotion", "warm-start")


@dataclass(frozen=True)
class Judge:
    """Cheap objectives first: only what is fast and small enough, and not beaten already, will be trained.

    Attributes:
        settings: The search's limits.
        latency: Predicts end-to-end latency.
        complexity: Gives a detector its parameters and FLOPs.
    """

    settings: SearchSettings
    latency: PredictLatency
    complexity: Callable[[Architecture], Complexity]

    def measured(self, draft: Candidate) -> Candidate:
        """The draft with its size and latency; failed where it has none, pruned where it is too large, with its reason.

        Its size costs nothing to know, its latency perhaps minutes, so the size comes first. The baseline, what resumes
        and what another run trained are there whatever their size: to compare with, and to learn from.
        """
        try:
            size = self.complexity(draft.architecture)
        except UserError as error:  # the model builder's way to refuse
            return replace(draft, state="failed", reason=one_line(error))
        draft, most = replace(draft, parameters=size.parameters, flops=size.flops), self.settings.max_parameters
        if most is not None and size.parameters > most and draft.origin not in _WHATEVER_THEIR_SIZE:
            reason = f"{TOO_LARGE}: {size.parameters:,} parameters, the limit is {most:,}"
            return replace(draft, state="pruned", reason=reason)
        try:
            latency = self.latency(draft.architecture)
        except LatencyFailedError as error:
            return replace(draft, state="failed", reason=one_line(error))
        return draft.with_latency(latency, elsewhere=self.settings.elsewhere)

    def judged(self, draft: Candidate, trained: Sequence[Candidate]) -> Candidate:
        """The measured draft, pruned where it need not be trained; the baseline and what resumes always are."""
        if draft.state != "running" or draft.origin in ("baseline", "promotion"):
            return draft
        reason = self._why_not(draft, trained)
        return draft if reason is None else replace(draft, state="pruned", reason=reason)

    def is_small_enough(self, architecture: Architecture) -> bool:
        """Whether it is within the size limit; what can not be built is left to the loop."""
        most = self.settings.max_parameters
        try:
            return most is None or self.complexity(architecture).parameters <= most
        except UserError:
            return True

    def is_within_limits(self, architecture: Architecture) -> bool:
        """Whether it is small, and predicted to be fast enough with the limit's tolerance; without a latency it is."""
        if not self.is_small_enough(architecture):
            return False
        if (slowest := self.settings.slowest_ms) is None:
            return True
        try:
            latency = self.latency(architecture)
            return (latency.high_ms if self.settings.elsewhere else latency.ms) <= slowest
        except LatencyFailedError:
            return True

    def _why_not(self, draft: Candidate, trained: Sequence[Candidate]) -> str | None:
        slowest, limited_ms = self.settings.slowest_ms, draft.limited_ms
        if slowest is not None and limited_ms > slowest:
            if self.settings.elsewhere:
                return f"{OVER_LIMIT}: up to {limited_ms:.2f} ms by its interval, the limit is {slowest:.2f} ms"
            return f"{OVER_LIMIT}: {limited_ms:.2f} ms, the limit with its tolerance is {slowest:.2f} ms"
        if not self.settings.partial_order:
            return None
        return why_beaten(draft.architecture, draft.point[1], trained, self.settings.partial_order_margin)


def check_size_limit(space: Space, most: int, parameters: Callable[[Architecture], int]) -> None:
    """Refuse a size limit that no detector of the space keeps, before anything is measured or trained.

    Coordinate descent over the genes, from the baseline, until a detector is small enough.

    Raises:
        UserError: the smallest detector that it finds is larger.
    """
    choices, best = DetectorChoices(space), space.baseline_architecture
    sizes = {parts(best)[:-1]: parameters(best)}  # whatever the input
    least, before = sizes[parts(best)[:-1]], math.inf
    while most < least < before:
        before = least
        for place, gene in enumerate(choices.genes):
            genes = choices.encode(best)
            for value in range(gene.size):
                design = choices.decode((*genes[:place], value, *genes[place + 1 :]))
                if design is None or parts(design)[:-1] in sizes:
                    continue
                try:
                    sizes[parts(design)[:-1]] = size = parameters(design)
                except UserError:  # the model builder's way to refuse
                    continue
                if size < least:
                    best, least = design, size
                if least <= most:
                    return
    if least > most:
        raise UserError(
            f"--max-parameters must allow a detector of {space.name}, of which the smallest found has {least:,} "
            f"parameters, but got {most:,}"
        )
