"""A search's run folder as a value: its ranking, recommendation and report."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.errors import UserError
from smnas.api.arguments import StrPath, open_data

if TYPE_CHECKING:
    from smnas.inference.detector import Detector
    from smnas.search.ranking.ranking import Ranking, RankingRow
    from smnas.search.ranking.recommendation import Pick, Recommendation

__all__ = ["SearchRun", "rank", "report"]


class SearchRun:
    """A search's run folder, finished or not.

    Args:
        folder: As :func:`search` or ``smnas search --out`` wrote it.
    """

    def __init__(self, folder: StrPath) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"SearchRun({str(self.folder)!r})"

    @cached_property
    def ranking(self) -> "Ranking":
        """The detectors, best first, with notes and the recommendation for other latency limits.

        Raises:
            RunFolderError: the folder holds none yet, or it can not be read.
        """
        from smnas.search.ranking.ranking import read_ranking

        return read_ranking(self.folder)

    @property
    def recommendation(self) -> "Recommendation | None":
        """The detector to deploy, and why; None while nothing is trained, or all is over a limit."""
        return self.ranking.recommendation

    @property
    def picks(self) -> "tuple[Pick, ...]":
        """The fastest detector as good as the baseline, the recommended one, and the best of all, with reasons."""
        return self.ranking.picks

    @property
    def front(self) -> "tuple[RankingRow, ...]":
        """The rows that no other one beats in both AP and latency, best AP first."""
        return tuple(row for row in self.ranking.rows if row.on_front)

    def detector(self, **options: Any) -> "Detector":
        """The recommended detector, ready to use; options as of :class:`~smnas.inference.detector.Detector`."""
        from smnas.inference.detector import Detector

        return Detector(self.folder, **options)

    def report(self, out: StrPath | None = None, *, data: StrPath | None = None, table: StrPath | None = None) -> Path:
        """Write the report, see :func:`report`."""
        return report(self.folder, out, data=data, table=table)


def report(
    run: StrPath, out: StrPath | None = None, *, data: StrPath | None = None, table: StrPath | None = None
) -> Path:
    """Write a run folder as one HTML page, also while the search is running.

    Args:
        run: The run folder.
        out: The page; by default ``RUN/report.html``.
        data: Data set for sample detections; by default where it was in the search.
        table: Latency table of the search; by default ``RUN/latency.db``.

    Returns:
        The page.

    Raises:
        UserError: the run folder, the data or the table can not be read.
    """
    from profiler.table.latency_table import LatencyTable
    from smnas.report.page import write_report
    from smnas.search.study.settings import read_settings

    # A page does without what has gone since the search, but not in silence without what was asked for.
    if table is not None:
        LatencyTable(Path(table), read_only=True).close()
    folder = None
    if data is not None:
        bad_images = read_settings(Path(run)).data.drop_bad_images
        folder = open_data(data, drop_bad_boxes=True, drop_bad_images=bad_images, note=False)
    return write_report(
        Path(run), None if out is None else Path(out), images=folder, table=None if table is None else Path(table)
    )


def rank(run: StrPath, table: StrPath, *, accept_version: str | None = None) -> SearchRun:
    """Rank a run for a device elsewhere again, with what its latency table holds by now; nothing is trained.

    Latencies are predicted anew, measured end-to-end latencies are taken in, and the report is written.
    ``ranking.changes`` says what changed. A search that is run again does the same.

    Args:
        run: The run folder.
        table: The table that has grown on the device.
        accept_version: Version of the backend whose rows are taken; by default the search's.

    Raises:
        UserError: the run is for a device in its own machine, or the table holds too little of its device.
        RunFolderError: no run folder, or a search works in it.
    """
    from profiler.table.latency_table import LatencyTable
    from smnas.deploy.request import Request
    from smnas.deploy.rerank import rerank
    from smnas.latency.elsewhere import DeviceElsewhere
    from smnas.search.ranking.writer import finished_ranking
    from smnas.search.study.run_folder import folder_lock
    from smnas.search.study.settings import read_settings
    from smnas.space.architecture import Architecture

    folder = Path(run)
    settings = read_settings(folder)
    if settings.backend_version is None:
        raise UserError(f"a run to rank again must be for a device elsewhere, but {run} was for {settings.device} here")
    probe = [Architecture.parse(one.architecture) for one in Request.of_run(folder).detectors]
    with folder_lock(folder), LatencyTable(Path(table), read_only=True) as rows:
        described = DeviceElsewhere(
            rows,
            settings.device,
            settings.backend,
            settings.precision,
            settings.threads,
            len(settings.data.classes),
            accept_version or settings.backend_version,
        )
        predictor, _ = described.predictor(described.target(probe), probe, settings.latency_confidence)
        rerank(folder, settings, predictor, finished_ranking(folder))
        Request.of_run(folder).write(folder)
    report(folder, table=table)
    return SearchRun(folder)
