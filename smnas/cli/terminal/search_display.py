"""Display of a running search: a line for every finished trial, and on a terminal live progress below."""

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from smnas.cli.terminal.console import Output, show_lines, show_table
from smnas.cli.terminal.progress import PhaseSteps
from smnas.durations import duration

if TYPE_CHECKING:
    from smnas.scoring.base import ScoringProgress
    from smnas.search.progress import SearchEvent
    from smnas.search.ranking.ranking import Ranking

__all__ = ["SearchDisplay", "front_line", "show_ranking", "trial_line"]

_SECONDS_BETWEEN_LINES = 60.0  # without a terminal, between lines of finished trials


class SearchDisplay(AbstractContextManager["SearchDisplay"]):
    """Context manager that displays a search: its trials and training runs, and the phases before and after."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._phases = PhaseSteps(output)
        self._bars: Progress | None = None
        self._search: TaskID | None = None
        self._training_runs: dict[int, TaskID] = {}
        self._last_line = time.monotonic()
        self._front: tuple[tuple[float, float], ...] = ()
        if output.messages.is_terminal and not output.quiet:
            columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, TextColumn("{task.fields[text]}"), console=output.messages)

    def __exit__(self, *_: object) -> None:
        self._phases.close()
        if self._bars is not None:
            self._bars.stop()

    def on_progress(self, phase: str, done: float, total: float | None, text: str = "") -> None:
        """Show a phase before or after the trials; see :meth:`PhaseSteps.step`."""
        if self._bars is not None:
            self._bars.stop()  # a terminal shows one live display at a time
        self._phases.step(phase, done, total, text)

    def on_event(self, event: "SearchEvent") -> None:
        """Show that a trial began or ended."""
        if event.state != "running":
            self._output.note(trial_line(event))
        if event.stage != "final" and event.front != self._front:
            self._front = event.front
            self._output.note(front_line(event))
        if self._bars is None:
            return
        self._phases.close()
        self._bars.start()
        if self._search is None:
            self._search = self._bars.add_task("search", total=event.total, text="")
        self._bars.update(self._search, completed=event.trained, total=event.total, text=_summary(event))
        if event.state == "running":
            self._training_runs[event.number] = self._bars.add_task(event.stage, total=None, text=event.architecture)
        elif event.number in self._training_runs:
            self._bars.remove_task(self._training_runs.pop(event.number))

    def on_training(self, number: int, progress: "ScoringProgress") -> None:
        """Show the progress of a running trial's training."""
        doing = "evaluating" if progress.loss is None else f"loss {progress.loss:.3f}"
        if self._bars is None:
            now = time.monotonic()
            if now - self._last_line >= _SECONDS_BETWEEN_LINES:
                self._last_line = now
                epoch = f"epoch {progress.epoch}/{progress.epochs}"
                self._output.note(f"training {number}: {epoch}, {doing}, {progress.images_per_s:.0f} images/s")
            return
        if number not in self._training_runs:
            return
        self._bars.update(
            self._training_runs[number],
            completed=int(progress.done * progress.epochs),
            total=progress.epochs,
            text=f"{doing}  {progress.images_per_s:.0f} images/s",
        )


def trial_line(event: "SearchEvent") -> str:
    """Format a finished trial as one line."""
    latency = "" if event.latency_ms is None else f"{event.latency_ms:.2f} ms"
    result = event.state if event.score is None else f"{event.metric} {event.score:.3f}"
    tail = event.reason if event.reason else _summary(event)
    return f"{event.trained}/{event.total} {event.stage:<10} {result:<8} {latency:>10}  {event.architecture}  ({tail})"


def front_line(event: "SearchEvent") -> str:
    """Format the front so far, fastest first."""
    points = ", ".join(f"{ap:.3f} at {latency_ms:.2f} ms" for ap, latency_ms in event.front)
    return f"front so far, {event.metric}: {points}"


def _summary(event: "SearchEvent") -> str:
    parts = [f"front {len(event.front)}"]
    if event.best_score is not None:
        parts.append(f"best {event.metric} {event.best_score:.3f}")
    if event.seconds_left is not None:
        parts.append(f"{duration(event.seconds_left)} left")
    return ", ".join(parts)


def show_ranking(console: Console, ranking: "Ranking") -> None:
    """Print the ranking as a table, and the recommendation."""
    from smnas.search.ranking.recommendation import band_limits

    held_out = ranking.ap_split == "test"
    elsewhere = any(row.predicted_latency_measured is not None for row in ranking.rows)
    rows = [
        [
            row.rank,
            row.ap,
            row.ap_std,
            *([row.validation_ap] if held_out else []),
            row.exported_ap,
            row.predicted_latency_ms,
            *([] if not elsewhere else [row.predicted_latency_high_ms, _percent(row.predicted_latency_measured)]),
            row.measured_latency_ms,
            row.parameters,
            ("front " if row.on_front else "") + (row.role if row.role == "baseline" else row.stage),
            row.architecture,
        ]
        for row in ranking.rows
    ]
    predicted = ["predicted ms", *(["up to ms", "of it measured"] if elsewhere else [])]
    headings = [
        "rank",
        "AP",
        "+-",
        *(["validation AP"] if held_out else []),
        "AP of file",
        *predicted,
        "measured ms",
        "parameters",
        "",
        "architecture",
    ]
    if rows:
        show_lines(console, ranking.ap_line)
    show_table(console, headings, rows)
    if ranking.recommendation is not None:
        show_lines(console, f"recommended: {ranking.recommendation.architecture}", ranking.recommendation.reason)
        for pick in ranking.picks:
            same = pick.architecture == ranking.recommendation.architecture
            what = "the recommended detector" if same else f"{pick.architecture}: {pick.reason}"
            show_lines(console, f"{pick.name}: {what}")
    if len(ranking.bands) > 1:
        lines = [f"  {band_limits(band)}: {band.architecture}: {band.reason}" for band in ranking.bands]
        show_lines(console, "for other latency limits:", *lines)
    for found in ranking.correlations:
        tau = f"{found.tau:.2f} (Kendall's tau, {found.detectors} detectors)"
        show_lines(console, f"rank correlation of {found.what}: {tau}")
    if ranking.changes:
        rows = [
            [one.rank_before, one.rank, one.before_ms, one.kind_before, one.ms, one.kind, one.architecture]
            for one in ranking.changes
        ]
        show_table(console, ["rank was", "is", "ms was", "", "ms is", "", "changed with the table"], rows)
    show_lines(console, *(f"note: {note}" for note in ranking.notes))


def _percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{fraction:.0%}"
