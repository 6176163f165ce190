"""The ranking: which detector to deploy, as rows, as one sentence, and as ``ranking.json`` and ``ranking.csv``."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from profiler.atomic import write_atomic
from smnas.scoring.base import AP, VALIDATION_AP
from smnas.search.pareto import as_points, front_layers
from smnas.search.ranking.changes import CHANGED, LatencyChange, change_note, latency_changes
from smnas.search.ranking.correlation import Correlation, rank_correlations
from smnas.search.ranking.recommendation import (
    BandRecommendation,
    Pick,
    Recommendation,
    band_recommendations,
    is_barred,
    picks,
    recommend,
    why_nothing,
)
from smnas.search.ranking.row import RankingRow
from smnas.search.study.candidate import Candidate, in_search
from smnas.search.study.run_folder import RunFolder, RunFolderError
from smnas.search.study.settings import FORMAT_VERSION, SearchSettings

__all__ = ["Ranking", "RankingRow", "complete_ranking", "rank", "read_ranking", "same_training_runs", "write_ranking"]

NOTHING = "Nothing is recommended: "
"""How the note of a ranking begins whose detectors are all over a limit or find nothing."""

# The front and the two layers behind it are "near the front".
_LAYERS = 3


_COMPLETED = (
    "measured_latency_ms",
    "measured_latency_low_ms",
    "measured_latency_high_ms",
    "model",
    "exported_ap",
    "exported_ap50",
)
"""What the export fills in."""


@dataclass(frozen=True)
class Ranking:
    """The detectors, and what to make of them.

    Attributes:
        rows: Best first.
        recommendation: None while nothing is trained, and where a note says that nothing is recommended.
        picks: The fastest detector as good as the baseline, the recommended one, and the best of all.
        bands: The recommendation for other latency limits.
        correlations: How well the search's numbers order detectors as the final ones do.
        notes: How the search went.
        changes: What the rows that a device elsewhere has measured since changed, best detector first.
    """

    rows: tuple[RankingRow, ...]
    recommendation: Recommendation | None
    picks: tuple[Pick, ...] = ()
    bands: tuple[BandRecommendation, ...] = ()
    correlations: tuple[Correlation, ...] = ()
    notes: tuple[str, ...] = ()
    changes: tuple[LatencyChange, ...] = ()

    @property
    def ap_split(self) -> Literal["test", "validation"]:
        """The images that the AP of the final phase is of."""
        return "test" if any(row.validation_ap is not None for row in self.rows) else "validation"

    @property
    def ap_line(self) -> str:
        """What AP is of, for a reader."""
        return _AP_LINES[self.ap_split]


_AP_LINES = {
    "test": "AP of the final phase is of held-out test images, which neither the search nor the choice of an epoch has "
    "seen.",
    "validation": "AP is of the validation images, which the search and the choice of an epoch were made on.",
}


def rank(
    candidates: Sequence[Candidate],
    latency_limit_ms: float | None,
    notes: Sequence[str] = (),
    max_parameters: int | None = None,
) -> Ranking:
    """Rank everything on or near the front.

    Only AP is ranked: what was scored by another metric has a row once the final phase has trained it. Where the final
    phase trained architectures, its AP (the mean over seeds) ranks them, in front of those that have only the search's
    AP: AP of different budgets does not compare.

    Args:
        candidates: All trials of the study.
        latency_limit_ms: Latency that the recommended detector must keep; None: the baseline's.
        notes: What a reader of the ranking should know.
        max_parameters: The most that the recommended detector may have.
    """
    finals = [c for c in candidates if c.state == "complete" and c.stage == "final"]
    whole = [c for c in candidates if in_search(c) and c.metric == AP]
    search_ap = {_by_name(c): c.score for c in whole}
    final_rows = [
        replace(_row(list(group)), search_ap=search_ap.get(name))
        for name, group in groupby(sorted(finals, key=_by_name), key=_by_name)
    ]
    final_layers = front_layers(as_points([(row.ap, row.predicted_latency_ms) for row in final_rows])).tolist()
    rows = [replace(row, on_front=layer == 0) for row, layer in zip(final_rows, final_layers, strict=True)]
    retrained = {row.architecture for row in final_rows}
    baselines = {str(c.architecture) for c in candidates if c.stage == "baseline"}
    layers = front_layers(as_points([c.point for c in whole])).tolist()
    # Of a long search few are near the front: only they become rows.
    rows += [
        replace(_row([c]), on_front=layer == 0)
        for c, layer in zip(whole, layers, strict=True)
        if (0 <= layer < _LAYERS or _by_name(c) in baselines) and _by_name(c) not in retrained
    ]
    rows = [replace(row, role="baseline") if row.architecture in baselines else row for row in rows]
    return _ordered(rows, latency_limit_ms, max_parameters, notes)


def _by_name(candidate: Candidate) -> str:
    return str(candidate.architecture)


def _row(training_runs: Sequence[Candidate]) -> RankingRow:
    """The row of one architecture, from all its training runs with one budget."""
    training_runs = sorted(training_runs, key=lambda c: c.number)
    first = training_runs[0]
    aps = [c.point[0] for c in training_runs]
    ap50 = [c.metrics.get("ap50", math.nan) for c in training_runs]
    validation = [c.metrics[VALIDATION_AP] for c in training_runs if VALIDATION_AP in c.metrics]
    best = max(training_runs, key=lambda c: (c.point[0], -c.number))
    return RankingRow(
        rank=0,
        architecture=str(first.architecture),
        id=first.architecture.id,
        role="candidate",
        stage=first.stage,
        on_front=False,
        ap=fmean(aps),
        ap_std=stdev(aps) if len(aps) > 1 else None,
        ap_per_seed=tuple(aps),
        ap50=fmean(ap50) if all(map(math.isfinite, ap50)) else None,
        seeds=tuple(c.seed for c in training_runs),
        epochs=max(c.reached_epoch for c in training_runs),
        predicted_latency_ms=first.point[1],
        predicted_latency_low_ms=first.latency_low_ms,
        predicted_latency_high_ms=first.latency_high_ms,
        predicted_latency_measured=first.latency_measured,
        parameters=first.parameters,
        flops=first.flops,
        checkpoint=best.checkpoint,
        validation_ap=fmean(validation) if validation else None,
        stop_reason=best.reason,
    )


def _ordered(
    rows: Sequence[RankingRow], latency_limit_ms: float | None, max_parameters: int | None, notes: Sequence[str]
) -> Ranking:
    """Ranks by the rule of the recommendation, so that rank 1 is the recommended row."""
    notes = tuple(note for note in notes if not note.startswith(NOTHING))  # an export may have changed that
    if not rows:
        return Ranking((), None, notes=notes)
    recommendation, order = recommend(rows, latency_limit_ms, max_parameters)
    if recommendation is None:
        notes = (*notes, f"{NOTHING}{why_nothing(rows, latency_limit_ms, max_parameters)}.")
    ranked = tuple(replace(rows[index], rank=place) for place, index in enumerate(order, start=1))
    bands = band_recommendations([row for row in ranked if not is_barred(row, None, max_parameters)])
    named = picks(ranked, recommendation, latency_limit_ms, max_parameters)
    return Ranking(ranked, recommendation, named, bands, rank_correlations(ranked), notes)


def write_ranking(folder: Path, settings: SearchSettings, ranking: Ranking, since: Ranking | None = None) -> Ranking:
    """Write ``ranking.json`` and ``ranking.csv`` atomically; what an export filled in earlier is carried over.

    Args:
        folder: The run folder.
        settings: Its settings.
        ranking: Rows and notes; the rest follows.
        since: Earlier ranking whose changes are listed and noted; by default, or where nothing changed, the changes
            listed before stay.

    Returns:
        The ranking as written.
    """
    before = read_ranking(folder) if RunFolder(folder).ranking.exists() else Ranking((), None)
    exported = {row.architecture: row for row in before.rows}
    rows = [_carry(row, exported.get(row.architecture)) for row in ranking.rows]
    ranking = _ordered(rows, settings.latency_ms, settings.max_parameters, ranking.notes)
    if since is not None and (changes := latency_changes(since.rows, ranking.rows)):
        note = change_note(changes, since.recommendation, ranking.recommendation)
        notes = [*(other for other in ranking.notes if not other.startswith(CHANGED)), note]
        ranking = replace(ranking, changes=changes, notes=tuple(notes))
    else:
        ranking = replace(ranking, changes=before.changes)
    document = {
        "format_version": FORMAT_VERSION,
        "settings": settings.model_dump(mode="json"),
        "ap_split": ranking.ap_split,
        **asdict(ranking),
    }
    # allow_nan=False: a file that only Python can read is not JSON. The rows hold no NaN by construction.
    write_atomic(RunFolder(folder).ranking, json.dumps(document, indent=2, allow_nan=False) + "\n")
    write_atomic(RunFolder(folder).csv, _csv(ranking.rows))
    return ranking


def same_training_runs(a: Ranking, b: Ranking) -> bool:
    """Whether two rankings rank the same training runs, whatever an export has filled in or ordered anew since."""

    def trained(ranking: Ranking) -> set[tuple[object, ...]]:
        return {(row.architecture, row.stage, row.ap_per_seed, row.checkpoint) for row in ranking.rows}

    return trained(a) == trained(b)


def _carry(row: RankingRow, before: RankingRow | None) -> RankingRow:
    # Other weights make the exported file another model's.
    if before is None or before.checkpoint != row.checkpoint or before.ap_per_seed != row.ap_per_seed:
        return row
    return replace(row, **{name: getattr(before, name) for name in _COMPLETED if getattr(row, name) is None})


def complete_ranking(
    folder: Path, settings: SearchSettings, measured: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()
) -> Ranking:
    """Fill in what the export learned, and rank and recommend again with it.

    Args:
        folder: The run folder.
        settings: Its settings.
        measured: For architecture strings of the ranking: new values of ``model``, ``measured_latency_ms`` with
            ``_low_ms`` and ``_high_ms``, ``exported_ap`` and ``exported_ap50``.
        notes: Added to the ranking's notes where they are not there yet.

    Raises:
        RunFolderError: there is no ranking, or an architecture or a value that it does not have.
    """
    ranking = read_ranking(folder)
    unknown = [name for name in measured if name not in {row.architecture for row in ranking.rows}]
    unknown += [name for values in measured.values() for name in values if name not in _COMPLETED]
    if unknown:
        raise RunFolderError(f"an export completes rows of the ranking, but got {unknown[0]!r}, which it does not have")
    rows = [replace(row, **measured.get(row.architecture, {})) for row in ranking.rows]
    merged = tuple(dict.fromkeys((*ranking.notes, *notes)))
    return write_ranking(folder, settings, Ranking(tuple(rows), None, notes=merged))


def read_ranking(folder: Path) -> Ranking:
    """The ranking of a run folder.

    Raises:
        RunFolderError: there is none, it is of another format version or can not be read.
    """
    file = RunFolder(folder).ranking
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["format_version"] != FORMAT_VERSION:
            raise RunFolderError(
                f"this version reads rankings of format {FORMAT_VERSION}, but {file} has {document['format_version']}"
            )
        rows = tuple(
            RankingRow(**(row | {"ap_per_seed": tuple(row["ap_per_seed"]), "seeds": tuple(row["seeds"])}))
            for row in document["rows"]
        )
        known = document["recommendation"]
        return Ranking(
            rows,
            None if known is None else Recommendation(**known),
            # Rankings of earlier versions lack these; all follow from the rows and come with the next writing.
            tuple(Pick(**pick) for pick in document.get("picks", ())),
            tuple(BandRecommendation(**band) for band in document.get("bands", ())),
            tuple(Correlation(**correlation) for correlation in document.get("correlations", ())),
            tuple(document["notes"]),
            tuple(LatencyChange(**change) for change in document.get("changes", ())),
        )
    except FileNotFoundError as error:
        raise RunFolderError(f"a run folder with a ranking holds {file.name}, but {folder} has none") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{file} must hold a ranking, but reading it failed: {error!r}") from error


def _csv(rows: Sequence[RankingRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(RankingRow)]
    writer.writerow(names)
    for row in rows:
        cells = (getattr(row, name) for name in names)
        writer.writerow([";".join(map(str, cell)) if isinstance(cell, tuple) else cell for cell in cells])
    return text.getvalue()
