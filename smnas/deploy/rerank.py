"""The ranking of a run for a device elsewhere, from what its latency table holds by now; nothing is trained."""

from dataclasses import replace
from pathlib import Path

from smnas.deploy.request import digest_of, file_key
from smnas.latency.prediction import LatencyFailedError, LatencyPredictor
from smnas.search.ranking.changes import CHANGED
from smnas.search.ranking.ranking import Ranking, RankingRow, rank, read_ranking, write_ranking
from smnas.search.study.candidate import Candidate
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.settings import SearchSettings
from smnas.space.architecture import Architecture

__all__ = ["rerank"]


def rerank(folder: Path, settings: SearchSettings, predictor: LatencyPredictor, before: Ranking | None) -> Ranking:
    """Predict every trained detector anew, take its end-to-end latency from the table, and rank again.

    An exported file's own measurement counts for more than that of the same detector with fresh weights.

    Args:
        folder: Run folder of a search whose device is elsewhere, with a ranking.
        settings: Its settings.
        predictor: From the device's rows.
        before: Finished ranking to list changes against; None for a search that has only just ended.

    Returns:
        The ranking as written.
    """
    last = read_ranking(folder)
    models = {row.architecture: folder / row.model for row in last.rows if row.model is not None}
    failed: dict[str, str] = {}
    candidates = [_predicted(c, predictor, failed) for c in read_candidates(folder, settings)]
    notes = [*last.notes, *(note for note in (before or last).notes if note.startswith(CHANGED))]
    notes += [f"{name} does not run on {settings.device}: {reason}" for name, reason in failed.items()]
    found = rank(candidates, settings.latency_ms, (), settings.max_parameters)
    rows = tuple(_measured(row, predictor, models.get(row.architecture)) for row in found.rows)
    return write_ranking(folder, settings, Ranking(rows, None, notes=tuple(dict.fromkeys(notes))), since=before)


def _predicted(candidate: Candidate, predictor: LatencyPredictor, failed: dict[str, str]) -> Candidate:
    """The candidate with its latency as predicted now, or failed where it turned out not to run there."""
    if candidate.state != "complete":
        return candidate
    try:
        row = predictor.end_to_end_row(candidate.architecture)
        if row is not None and row.status == "failed":
            raise LatencyFailedError(row.reason)
        found = predictor.predict(candidate.architecture)
    except LatencyFailedError as error:
        failed[str(candidate.architecture)] = str(error)
        return replace(candidate, state="failed", reason=str(error))
    return candidate.with_latency(found, elsewhere=True)


def _measured(row: RankingRow, predictor: LatencyPredictor, model: Path | None) -> RankingRow:
    whole = predictor.end_to_end_row(Architecture.parse(row.architecture))
    if model is not None and model.is_file():
        whole = predictor.rows.get(file_key(row.architecture, digest_of(model)), whole)
    if whole is None:
        return row
    return replace(
        row,
        measured_latency_ms=whole.median_ms,
        measured_latency_low_ms=whole.low_ms,
        measured_latency_high_ms=whole.high_ms,
    )
