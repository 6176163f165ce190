"""The latency of a detector's parts, as the latency table holds them."""

from pathlib import Path

from profiler.errors import UserError
from profiler.table.latency_table import LatencyTable, Target
from smnas.latency.workloads import detector_workloads
from smnas.report.data import BlockLatency
from smnas.report.run_folder import RunFolder
from smnas.search.study.run_folder import RunFolder as RunFiles
from smnas.search.study.settings import SearchSettings
from smnas.space.architecture import Architecture

__all__ = ["block_latencies"]


def block_latencies(run: RunFolder, architecture: str, table: Path | None = None) -> tuple[BlockLatency, ...]:
    """Every part of a detector with its measured latency, in the order in which they run.

    Args:
        run: Says on which device and how latencies were measured.
        architecture: Of the detector.
        table: The latency table; by default the run folder's own.

    Raises:
        UserError: There is no table, it has no rows for the run's device, or it lacks a part.
    """
    settings = run.settings
    parts = detector_workloads(Architecture.parse(architecture), len(settings.data.classes), settings.batch)
    with LatencyTable(table or RunFiles(run.path).table, create=False) as rows:
        target = _target(settings, rows)
        known = rows.current(target)
    blocks = []
    for part in parts:
        row = known.get(part.key)
        if row is None or row.median_ms is None:
            raise UserError(f"every part of a detector must be in the latency table, but {part.name} has no latency")
        blocks.append(BlockLatency(part.name, row.median_ms))
    return tuple(blocks)


def _target(settings: SearchSettings, table: LatencyTable) -> Target:
    """The run's target; of several backend versions the last one."""
    wanted = (settings.device, settings.backend, settings.precision, settings.batch, settings.threads)
    found = [t for t in table.targets() if (t.device, t.backend, t.precision, t.batch, t.threads) == wanted]
    if not found:
        raise UserError(
            f"the latency table must hold the run's device, but {table.path} has nothing of {settings.device}"
        )
    return found[-1]
